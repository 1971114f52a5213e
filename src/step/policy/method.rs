//! The document of a policy: all that decides on its table, and nothing else.

use crate::action;
use crate::action::Action;
use crate::action::BoostBase;
use crate::action::BoostLayers;
use crate::action::Corpus;
use crate::action::ImatrixCollect;
use crate::action::InspectModel;
use crate::action::Join;
use crate::action::Method;
use crate::action::PolicyCache;
use crate::action::PolicyDevice;
use crate::action::PolicyHeader;
use crate::action::PolicyRule;
use crate::allocation::DEFAULT_STATES;
use crate::digest::BlobDigest;
use crate::engine::Role;
use crate::recipe::model;
use crate::recipe::model::EngineRef;
use crate::recipe::model::PolicyStep;
use crate::step::Env;
use crate::step::Inputs;
use crate::step::Outcome;
use crate::step::StepError;
use crate::work::ERRORS;

use super::budget;

/// The version of the built-in rules: raise it when a mix gives other types.
const RULES: u32 = 1;

/// The version of the solver and of guessed losses: raise it when either gives another answer.
const SOLVER: u32 = 1;

/// The version of how `measured` searches, and of the solver: raise it when either comes to another choice.
const SEARCH: u32 = 8;

/// Returns the patterns of tensors that stay as they are.
pub(super) fn keep_of(step: &PolicyStep) -> Vec<String> {
    step.keep.iter().map(|pattern| pattern.as_str().to_owned()).collect()
}

/// Returns rules as documents have them.
pub(super) fn documents_of(rules: &[model::Rule]) -> Vec<PolicyRule> {
    let rule = |rule: &model::Rule| PolicyRule {
        pattern: rule.pattern.as_str().to_owned(),
        target: rule.to.as_str().to_owned(),
    };
    rules.iter().map(rule).collect()
}

fn devices_of(devices: &[model::Device]) -> Vec<PolicyDevice> {
    let device = |device: &model::Device| PolicyDevice {
        name: device.name.clone(),
        tensors: device
            .tensors
            .iter()
            .map(|pattern| pattern.as_str().to_owned())
            .collect(),
        memory: device.memory,
        reserve: device.reserve,
        cache: device.cache.as_ref().map(|cache| PolicyCache {
            context: cache.context,
            ty: cache.ty.to_ascii_uppercase(),
        }),
    };
    devices.iter().map(device).collect()
}

/// Returns the method of a policy that rules alone decide; nothing for one that keeps to a budget.
pub(super) fn by_rules(step: &PolicyStep) -> Option<Method> {
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
        model::Method::Ashq1(_)
        | model::Method::Density(_)
        | model::Method::Prior(_)
        | model::Method::Measured(_)
        | model::Method::Error(_)
        | model::Method::Boost(_) => None,
    }
}

fn method_of(step: &PolicyStep, inputs: &Inputs, env: &Env<'_>, engine: &EngineRef) -> Result<Method, StepError> {
    if let Some(method) = by_rules(step) {
        return Ok(method);
    }
    let keep = keep_of(step);
    let join_of = || step.join.as_ref().map(|join| inputs.step(join)).transpose();
    let header_of = |join: Option<&Outcome>| -> Result<PolicyHeader, StepError> {
        Ok(PolicyHeader {
            metadata: inputs.source(&step.model)?.output(InspectModel::METADATA)?,
            dataset: join.map(|join| join.fact(Join::DATASET)).transpose()?,
        })
    };
    let importances = |method: &str| -> Result<(BlobDigest, PolicyHeader), StepError> {
        let join = join_of()?;
        let imatrix = join.map(|join| join.output(ImatrixCollect::IMATRIX)).transpose()?;
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
                budget: budget::document_of(&ashq1.budget, inputs, env)?,
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
                budget: budget::document_of(&density.budget, inputs, env)?,
                base: density.base.as_str().to_owned(),
                promotion: density.promotion.as_str().to_owned(),
                anchors: density.anchors,
                keep,
            }
        }
        model::Method::Boost(boost) => Method::Boost {
            base: match boost.base {
                model::BoostBase::Mix(mix) => BoostBase::Mix {
                    mix: mix.as_str().to_owned(),
                },
                model::BoostBase::Type(ty) => BoostBase::Type {
                    to: ty.as_str().to_owned(),
                },
            },
            layers: match &boost.layers {
                model::BoostLayers::Listed(layers) => BoostLayers::Listed { layers: layers.clone() },
                model::BoostLayers::Ranked {
                    count,
                    ranking,
                    baseline,
                } => BoostLayers::Ranked {
                    count: *count,
                    ranking: (*ranking).to_owned(),
                    imatrix: importances("boost")?.0,
                    baseline: baseline
                        .as_ref()
                        .map(|baseline| inputs.step(baseline)?.output(ImatrixCollect::IMATRIX))
                        .transpose()?,
                },
            },
            families: boost.families.iter().map(|family| (*family).to_owned()).collect(),
            promotion: boost.promotion.as_str().to_owned(),
            keep,
        },
        model::Method::Prior(prior) => Method::Prior {
            header: header_of(join_of()?)?,
            budget: budget::document_of(&prior.budget, inputs, env)?,
            types: prior.types.iter().map(|name| name.as_str().to_owned()).collect(),
            fuse: prior.fuse.iter().map(|rule| (*rule).to_owned()).collect(),
            floors: documents_of(&prior.floors),
            ceilings: documents_of(&prior.ceilings),
            keep,
            devices: devices_of(&prior.devices),
            states: DEFAULT_STATES,
            solver: SOLVER,
        },
        model::Method::Error(error) => {
            let join = join_of()?;
            let model = inputs.source(&step.model)?;
            let probes = error.probes.as_ref().map(|probes| {
                Ok::<_, StepError>(action::Probes {
                    count: probes.count,
                    corpus: inputs.step(&probes.corpus)?.output(Corpus::CORPUS)?,
                    tokenizer: model.output(InspectModel::TOKENIZER)?,
                    context: probes.context,
                    chunks: probes.chunks,
                    block: probes.block,
                    evaluator: env.fingerprint(engine, Role::Evaluator)?,
                })
            });
            Method::Error(Box::new(action::Errors {
                header: header_of(join)?,
                budget: budget::document_of(&error.budget, inputs, env)?,
                model: model.output(InspectModel::COMPUTE)?,
                imatrix: join.map(|join| join.output(ImatrixCollect::IMATRIX)).transpose()?,
                probes: probes.transpose()?,
                types: error.types.iter().map(|name| name.as_str().to_owned()).collect(),
                fuse: error.fuse.iter().map(|rule| (*rule).to_owned()).collect(),
                floors: documents_of(&error.floors),
                ceilings: documents_of(&error.ceilings),
                keep,
                devices: devices_of(&error.devices),
                states: DEFAULT_STATES,
                solver: SOLVER,
                form: ERRORS,
                quantizer: env.fingerprint(engine, Role::Quantizer)?,
            }))
        }
        model::Method::Measured(measured) => {
            let join = join_of()?;
            let model = inputs.source(&step.model)?;
            Method::Measured(Box::new(action::Measured {
                header: header_of(join)?,
                budget: budget::document_of(&measured.budget, inputs, env)?,
                model: model.output(InspectModel::COMPUTE)?,
                imatrix: join.map(|join| join.output(ImatrixCollect::IMATRIX)).transpose()?,
                corpus: inputs.step(&measured.corpus)?.output(Corpus::CORPUS)?,
                tokenizer: model.output(InspectModel::TOKENIZER)?,
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
                devices: devices_of(&measured.devices),
                states: DEFAULT_STATES,
                solver: SEARCH,
                form: ERRORS,
                quantizer: env.fingerprint(engine, Role::Quantizer)?,
                evaluator: env.fingerprint(engine, Role::Evaluator)?,
            }))
        }
    })
}

pub(super) fn action_of(
    step: &PolicyStep,
    inputs: &Inputs,
    env: &Env<'_>,
    engine: &EngineRef,
) -> Result<Action, StepError> {
    let coverage = step
        .join
        .as_ref()
        .map(|join| inputs.step(join)?.output(Join::COVERAGE))
        .transpose()?;
    let shape = inputs.source(&step.model)?.output(InspectModel::SHAPE)?;
    Ok(Action::Policy(action::Policy {
        shape,
        coverage,
        method: method_of(step, inputs, env, engine)?,
        rules: RULES,
    }))
}
