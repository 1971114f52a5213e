//! `method = "boost"`: what a mix or one type gives each tensor, and a better type for some layers.

use std::collections::BTreeSet;

use crate::action::BoostBase;
use crate::action::BoostLayers;
use crate::action::Method;
use crate::policy;
use crate::policy::Boost;
use crate::policy::Energies;
use crate::policy::Family;
use crate::policy::HasImatrix;
use crate::policy::ModelFacts;
use crate::policy::Ranking;
use crate::work::Context;
use crate::work::StepError;
use crate::work::imatrix;

use super::Chosen;
use super::budget;
use super::by_rules::choose_by_rules;
use super::read::failed;
use super::read::type_of;

/// Chooses.
#[allow(clippy::too_many_arguments, reason = "these are the fields of the method's document")]
pub(super) fn choose(
    context: &Context<'_>,
    facts: &ModelFacts,
    base: &BoostBase,
    layers: &BoostLayers,
    families: &[String],
    promotion: &str,
    keep: &[String],
    has: HasImatrix<'_>,
) -> Result<Chosen, StepError> {
    let keep = keep.to_vec();
    let base = match base {
        BoostBase::Mix { mix } => Method::Mix {
            mix: mix.clone(),
            pure: false,
            output_type: None,
            embedding_type: None,
            keep,
        },
        BoostBase::Type { to } => Method::Manual {
            rules: keep
                .into_iter()
                .map(|pattern| crate::action::PolicyRule {
                    pattern,
                    target: "keep".to_owned(),
                })
                .collect(),
            otherwise: Some(to.clone()),
        },
    };
    let (table, file_type) = choose_by_rules(facts, &base, has)?;
    let families = families
        .iter()
        .map(|name| family_of(name))
        .collect::<Result<Vec<_>, _>>()?;
    let layers = match layers {
        BoostLayers::Listed { layers } => layers.iter().copied().collect(),
        BoostLayers::Ranked {
            count,
            ranking,
            imatrix: domain,
            baseline,
        } => {
            let domain = budget::energies(context, *domain, has)?;
            let baseline = match baseline {
                Some(baseline) => budget::energies_of(&imatrix::load(context.store(), *baseline)?, |_| true),
                None => Energies::new(),
            };
            let ranking = ranking_of(ranking)?;
            let ranked = policy::rank_layers(facts, &families, ranking, &domain, &baseline).map_err(failed)?;
            let first = ranked.iter().take(*count as usize).map(|(layer, _)| *layer);
            first.collect::<BTreeSet<u32>>()
        }
    };
    let options = Boost {
        layers: &layers,
        families: &families,
        promotion: type_of(promotion)?,
    };
    let table = policy::boost(facts, table, &options, has).map_err(failed)?;
    let file_type = file_type.or_else(|| Some(table.file_type()));
    Ok(Chosen::of(table, file_type))
}

fn family_of(name: &str) -> Result<Family, StepError> {
    Ok(match name {
        "gate" => Family::Gate,
        "up" => Family::Up,
        "down" => Family::Down,
        "shared" => Family::Shared,
        "attention" => Family::Attention,
        other => return Err(StepError::input(format!("there is no family `{other}` of tensors"))),
    })
}

fn ranking_of(name: &str) -> Result<Ranking, StepError> {
    Ok(match name {
        "energy" => Ranking::Energy,
        "contrast" => Ranking::Contrast,
        "sensitivity" => Ranking::Sensitivity,
        other => return Err(StepError::input(format!("layers cannot be ranked by `{other}`"))),
    })
}
