//! Choosing by documents alone: every method but those that need the model itself.

use crate::action::Method;
use crate::policy;
use crate::policy::ModelFacts;
use crate::work::Context;
use crate::work::StepError;

use super::Chosen;
use super::boosting;
use super::budget;
use super::by_rules::choose_by_rules;
use super::read::failed;
use super::read::kept;
use super::read::rules_of;
use super::read::type_of;
use super::solving::Solving;

pub(super) fn choose(
    context: &Context<'_>,
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
                size: budget::file_size(context.store(), header, facts)?,
                depth: *depth,
                free: *free,
                qat: *qat,
                keep: &keep,
                floors: &floors,
                ceilings: &ceilings,
            };
            let energies = budget::energies(context, *imatrix, has)?;
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
                size: budget::file_size(context.store(), header, facts)?,
                anchors: *anchors,
                keep: &keep,
            };
            let energies = budget::energies(context, *imatrix, has)?;
            let table = policy::density(facts, &energies, &options).map_err(failed)?;
            let file_type = table.file_type();
            Ok(Chosen::of(table, Some(file_type)))
        }
        Method::Boost {
            base,
            layers,
            families,
            promotion,
            keep,
        } => boosting::choose(context, facts, base, layers, families, promotion, keep, has),
        // They need the model itself: `measured::choose`, `error::choose`.
        Method::Measured(_) | Method::Error(_) => Err(StepError::input("this method cannot choose by documents alone")),
        Method::Prior {
            header,
            budget,
            types,
            fuse,
            floors,
            ceilings,
            keep,
            devices,
            states,
            solver: _,
        } => {
            let solving = Solving::of(facts, has, types, fuse, keep, floors, ceilings)?;
            let losses = policy::prior(facts, &solving.groups, &solving.types);
            let limits = solving.limits(context, header, *budget, devices, *states)?;
            solving.choose(context, &losses, &limits)
        }
    }
}
