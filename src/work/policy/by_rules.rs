//! `method = "mix"` and `method = "manual"`: rules decide the type of each tensor, from the model's header alone.

use crate::action::Method;
use crate::policy;
use crate::policy::ManualOptions;
use crate::policy::Mix;
use crate::policy::MixOptions;
use crate::policy::ModelFacts;
use crate::policy::Table;
use crate::work::StepError;

use super::read::kept;
use super::read::rules_of;
use super::read::target_of;
use super::read::type_of;

/// Chooses by the rules of a mix, or by those of the user: what needs the model's header only.
pub fn choose_by_rules(
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
        Method::Ashq1 { .. }
        | Method::Density { .. }
        | Method::Prior { .. }
        | Method::Measured(_)
        | Method::Error(_)
        | Method::Boost { .. } => Err(StepError::input("rules alone do not decide on this method")),
    }
}
