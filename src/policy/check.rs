//! What must hold of a table before work begins.

use crate::mix::Mix;
use crate::policy::Choice;
use crate::policy::HasImatrix;
use crate::policy::ModelFacts;
use crate::policy::PolicyError;
use crate::policy::Retyped;
use crate::policy::Role;
use crate::policy::TensorFacts;
use crate::policy::Why;
use crate::tensor_type::TensorType;

/// Checks choices, given in the order of the model's tensors, against everything that would stop the engine, or make it
/// write garbage, hours later.
pub(crate) fn check(
    model: &ModelFacts,
    choices: &[Choice],
    mix: Option<Mix>,
    allow_requantize: bool,
    has_imatrix: HasImatrix<'_>,
) -> Result<(), PolicyError> {
    let changed = || {
        let pairs = model.tensors.iter().zip(choices);
        pairs.filter(|(_, choice)| choice.from != choice.to)
    };
    let named = |test: &dyn Fn(&TensorFacts, &Choice) -> bool| -> Vec<Retyped> {
        changed()
            .filter(|(tensor, choice)| test(tensor, choice))
            .map(|(_, choice)| retyped(choice))
            .collect()
    };

    if let Some((_, choice)) = changed().find(|(_, choice)| !choice.to.quantizable_target()) {
        return Err(PolicyError::NotATarget { ty: choice.to });
    }
    let tensors = named(&|_, choice| !convertible(choice.from));
    if !tensors.is_empty() {
        return Err(PolicyError::NotConvertible { tensors });
    }
    if let Some((tensor, _)) = changed().find(|(tensor, _)| tensor.dims.iter().skip(3).any(|dim| *dim > 1)) {
        return Err(PolicyError::TooManyDimensions {
            tensor: tensor.name.clone(),
            dims: tensor.dims.clone(),
        });
    }
    if !allow_requantize {
        let tensors = named(&|_, choice| choice.from.is_quantized());
        if !tensors.is_empty() {
            return Err(PolicyError::Requantize { tensors });
        }
    }

    let has_entry = |name: &str| has_imatrix.is_some_and(|has| has(name));
    let mut tensors = named(&|_, choice| {
        let useless = !exempt(&choice.tensor) && useless_without(choice.to, mix);
        (useless || choice.to.needs_imatrix()) && !has_entry(&choice.tensor)
    });
    if has_imatrix.is_none() && tensors.is_empty() && mix.is_some() {
        // Without any imatrix, `llama-quantize` refuses these types even where it would only copy.
        let copied = choices.iter().filter(|choice| {
            matches!(
                choice.why,
                Why::Mix { .. } | Why::Uniform | Why::OutputType | Why::EmbeddingType
            ) && !exempt(&choice.tensor)
                && useless_without(choice.to, mix)
        });
        tensors.extend(copied.map(retyped));
    }
    if tensors.is_empty() {
        Ok(())
    } else {
        Err(PolicyError::NeedsImatrix {
            tensors,
            have_imatrix: has_imatrix.is_some(),
        })
    }
}

fn retyped(choice: &Choice) -> Retyped {
    Retyped {
        tensor: choice.tensor.clone(),
        from: choice.from,
        to: choice.to,
    }
}

/// The engine reads these into floats.
pub(crate) fn convertible(from: TensorType) -> bool {
    use TensorType as T;
    matches!(from, T::F32 | T::F16 | T::BF16) || (from.is_quantized() && from.quantizable_target())
}

/// No imatrix is collected for these two.
pub(crate) fn exempt(tensor: &str) -> bool {
    matches!(Role::of(tensor), Role::Output | Role::Embedding)
}

/// Types whose result is garbage without an imatrix. Q2_K bears it except where a mix leans on it everywhere.
pub(crate) fn useless_without(to: TensorType, mix: Option<Mix>) -> bool {
    use TensorType as T;
    match to {
        T::IQ1_S | T::IQ1_M | T::IQ2_XXS | T::IQ2_XS | T::IQ2_S | T::IQ3_XXS => true,
        T::Q2_K => mix == Some(Mix::Q2_K_S),
        _ => false,
    }
}
