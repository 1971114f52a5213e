//! `[policy.NAME]`: a table of tensor, type and why.

use crate::action;
use crate::action::Action;
use crate::action::Method;
use crate::action::PolicyRule;
use crate::graph::Node;
use crate::graph::Work;
use crate::policy;
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
use crate::step::Inputs;
use crate::step::Key;
use crate::step::Kind;
use crate::step::Outcome;
use crate::step::StepError;
use crate::step::Task;
use crate::step::join::Coverage;
use crate::step::key_of;
use crate::step::misplaced;
use crate::step::model::Shape;
use crate::step::model::decode;
use crate::step::model::encode;
use crate::step::model::facts_of;
use crate::tensor_type::TensorType;

/// The version of the built-in rules: raise it when a mix gives other types.
const RULES: u32 = 1;

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

fn method_of(step: &PolicyStep) -> Method {
    let keep: Vec<String> = step.keep.iter().map(|pattern| pattern.as_str().to_owned()).collect();
    match &step.method {
        model::Method::Mix(mix) => Method::Mix {
            mix: mix.mix.as_str().to_owned(),
            pure: mix.pure,
            output_type: mix.output_type.map(|ty| ty.as_str().to_owned()),
            embedding_type: mix.embedding_type.map(|ty| ty.as_str().to_owned()),
            keep,
        },
        // What is kept comes before every rule: it is a rule itself.
        model::Method::Manual(manual) => Method::Manual {
            rules: keep
                .into_iter()
                .map(|pattern| PolicyRule {
                    pattern,
                    target: "keep".to_owned(),
                })
                .chain(manual.rules.iter().map(|rule| PolicyRule {
                    pattern: rule.pattern.as_str().to_owned(),
                    target: rule.to.as_str().to_owned(),
                }))
                .collect(),
            otherwise: manual.otherwise.map(|otherwise| otherwise.as_str().to_owned()),
        },
    }
}

fn action_of(step: &PolicyStep, inputs: &Inputs) -> Result<Action, StepError> {
    let coverage = step
        .join
        .as_ref()
        .map(|join| inputs.step(join)?.output("coverage"))
        .transpose()?;
    let shape = inputs.source(&step.model)?.output("shape")?;
    Ok(Action::Policy(action::Policy {
        shape,
        coverage,
        method: method_of(step),
        rules: RULES,
    }))
}

impl Kind for Policy {
    fn key(&self, node: &Node, inputs: &Inputs, _env: &Env<'_>) -> Result<Key, StepError> {
        Ok(key_of(action_of(policy_step(node)?, inputs)?))
    }

    fn run(&self, node: &Node, inputs: &Inputs, task: &Task<'_>) -> Result<Outcome, StepError> {
        let action = action_of(policy_step(node)?, inputs)?;
        let Action::Policy(inputs) = &action else {
            return Err(misplaced(node));
        };
        let performed = task.perform(&action, &[], |made| {
            let env = task.env;
            let shape: Shape = decode(env, "shape", inputs.shape)?;
            let coverage: Option<Coverage> = inputs
                .coverage
                .map(|coverage| decode(env, "coverage", coverage))
                .transpose()?;
            let facts = facts_of(env, &shape)?;
            let covered = |name: &str| {
                coverage
                    .as_ref()
                    .is_some_and(|coverage| coverage.tensors.binary_search_by(|t| t.as_str().cmp(name)).is_ok())
            };
            let has: policy::HasImatrix<'_> = if coverage.is_some() { Some(&covered) } else { None };
            let (table, file_type) = choose(&facts, &inputs.method, has)?;
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
            Ok(())
        })?;
        Ok(Outcome::of(performed, Vec::new()))
    }

    fn summary(&self, outcome: &Outcome) -> String {
        let bytes = words::bytes(outcome.number("bytes").unwrap_or_default());
        format!(
            "{} of {} tensors change type, {bytes}",
            outcome.fact("quantized"),
            outcome.fact("tensors")
        )
    }
}

/// Returns how many bytes of tensors a candidate of this policy would have at the least, told from the model's header alone:
/// as if the imatrix covered every tensor. Nothing where the policy would fail.
pub fn foresee(step: &PolicyStep, facts: &ModelFacts) -> Option<u64> {
    let all = |_: &str| true;
    let has: policy::HasImatrix<'_> = if step.join.is_some() { Some(&all) } else { None };
    let (table, _) = choose(facts, &method_of(step), has).ok()?;
    table.bytes()
}

fn choose(facts: &ModelFacts, method: &Method, has: policy::HasImatrix<'_>) -> Result<(Table, Option<u32>), StepError> {
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
                rules: keep
                    .iter()
                    .map(|pattern| {
                        Ok(Rule {
                            pattern: regex_of(pattern)?,
                            to: Target::Keep,
                        })
                    })
                    .collect::<Result<_, StepError>>()?,
                allow_requantize: true,
            };
            let table = policy::mix(facts, mix, &options, has).map_err(failed)?;
            let file_type = mix.default_type().map(|_| mix.file_type(facts));
            Ok((table, file_type))
        }
        Method::Manual { rules, otherwise } => {
            let rules = rules
                .iter()
                .map(|rule| {
                    Ok(Rule {
                        pattern: regex_of(&rule.pattern)?,
                        to: target_of(&rule.target)?,
                    })
                })
                .collect::<Result<Vec<_>, StepError>>()?;
            let otherwise = otherwise.as_deref().map(target_of).transpose()?;
            let options = ManualOptions {
                otherwise,
                allow_requantize: true,
            };
            let table = policy::manual(facts, &rules, options, has).map_err(failed)?;
            let file_type = table.file_type();
            Ok((table, Some(file_type)))
        }
    }
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
