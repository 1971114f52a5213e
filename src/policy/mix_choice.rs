//! The types that one of llama.cpp's mixes gives to the tensors of a model.

use crate::mix::Mix;
use crate::policy::Choice;
use crate::policy::HasImatrix;
use crate::policy::ModelFacts;
use crate::policy::PolicyError;
use crate::policy::Role;
use crate::policy::Rule;
use crate::policy::Table;
use crate::policy::Why;
use crate::policy::check::check;
use crate::policy::manual::RuleMatcher;
use crate::policy::manual::TypeRequest;
use crate::policy::manual::choice;
use crate::policy::quantizable::quantizable;
use crate::policy::role::PER_LAYER_EMBEDDING;
use crate::policy::role::counting_order;
use crate::policy::rules::Rules;
use crate::tensor_type::TensorType;

/// What the user wants otherwise than the mix has it.
#[derive(Debug, Clone, Default)]
pub struct MixOptions {
    /// The mix's own type for every tensor (`--pure`).
    pub pure: bool,
    /// The type of the output layer (`--output-tensor-type`). Where the model has none of its own, a mix gives it to the
    /// token embedding, unless it is `pure`.
    pub output_type: Option<TensorType>,
    /// The type of the token embedding (`--token-embedding-type`).
    pub embedding_type: Option<TensorType>,
    /// Tensors with another type than the mix gives, or kept as they are; the first match wins. Unlike `--tensor-type`
    /// alone, a rule changes no tensor that it does not match.
    pub rules: Vec<Rule>,
    /// Accept tensors that are quantized already (`--allow-requantize`).
    pub allow_requantize: bool,
}

/// Applies a mix to a model: the types that `llama-quantize` gives.
///
/// # Errors
/// Everything that `llama-quantize` refuses or aborts on, before any work: see [`PolicyError`].
pub fn mix(
    model: &ModelFacts,
    mix: Mix,
    options: &MixOptions,
    has_imatrix: HasImatrix<'_>,
) -> Result<Table, PolicyError> {
    let Some(base) = mix.default_type() else {
        let copies = model
            .tensors
            .iter()
            .map(|tensor| choice(tensor, TypeRequest::keep(tensor, Why::Copy)));
        return Ok(Table::new(copies.collect::<Result<_, _>>()?, Vec::new()));
    };
    let mut rules = Rules::new(model, mix, base, options.output_type, has_imatrix.is_some());
    let mut matcher = RuleMatcher::new(&options.rules);
    let mut slots: Vec<Option<Choice>> = vec![None; model.tensors.len()];
    for index in counting_order(model.tensors.iter().map(|tensor| tensor.name.as_str())) {
        let tensor = &model.tensors[index];
        let rule = matcher.find(&tensor.name);
        if let Err(reason) = quantizable(model, &tensor.name, &tensor.dims) {
            matcher.without_effect(rule, tensor, reason);
            slots[index] = Some(choice(
                tensor,
                TypeRequest::keep(tensor, Why::NeverQuantized { reason }),
            )?);
            continue;
        }
        let role = Role::of(&tensor.name);
        // Asked for even where a rule decides, so that the mix counts the tensor.
        let uniform = options.pure || !base.is_quantized();
        let mixed = if uniform { Ok(base) } else { rules.choose(tensor, role) };
        let unless_named = rule.is_none() || tensor.name != PER_LAYER_EMBEDDING;
        let request = match (role, options.output_type, options.embedding_type) {
            (Role::Embedding, _, Some(to)) if unless_named => TypeRequest {
                to,
                why: Why::EmbeddingType,
                may_fall_back: false,
            },
            (Role::Output, Some(to), _) => TypeRequest {
                to,
                why: Why::OutputType,
                may_fall_back: false,
            },
            _ => match rule {
                Some(index) => TypeRequest::of(tensor, options.rules[index].to, Why::Rule { index }),
                None if uniform => TypeRequest {
                    to: mixed?,
                    why: Why::Uniform,
                    may_fall_back: true,
                },
                None => TypeRequest {
                    to: mixed?,
                    why: Why::Mix { role },
                    may_fall_back: true,
                },
            },
        };
        matcher.had_effect(rule);
        slots[index] = Some(choice(tensor, request)?);
    }
    let choices: Vec<_> = slots.into_iter().flatten().collect();
    check(model, &choices, Some(mix), options.allow_requantize, has_imatrix)?;
    Ok(Table::new(choices, matcher.warnings()))
}
