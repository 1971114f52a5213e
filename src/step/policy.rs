//! `[policy.NAME]`: a table of tensor, type and why.

mod budget;
mod measured;
mod solving;

use crate::action;
use crate::action::Action;
use crate::action::Method;
use crate::action::PolicyHeader;
use crate::action::PolicyRule;
use crate::allocation::DEFAULT_STATES;
use crate::digest::BlobDigest;
use crate::graph::Node;
use crate::graph::Work;
use crate::policy;
use crate::policy::Fuse;
use crate::policy::ManualOptions;
use crate::policy::Mix;
use crate::policy::MixOptions;
use crate::policy::ModelFacts;
use crate::policy::Reason;
use crate::policy::Rule;
use crate::policy::Table;
use crate::policy::Target;
use crate::policy::Warning;
use crate::recipe::model;
use crate::recipe::model::PolicyStep;
use crate::recipe::model::StepBody;
use crate::report::words;
use crate::step::Env;
use crate::step::Estimate;
use crate::step::Inputs;
use crate::step::Key;
use crate::step::Kind;
use crate::step::Outcome;
use crate::step::Pool;
use crate::step::StepError;
use crate::step::Task;
use crate::step::join::Coverage;
use crate::step::key_of;
use crate::step::misplaced;
use crate::step::model::Shape;
use crate::step::model::decode;
use crate::step::model::encode;
use crate::step::model::facts_of;
use crate::step::output;
use crate::tensor_type::TensorType;

pub use budget::energies_of;

use solving::Solving;

/// The version of the built-in rules: raise it when a mix gives other types.
const RULES: u32 = 1;

/// The version of the solver and of guessed losses: raise it when either gives another answer.
const SOLVER: u32 = 1;

/// A policy.
pub struct Policy;

fn policy_step(node: &Node) -> Result<&PolicyStep, StepError> {
    match &node.work {
        Work::Step(step) => match &step.body {
            StepBody::Policy(policy) => Ok(policy),
            _ => Err(misplaced(node)),
        },
        _ => Err(misplaced(node)),
    }
}

fn keep_of(step: &PolicyStep) -> Vec<String> {
    step.keep.iter().map(|pattern| pattern.as_str().to_owned()).collect()
}

fn documents_of(rules: &[model::Rule]) -> Vec<PolicyRule> {
    let rule = |rule: &model::Rule| PolicyRule {
        pattern: rule.pattern.as_str().to_owned(),
        target: rule.to.as_str().to_owned(),
    };
    rules.iter().map(rule).collect()
}

/// Returns the method of a policy that rules alone decide; nothing for one that keeps to a budget.
fn by_rules(step: &PolicyStep) -> Option<Method> {
    let keep = keep_of(step);
    match &step.method {
        model::Method::Mix(mix) => Some(Method::Mix {
            mix: mix.mix.as_str().to_owned(),
            pure: mix.pure,
            output_type: mix.output_type.map(|ty| ty.as_str().to_owned()),
            embedding_type: mix.embedding_type.map(|ty| ty.as_str().to_owned()),
            keep,
        }),
        // What is kept comes before every rule: it is a rule itself.
        model::Method::Manual(manual) => Some(Method::Manual {
            rules: keep
                .into_iter()
                .map(|pattern| PolicyRule {
                    pattern,
                    target: "keep".to_owned(),
                })
                .chain(documents_of(&manual.rules))
                .collect(),
            otherwise: manual.otherwise.map(|otherwise| otherwise.as_str().to_owned()),
        }),
        model::Method::Ashq1(_) | model::Method::Density(_) | model::Method::Prior(_) | model::Method::Measured(_) => {
            None
        }
    }
}

fn method_of(step: &PolicyStep, inputs: &Inputs, env: &Env<'_>) -> Result<Method, StepError> {
    if let Some(method) = by_rules(step) {
        return Ok(method);
    }
    let keep = keep_of(step);
    let join_of = || step.join.as_ref().map(|join| inputs.step(join)).transpose();
    let header_of = |join: Option<&Outcome>| -> Result<PolicyHeader, StepError> {
        Ok(PolicyHeader {
            metadata: inputs.source(&step.model)?.output("metadata")?,
            dataset: join.map(|join| join.fact("dataset").to_owned()),
        })
    };
    let importances = |method: &str| -> Result<(BlobDigest, PolicyHeader), StepError> {
        let join = join_of()?;
        let imatrix = join.map(|join| join.output("imatrix")).transpose()?;
        let missing = || StepError::input(format!("`{method}` works on an imatrix, and the policy names none"));
        Ok((imatrix.ok_or_else(missing)?, header_of(join)?))
    };
    Ok(match &step.method {
        model::Method::Mix(_) | model::Method::Manual(_) => {
            return Err(StepError::input("rules decide on this policy"));
        }
        model::Method::Ashq1(ashq1) => {
            let (imatrix, header) = importances("ashq1")?;
            Method::Ashq1 {
                imatrix,
                header,
                budget: budget::document_of(ashq1.budget),
                depth: ashq1.depth,
                free: ashq1.free,
                qat: ashq1.qat,
                floors: documents_of(&ashq1.floors),
                ceilings: documents_of(&ashq1.ceilings),
                keep,
            }
        }
        model::Method::Density(density) => {
            let (imatrix, header) = importances("density")?;
            Method::Density {
                imatrix,
                header,
                budget: budget::document_of(density.budget),
                base: density.base.as_str().to_owned(),
                promotion: density.promotion.as_str().to_owned(),
                anchors: density.anchors,
                keep,
            }
        }
        model::Method::Prior(prior) => Method::Prior {
            header: header_of(join_of()?)?,
            budget: budget::document_of(prior.budget),
            types: prior.types.iter().map(|name| name.as_str().to_owned()).collect(),
            fuse: prior.fuse.iter().map(|rule| (*rule).to_owned()).collect(),
            floors: documents_of(&prior.floors),
            ceilings: documents_of(&prior.ceilings),
            keep,
            states: DEFAULT_STATES,
            solver: SOLVER,
        },
        model::Method::Measured(measured) => {
            let join = join_of()?;
            let model = inputs.source(&step.model)?;
            Method::Measured(Box::new(action::Measured {
                header: header_of(join)?,
                budget: budget::document_of(measured.budget),
                model: model.output("compute")?,
                slices: join.map(|join| join.output("slices")).transpose()?,
                corpus: inputs.step(&measured.corpus)?.output("corpus")?,
                tokenizer: model.output("tokenizer")?,
                context: measured.context,
                chunks: measured.chunks,
                block: measured.block,
                screen: measured.screen,
                max_probes: measured.max_probes,
                refine: measured.refine,
                types: measured.types.iter().map(|name| name.as_str().to_owned()).collect(),
                fuse: measured.fuse.iter().map(|rule| (*rule).to_owned()).collect(),
                floors: documents_of(&measured.floors),
                ceilings: documents_of(&measured.ceilings),
                keep,
                states: DEFAULT_STATES,
                solver: SOLVER,
                quantizer: env.quantizer.fingerprint(),
                evaluator: env.evaluator.fingerprint(),
            }))
        }
    })
}

fn action_of(step: &PolicyStep, inputs: &Inputs, env: &Env<'_>) -> Result<Action, StepError> {
    let coverage = step
        .join
        .as_ref()
        .map(|join| inputs.step(join)?.output("coverage"))
        .transpose()?;
    let shape = inputs.source(&step.model)?.output("shape")?;
    Ok(Action::Policy(action::Policy {
        shape,
        coverage,
        method: method_of(step, inputs, env)?,
        rules: RULES,
    }))
}

impl Kind for Policy {
    fn key(&self, node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Key, StepError> {
        Ok(key_of(action_of(policy_step(node)?, inputs, env)?))
    }

    fn pool(&self, node: &Node) -> Pool {
        match policy_step(node).map(|step| &step.method) {
            Ok(model::Method::Measured(_)) => Pool::Model,
            _ => Pool::Light,
        }
    }

    fn estimate(&self, node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Estimate, StepError> {
        let step = policy_step(node)?;
        let model::Method::Measured(settings) = &step.method else {
            return Ok(Estimate::default());
        };
        let Action::Policy(document) = action_of(step, inputs, env)? else {
            return Err(misplaced(node));
        };
        let looked = Looked::at(&document, env)?;
        let covered = |name: &str| looked.covers(name);
        let parts = measured::Parts::of(step, settings, inputs)?;
        measured::estimate(&parts, &looked.facts, &document.method, looked.has(&covered), env)
    }

    fn run(&self, node: &Node, inputs: &Inputs, task: &Task<'_>) -> Result<Outcome, StepError> {
        let step = policy_step(node)?;
        let action = action_of(step, inputs, task.env)?;
        let Action::Policy(document) = &action else {
            return Err(misplaced(node));
        };
        let performed = task.perform(&action, &[], |made| {
            let env = task.env;
            let looked = Looked::at(document, env)?;
            let covered = |name: &str| looked.covers(name);
            let (facts, has) = (&looked.facts, looked.has(&covered));
            let Chosen {
                table,
                file_type,
                solved,
            } = match &step.method {
                model::Method::Measured(settings) => {
                    let parts = measured::Parts::of(step, settings, inputs)?;
                    measured::choose(task, &parts, facts, &document.method, has)?
                }
                _ => choose(env, facts, &document.method, has)?,
            };
            table.warnings.iter().for_each(|warning| task.warn(sentence(warning)));
            if table.fallbacks() > 0 {
                let fallbacks = words::count(table.fallbacks() as u64, "tensor");
                task.warn(format!(
                    "{fallbacks} got another type than asked for, since their rows are no whole blocks of it"
                ));
            }
            made.fact("bytes", table.bytes().unwrap_or(u64::MAX));
            made.fact(
                "quantized",
                table.choices.iter().filter(|choice| choice.from != choice.to).count(),
            );
            made.fact("tensors", table.choices.len());
            made.fact(
                "file_type",
                file_type.map_or_else(|| "keep".to_owned(), |number| number.to_string()),
            );
            made.output("policy", env.store.put(&encode(&table)?)?);
            if let Some(solved) = solved {
                made.output("certificate", env.store.put(solved.certificate.as_bytes())?);
                made.fact("proved", if solved.optimal { "optimal" } else { "gap" });
            }
            Ok(())
        })?;
        let mut outcome = Outcome::of(performed, Vec::new());
        if let Ok(digest) = outcome.output("certificate") {
            let name = certificate_name(node)?;
            outcome.files.push(output::place(task, &name, outcome.key, &digest)?);
        }
        outcome.ran |= task.counts().0 > 0;
        Ok(outcome)
    }

    fn intact(&self, node: &Node, outcome: &mut Outcome, _inputs: &Inputs, env: &Env<'_>) -> Result<bool, StepError> {
        let Ok(digest) = outcome.output("certificate") else {
            return Ok(true);
        };
        let found = output::intact(env, &output::path(env, &certificate_name(node)?)?, &digest)?;
        outcome.files.extend(found);
        Ok(!outcome.files.is_empty())
    }

    fn summary(&self, outcome: &Outcome) -> String {
        let bytes = words::bytes(outcome.number("bytes").unwrap_or_default());
        let proved = match outcome.fact("proved") {
            "optimal" => ", proved optimal for its losses",
            "gap" => ", not proved optimal",
            _ => "",
        };
        format!(
            "{} of {} tensors change type, {bytes}{proved}",
            outcome.fact("quantized"),
            outcome.fact("tensors")
        )
    }
}

/// What a policy looks at.
struct Looked {
    facts: ModelFacts,
    coverage: Option<Coverage>,
}

impl Looked {
    fn at(document: &action::Policy, env: &Env<'_>) -> Result<Self, StepError> {
        let shape: Shape = decode(env, "shape", document.shape)?;
        let coverage = document.coverage.map(|coverage| decode(env, "coverage", coverage));
        Ok(Self {
            facts: facts_of(env, &shape)?,
            coverage: coverage.transpose()?,
        })
    }

    /// Says whether the imatrix has data for a tensor.
    fn covers(&self, name: &str) -> bool {
        let coverage = self.coverage.as_ref();
        coverage.is_some_and(|coverage| coverage.tensors.binary_search_by(|t| t.as_str().cmp(name)).is_ok())
    }

    fn has<'c>(&self, covered: &'c dyn Fn(&str) -> bool) -> policy::HasImatrix<'c> {
        self.coverage.is_some().then_some(covered)
    }
}

/// What a method chose.
struct Chosen {
    table: Table,
    file_type: Option<u32>,
    solved: Option<budget::Solved>,
}

impl Chosen {
    fn of(table: Table, file_type: Option<u32>) -> Self {
        Self {
            table,
            file_type,
            solved: None,
        }
    }
}

fn certificate_name(node: &Node) -> Result<String, StepError> {
    match &node.work {
        Work::Step(step) => Ok(format!("{}.certificate.json", step.id.label())),
        _ => Err(misplaced(node)),
    }
}

fn fuse_of(name: &str) -> Result<Fuse, StepError> {
    match name {
        "attention" => Ok(Fuse::Attention),
        "feed-forward" => Ok(Fuse::FeedForward),
        "experts" => Ok(Fuse::Experts),
        other => Err(StepError::input(format!(
            "there is no rule `{other}` that fuses tensors"
        ))),
    }
}

/// Returns how many bytes of tensors a candidate of this policy would have at the least, told from the model's header alone:
/// as if the imatrix covered every tensor. Nothing where the policy would fail, or where more than the header decides.
pub fn foresee(step: &PolicyStep, facts: &ModelFacts) -> Option<u64> {
    let all = |_: &str| true;
    let has: policy::HasImatrix<'_> = if step.join.is_some() { Some(&all) } else { None };
    let (table, _) = choose_by_rules(facts, &by_rules(step)?, has).ok()?;
    table.bytes()
}

fn failed(error: policy::PolicyError) -> StepError {
    match error {
        policy::PolicyError::BelowMinimum { .. } => {
            StepError::input_hint(error.to_string(), "raise the budget, or lower floors")
        }
        error => StepError::input(error.to_string()),
    }
}

fn choose(
    env: &Env<'_>,
    facts: &ModelFacts,
    method: &Method,
    has: policy::HasImatrix<'_>,
) -> Result<Chosen, StepError> {
    // Whether quantized tensors may be quantized again is for promote to say, of the tensors that really change.
    match method {
        Method::Mix { .. } | Method::Manual { .. } => {
            let (table, file_type) = choose_by_rules(facts, method, has)?;
            Ok(Chosen::of(table, file_type))
        }
        Method::Ashq1 {
            imatrix,
            header,
            budget,
            depth,
            free,
            qat,
            floors,
            ceilings,
            keep,
        } => {
            let (keep, floors, ceilings) = (kept(keep)?, rules_of(floors)?, rules_of(ceilings)?);
            let options = policy::Ashq1 {
                budget: budget::bytes_of(*budget, facts),
                size: budget::file_size(env, header, facts)?,
                depth: *depth,
                free: *free,
                qat: *qat,
                keep: &keep,
                floors: &floors,
                ceilings: &ceilings,
            };
            let energies = budget::energies(env, *imatrix, has)?;
            let table = policy::ashq1(facts, &energies, &options).map_err(failed)?;
            let file_type = table.file_type();
            Ok(Chosen::of(table, Some(file_type)))
        }
        Method::Density {
            imatrix,
            header,
            budget,
            base,
            promotion,
            anchors,
            keep,
        } => {
            let keep = kept(keep)?;
            let options = policy::Density {
                base: type_of(base)?,
                promotion: type_of(promotion)?,
                budget: budget::bytes_of(*budget, facts),
                size: budget::file_size(env, header, facts)?,
                anchors: *anchors,
                keep: &keep,
            };
            let energies = budget::energies(env, *imatrix, has)?;
            let table = policy::density(facts, &energies, &options).map_err(failed)?;
            let file_type = table.file_type();
            Ok(Chosen::of(table, Some(file_type)))
        }
        // It needs the model itself: `measured::choose`.
        Method::Measured(_) => Err(StepError::input("`measured` cannot choose by documents alone")),
        Method::Prior {
            header,
            budget,
            types,
            fuse,
            floors,
            ceilings,
            keep,
            states,
            solver: _,
        } => {
            let solving = Solving::of(facts, has, types, fuse, keep, floors, ceilings)?;
            let losses = policy::prior(facts, &solving.groups, &solving.types);
            solving.choose(env, &losses, header, *budget, *states)
        }
    }
}

/// Chooses by the rules of a mix, or by those of the user: what needs the model's header only.
fn choose_by_rules(
    facts: &ModelFacts,
    method: &Method,
    has: policy::HasImatrix<'_>,
) -> Result<(Table, Option<u32>), StepError> {
    let failed = |error: policy::PolicyError| StepError::input(error.to_string());
    // Whether quantized tensors may be quantized again is for promote to say, of the tensors that really change.
    match method {
        Method::Mix {
            mix,
            pure,
            output_type,
            embedding_type,
            keep,
        } => {
            let name = mix;
            let mix = Mix::from_name(name).ok_or_else(|| StepError::input(format!("llama.cpp has no mix `{name}`")))?;
            let options = MixOptions {
                pure: *pure,
                output_type: output_type.as_deref().map(type_of).transpose()?,
                embedding_type: embedding_type.as_deref().map(type_of).transpose()?,
                rules: kept(keep)?,
                allow_requantize: true,
            };
            let table = policy::mix(facts, mix, &options, has).map_err(failed)?;
            let file_type = mix.default_type().map(|_| mix.file_type(facts));
            Ok((table, file_type))
        }
        Method::Manual { rules, otherwise } => {
            let rules = rules_of(rules)?;
            let otherwise = otherwise.as_deref().map(target_of).transpose()?;
            let options = ManualOptions {
                otherwise,
                allow_requantize: true,
            };
            let table = policy::manual(facts, &rules, options, has).map_err(failed)?;
            let file_type = table.file_type();
            Ok((table, Some(file_type)))
        }
        Method::Ashq1 { .. } | Method::Density { .. } | Method::Prior { .. } | Method::Measured(_) => Err(
            StepError::input("this method keeps to a budget: rules alone do not decide"),
        ),
    }
}

fn kept(patterns: &[String]) -> Result<Vec<Rule>, StepError> {
    let keep = |pattern: &String| {
        Ok(Rule {
            pattern: regex_of(pattern)?,
            to: Target::Keep,
        })
    };
    patterns.iter().map(keep).collect()
}

fn rules_of(rules: &[PolicyRule]) -> Result<Vec<Rule>, StepError> {
    let rule = |rule: &PolicyRule| {
        Ok(Rule {
            pattern: regex_of(&rule.pattern)?,
            to: target_of(&rule.target)?,
        })
    };
    rules.iter().map(rule).collect()
}

fn type_of(name: &str) -> Result<TensorType, StepError> {
    TensorType::from_name(name).ok_or_else(|| StepError::input(format!("there is no tensor type `{name}`")))
}

fn target_of(name: &str) -> Result<Target, StepError> {
    if name == "keep" {
        Ok(Target::Keep)
    } else {
        type_of(name).map(Target::Type)
    }
}

fn regex_of(pattern: &str) -> Result<regex::Regex, StepError> {
    regex::Regex::new(pattern).map_err(|error| StepError::input(format!("`{pattern}`: {error}")))
}

fn sentence(warning: &Warning) -> String {
    match warning {
        Warning::RuleMatchesNothing { index, pattern } => format!("rule {}, `{pattern}`, matches no tensor", index + 1),
        Warning::RuleShadowed { index, pattern } => {
            format!(
                "rule {}, `{pattern}`, only matches tensors that earlier rules took",
                index + 1
            )
        }
        Warning::RuleHasNoEffect {
            index,
            pattern,
            tensor,
            reason,
        } => {
            format!(
                "rule {}, `{pattern}`, has no effect: `{tensor}` is never quantized ({})",
                index + 1,
                words_for(*reason)
            )
        }
    }
}

fn words_for(reason: Reason) -> &'static str {
    match reason {
        Reason::OneDimension => "it has one dimension",
        Reason::NotAWeight => "its name does not end in `weight`",
        Reason::Norm => "it is a norm",
        Reason::ExpertRouter => "it routes to experts",
        Reason::Small => "it is small and precious",
        Reason::Position => "it holds positions or token types",
        Reason::Encoder => "it belongs to an image or sound encoder",
    }
}
