//! Losses estimated from the role and the depth of tensors: nothing of the model is measured.
//!
//! The loss of a tensor in a type is its share of the model's weights, times what its role and its depth are worth, times what
//! a whole model in that type loses. This is good enough to see what a budget allows and which
//! measurements to make first. If there is a measured loss, it is used instead.

use std::collections::BTreeMap;

use crate::policy::Loss;
use crate::policy::Losses;
use crate::policy::ModelFacts;
use crate::policy::Role;
use crate::policy::TensorFacts;
use crate::policy::TensorGroup;
use crate::policy::role::block_index;
use crate::tensor_type::TensorType;

/// The mean KL divergence of a 27B model with all its matrices in one type, as published; 16 bits count as none. Order and ratios
/// differ from model to model.
pub const CURVE: &[(TensorType, f64)] = &[
    (TensorType::IQ1_S, 0.3585),
    (TensorType::IQ2_XXS, 0.1619),
    (TensorType::IQ2_S, 0.0765),
    (TensorType::Q2_K, 0.0884),
    (TensorType::IQ3_XXS, 0.0411),
    (TensorType::Q3_K, 0.0280),
    (TensorType::IQ3_S, 0.0248),
    (TensorType::IQ4_XS, 0.008_05),
    (TensorType::IQ4_NL, 0.007_77),
    (TensorType::Q4_0, 0.0103),
    (TensorType::Q4_K, 0.007_13),
    (TensorType::Q5_K, 0.0026),
    (TensorType::Q6_K, 0.000_93),
    (TensorType::Q8_0, 0.000_55),
    (TensorType::F16, 0.0),
];

/// Returns estimated losses of groups in some types, and in the source's own type, which loses nothing. If all tensors had one
/// type, they would add up to that type's value: of [`CURVE`], or between its values by bits per weight.
pub fn prior(model: &ModelFacts, groups: &[TensorGroup], types: &[TensorType]) -> Losses {
    let layers = model.tensors.iter().filter_map(|tensor| block_index(&tensor.name));
    let last = layers.max().unwrap_or(0).max(1) as f64;
    let weigh = |at: &usize| weight(model, &model.tensors[*at], last);
    let all: f64 = groups.iter().flat_map(|group| &group.members).map(weigh).sum();
    let mut losses = BTreeMap::new();
    for group in groups {
        let share: f64 = group.members.iter().map(weigh).sum::<f64>() / all.max(f64::MIN_POSITIVE);
        let mut insert = |ty: TensorType, lost: f64| {
            let loss = Loss {
                mean: share * lost,
                variance: 0.0,
                chunks: 0,
            };
            losses.insert((group.name.clone(), ty), loss);
        };
        for ty in types {
            insert(*ty, usual_loss(*ty));
        }
        if let Some(own) = group.own_type(model) {
            insert(own, 0.0);
        }
    }
    losses
}

/// Returns the loss of a whole model in a type: the published one, or the log-linear interpolation between published ones.
fn usual_loss(ty: TensorType) -> f64 {
    if let Some((_, lost)) = CURVE.iter().find(|(known, _)| *known == ty) {
        return *lost;
    }
    let known: Vec<(f64, f64)> = CURVE
        .iter()
        .filter(|(_, lost)| *lost > 0.0)
        .map(|(ty, lost)| (ty.bpw(), lost.ln()))
        .collect();
    let above = known.iter().position(|(bits, _)| *bits >= ty.bpw());
    let at = above.unwrap_or(known.len()).clamp(1, known.len() - 1);
    let ((low, a), (high, b)) = (known[at - 1], known[at]);
    let share = if high > low {
        (ty.bpw() - low) / (high - low)
    } else {
        0.0
    };
    (a + share * (b - a)).exp()
}

/// What a tensor counts for: its elements, times its role, times its depth.
fn weight(model: &ModelFacts, tensor: &TensorFacts, last: f64) -> f64 {
    let elements = tensor.dims.iter().map(|dim| *dim as f64).product::<f64>();
    let role = Role::of(&tensor.name);
    let of_role = match role {
        Role::Value | Role::QueryKeyValue | Role::KeyValue | Role::AttentionOutput | Role::Output => 2.0,
        Role::Embedding if !model.has_output() => 2.0,
        Role::Down => 1.5,
        Role::Embedding => 0.5,
        Role::Query | Role::Key | Role::Up | Role::Gate | Role::Other => 1.0,
    };
    // Feed-forward matters most at both ends (least in the middle); for attention, models differ.
    let depth = match (role, block_index(&tensor.name)) {
        (Role::Up | Role::Gate | Role::Down, Some(layer)) => {
            let t = layer as f64 / last;
            1.0 - 2.8 * t + 2.8 * t * t
        }
        _ => 1.0,
    };
    elements * of_role * depth
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::GroupOptions;
    use crate::policy::groups;

    #[test]
    fn losses_of_one_type_add_up_to_the_curve_and_ends_matter_more() {
        let tensor = |name: String| TensorFacts {
            name,
            ty: TensorType::BF16,
            dims: vec![256, 512],
        };
        let parts =
            (0..9).flat_map(|layer| ["attn_v", "attn_q", "ffn_up"].map(|part| format!("blk.{layer}.{part}.weight")));
        let model = ModelFacts {
            architecture: "llama".to_owned(),
            layers: 9,
            heads: 8,
            heads_kv: 8,
            experts: 0,
            is_70b: false,
            file_type: None,
            tensors: parts.chain(["token_embd.weight".to_owned()]).map(tensor).collect(),
        };
        let groups = groups(&model, &BTreeMap::new(), &GroupOptions::default());
        let types = [TensorType::Q4_K, TensorType::Q8_0];
        let losses = prior(&model, &groups, &types);
        assert_eq!(losses.len(), groups.len() * 3, "two types and the source's own");
        for (ty, expected) in [
            (TensorType::Q4_K, 0.007_13),
            (TensorType::Q8_0, 0.000_55),
            (TensorType::BF16, 0.0),
        ] {
            let sum: f64 = losses
                .iter()
                .filter(|((_, of), _)| *of == ty)
                .map(|(_, loss)| loss.mean)
                .sum();
            assert!((sum - expected).abs() < 1e-12, "{ty}: {sum}");
        }
        let loss = |name: &str| losses[&(name.to_owned(), TensorType::Q4_K)].mean;
        assert!(loss("blk.0.ffn_up.weight") > 3.0 * loss("blk.4.ffn_up.weight"));
        assert_eq!(loss("blk.0.attn_v.weight"), 2.0 * loss("blk.4.attn_q.weight"));
        assert!(
            CURVE.windows(2).all(|pair| pair[0].0.bpw() <= pair[1].0.bpw()),
            "by size"
        );
    }
}
