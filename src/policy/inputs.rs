//! Which weights probably share an input, by their names: for estimates, before the model has computed anything.

use std::collections::BTreeMap;

use super::model::ModelFacts;
use super::quantizable::quantizable;
use super::role::Role;

/// An input of weights that a header lets expect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LikelyInput {
    /// The length of the input vectors.
    pub columns: u64,
    /// The matrices of each weight: 1, or the number of experts.
    pub matrices: u64,
    /// The weights, by their place in the file.
    pub tensors: Vec<usize>,
}

/// Returns the inputs of the weights that can be quantized: queries, keys and values of a layer share one, and gate and up do. The token
/// embedding has one if it is the output matrix, too.
pub fn likely_inputs(model: &ModelFacts) -> Vec<LikelyInput> {
    let mut found: Vec<LikelyInput> = Vec::new();
    let mut known: BTreeMap<(&str, u8, u64, u64), usize> = BTreeMap::new();
    for (at, tensor) in model.tensors.iter().enumerate() {
        let role = Role::of(&tensor.name);
        let is_lookup = role == Role::Embedding && (model.has_output() || tensor.name != "token_embd.weight");
        if is_lookup || quantizable(model, &tensor.name, &tensor.dims).is_err() {
            continue;
        }
        let (columns, matrices) = (tensor.columns(), tensor.dims.iter().skip(2).product());
        let input = LikelyInput {
            columns,
            matrices,
            tensors: vec![at],
        };
        let class = match role {
            Role::Query | Role::Key | Role::Value | Role::QueryKeyValue => 0,
            Role::Up | Role::Gate => 1,
            _ => {
                found.push(input);
                continue;
            }
        };
        let layer = tensor
            .name
            .match_indices('.')
            .nth(1)
            .map_or("", |(end, _)| &tensor.name[..end]);
        let next = found.len();
        let place = *known.entry((layer, class, columns, matrices)).or_insert(next);
        if place < next {
            found[place].tensors.push(at);
        } else {
            found.push(input);
        }
    }
    found
}
