//! `boost`: a mix or one type for all tensors, and a better type for some families of tensors in some layers.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::collections::BTreeSet;

use serde::Deserialize;
use serde::Serialize;

use crate::policy::Choice;
use crate::policy::Energies;
use crate::policy::HasImatrix;
use crate::policy::ModelFacts;
use crate::policy::PolicyError;
use crate::policy::Role;
use crate::policy::Table;
use crate::policy::Target;
use crate::policy::Why;
use crate::policy::check::check;
use crate::policy::manual::TypeRequest;
use crate::policy::manual::choice;
use crate::policy::role::block_index;
use crate::tensor_type::TensorType;

/// A family: tensors of a layer that get the better type together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// The gate matrices of feed-forward layers; in a mixture of experts those of the routed experts.
    Gate,
    /// The up matrices, likewise.
    Up,
    /// The down matrices, likewise.
    Down,
    /// The gate, up and down matrices of shared experts.
    Shared,
    /// The queries, keys, values and outputs of attention.
    Attention,
}

impl Family {
    /// All families.
    pub const ALL: [Self; 5] = [Self::Gate, Self::Up, Self::Down, Self::Shared, Self::Attention];

    /// Returns the word for it in recipes and documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gate => "gate",
            Self::Up => "up",
            Self::Down => "down",
            Self::Shared => "shared",
            Self::Attention => "attention",
        }
    }

    /// Returns the one of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == name)
    }

    /// Returns the family of a tensor, if it has one.
    pub fn of(name: &str) -> Option<Self> {
        match Role::of(name) {
            Role::Gate | Role::Up | Role::Down if name.contains("_shexp.") => Some(Self::Shared),
            Role::Gate => Some(Self::Gate),
            Role::Up => Some(Self::Up),
            Role::Down => Some(Self::Down),
            Role::Query | Role::Key | Role::Value | Role::QueryKeyValue | Role::KeyValue | Role::AttentionOutput => {
                Some(Self::Attention)
            }
            Role::Other if name.contains(".attn_") => Some(Self::Attention),
            Role::Other | Role::Output | Role::Embedding => None,
        }
    }
}

/// How layers are ranked. All rankings use the imatrix of the families' tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ranking {
    /// By energy: the mean squared activation, summed over tensors.
    Energy,
    /// By contrast: by how much the experts' shares of the energy exceed their shares on other text.
    Contrast,
    /// By the trace of the second moments of the inputs: the mean squared activation times the columns, summed over tensors.
    Sensitivity,
}

impl Ranking {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Energy, Self::Contrast, Self::Sensitivity];

    /// Returns the word for it in recipes and documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Energy => "energy",
            Self::Contrast => "contrast",
            Self::Sensitivity => "sensitivity",
        }
    }

    /// Returns the one of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == name)
    }
}

/// The options of [`boost()`].
#[derive(Debug, Clone, Copy)]
pub struct Boost<'a> {
    /// The layers whose tensors are boosted.
    pub layers: &'a BTreeSet<u32>,
    /// The families of these tensors.
    pub families: &'a [Family],
    /// The better type.
    pub promotion: TensorType,
}

/// Ranks layers by the data of the families' tensors in an imatrix, the highest first. Equal layers are in their own order.
/// `baseline` has the data of other text, for [`Ranking::Contrast`]. Layers without data of these families are left out.
///
/// # Errors
/// [`PolicyError::Layers`] if there are no data, or if the two imatrices differ in the number of experts.
pub fn rank_layers(
    model: &ModelFacts,
    families: &[Family],
    ranking: Ranking,
    energies: &Energies,
    baseline: &Energies,
) -> Result<Vec<(u32, f64)>, PolicyError> {
    let layers = layers_of(model, families, energies)?;
    let mut ranked: Vec<(u32, f64)> = match ranking {
        Ranking::Energy => scores(&layers, |layer| layer.energy),
        Ranking::Sensitivity => scores(&layers, |layer| layer.trace),
        Ranking::Contrast => contrast(&layers, &layers_of(model, families, baseline)?)?,
    };
    ranked.sort_by(|a, b| match b.1.total_cmp(&a.1) {
        Ordering::Equal => a.0.cmp(&b.0),
        other => other,
    });
    Ok(ranked)
}

/// The data of an imatrix for the families' tensors of a layer.
#[derive(Default)]
struct Layer {
    energy: f64,
    trace: f64,
    /// For each expert: its energy relative to the expert with the highest energy, summed over tensors.
    experts: Vec<f64>,
}

fn scores(layers: &BTreeMap<u32, Layer>, of: impl Fn(&Layer) -> f64) -> Vec<(u32, f64)> {
    layers.iter().map(|(at, layer)| (*at, of(layer))).collect()
}

fn layers_of(
    model: &ModelFacts,
    families: &[Family],
    energies: &Energies,
) -> Result<BTreeMap<u32, Layer>, PolicyError> {
    let mut layers: BTreeMap<u32, Layer> = BTreeMap::new();
    for tensor in &model.tensors {
        let Some(at) = layer_in(&tensor.name, families) else {
            continue;
        };
        let Some(energy) = energies.get(&tensor.name) else {
            continue;
        };
        let layer = layers.entry(at).or_default();
        layer.energy += energy.mean;
        layer.trace += energy.mean * energy.columns as f64;
        let highest = energy.experts.iter().copied().fold(0.0, f64::max);
        if layer.experts.len() < energy.experts.len() {
            layer.experts.resize(energy.experts.len(), 0.0);
        }
        for (sum, expert) in layer.experts.iter_mut().zip(&energy.experts) {
            *sum += if highest > 0.0 { expert / highest } else { 0.0 };
        }
    }
    if layers.is_empty() {
        return Err(PolicyError::Layers {
            message: "the imatrix has no data for any tensor of these families, so layers cannot be ranked".to_owned(),
        });
    }
    Ok(layers)
}

/// Returns for each layer by how much the shares of its experts exceed those on other text, summed over the experts that do
/// exceed them.
fn contrast(domain: &BTreeMap<u32, Layer>, base: &BTreeMap<u32, Layer>) -> Result<Vec<(u32, f64)>, PolicyError> {
    let total = |layers: &BTreeMap<u32, Layer>| layers.values().map(|layer| layer.energy).sum::<f64>();
    let (domain_total, base_total) = (total(domain), total(base));
    let mut found = Vec::new();
    for (at, layer) in domain {
        let Some(other) = base.get(at) else { continue };
        if layer.experts.len() != other.experts.len() {
            return Err(PolicyError::Layers {
                message: format!(
                    "layer {at} has {} experts in the imatrix and {} in the baseline",
                    layer.experts.len(),
                    other.experts.len()
                ),
            });
        }
        let (here, there) = (shares(layer, domain_total), shares(other, base_total));
        let exceeds = here.iter().zip(there).map(|(here, there)| (here - there).max(0.0));
        found.push((*at, exceeds.sum()));
    }
    Ok(found)
}

/// Returns the share of the total energy of each expert of a layer.
fn shares(layer: &Layer, total: f64) -> Vec<f64> {
    let sum: f64 = layer.experts.iter().sum();
    let share = if total > 0.0 { layer.energy / total } else { 0.0 };
    let part = |expert: &f64| if sum > 0.0 { expert / sum * share } else { 0.0 };
    layer.experts.iter().map(part).collect()
}

/// Returns the layer of a tensor if it belongs to one of these families.
fn layer_in(name: &str, families: &[Family]) -> Option<u32> {
    let family = Family::of(name)?;
    let layer = u32::try_from(block_index(name)?).ok()?;
    families.contains(&family).then_some(layer)
}

/// Gives tensors of some layers a better type than the table does. No tensor gets a worse type. Tensors that are never quantized,
/// or that a rule of the user matches, keep their type.
///
/// # Errors
/// [`PolicyError::Layers`] if no tensor is boosted; errors for types that the engine cannot write.
pub fn boost(
    model: &ModelFacts,
    base: Table,
    options: &Boost<'_>,
    has_imatrix: HasImatrix<'_>,
) -> Result<Table, PolicyError> {
    let beyond: Vec<u32> = options
        .layers
        .iter()
        .copied()
        .filter(|at| *at >= model.layers)
        .collect();
    if !beyond.is_empty() {
        return Err(PolicyError::Layers {
            message: format!(
                "there is no layer {beyond:?}: layers are counted from 0, and the last one is {}",
                model.layers.saturating_sub(1)
            ),
        });
    }
    let mut boosted = 0;
    let mut choices: Vec<Choice> = Vec::with_capacity(base.choices.len());
    for (tensor, before) in model.tensors.iter().zip(base.choices) {
        let wanted = layer_in(&tensor.name, options.families).is_some_and(|layer| options.layers.contains(&layer));
        let fixed = matches!(before.why, Why::Rule { .. } | Why::NeverQuantized { .. } | Why::Copy);
        // Better than the type in the table, and no larger than the type in the source.
        let better = options.promotion.bpw() > before.to.bpw() && options.promotion.bpw() <= tensor.ty.bpw();
        if fixed || !wanted || !better {
            choices.push(before);
            continue;
        }
        let request = TypeRequest::of(tensor, Target::Type(options.promotion), Why::Boosted);
        choices.push(choice(tensor, request)?);
        boosted += 1;
    }
    if boosted == 0 {
        return Err(PolicyError::Layers {
            message: format!(
                "no tensor of these layers and families would get a better type by {}",
                options.promotion
            ),
        });
    }
    check(model, &choices, None, true, has_imatrix)?;
    Ok(Table::new(choices, base.warnings))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mix::Mix;
    use crate::policy::Energy;
    use crate::policy::MixOptions;
    use crate::policy::TensorFacts;
    use crate::policy::mix;

    const NAMES: [&str; 4] = ["ffn_gate_exps", "ffn_down_exps", "ffn_up_shexp", "attn_k"];

    fn model(layers: u32) -> ModelFacts {
        let names = (0..layers).flat_map(|layer| NAMES.map(|name| format!("blk.{layer}.{name}.weight")));
        ModelFacts {
            architecture: "llama".to_owned(),
            layers,
            heads: 8,
            heads_kv: 8,
            experts: 2,
            is_70b: false,
            file_type: None,
            tensors: names
                .map(|name| TensorFacts {
                    name,
                    ty: TensorType::F16,
                    dims: vec![256, 2, 2],
                })
                .collect(),
        }
    }

    /// For each layer: the energies of the two experts of its gate matrix, and of its down matrix.
    fn energies(layers: &[[[f64; 2]; 2]]) -> Energies {
        let energy = |experts: [f64; 2], columns| Energy {
            mean: experts.iter().sum(),
            experts: experts.to_vec(),
            columns,
            tie: 0,
        };
        let of = layers.iter().enumerate().flat_map(|(layer, [gate, down])| {
            [
                (format!("blk.{layer}.ffn_gate_exps.weight"), energy(*gate, 4)),
                (format!("blk.{layer}.ffn_down_exps.weight"), energy(*down, 1)),
                (format!("blk.{layer}.attn_k.weight"), energy([1e6, 0.0], 1)),
            ]
        });
        of.collect()
    }

    const FAMILIES: &[Family] = &[Family::Gate, Family::Up, Family::Down];

    fn ranked(ranking: Ranking, here: &[[[f64; 2]; 2]], there: &[[[f64; 2]; 2]]) -> Vec<(u32, f64)> {
        let model = model(here.len() as u32);
        rank_layers(&model, FAMILIES, ranking, &energies(here), &energies(there)).unwrap()
    }

    #[test]
    fn families_follow_from_names() {
        let of = |name: &str| Family::of(&format!("blk.3.{name}.weight"));
        assert_eq!(of("ffn_gate"), Some(Family::Gate));
        assert_eq!(of("ffn_up_exps"), Some(Family::Up));
        assert_eq!(of("ffn_down_exps"), Some(Family::Down));
        assert_eq!(of("ffn_down_shexp"), Some(Family::Shared));
        assert_eq!(of("attn_output"), Some(Family::Attention));
        assert_eq!(of("attn_q_a"), Some(Family::Attention));
        assert_eq!(of("ssm_in"), None);
        assert_eq!(Family::of("token_embd.weight"), None);
    }

    #[test]
    fn layers_are_ranked_by_energy_and_by_trace() {
        let layers = [
            [[1.0, 1.0], [0.0, 8.0]],
            [[4.0, 0.0], [3.0, 0.0]],
            [[5.0, 0.0], [1.0, 4.0]],
        ];
        assert_eq!(
            ranked(Ranking::Energy, &layers, &layers),
            [(0, 10.0), (2, 10.0), (1, 7.0)]
        );
        assert_eq!(
            ranked(Ranking::Sensitivity, &layers, &layers),
            [(2, 25.0), (1, 19.0), (0, 16.0)]
        );
    }

    #[test]
    fn contrast_is_high_if_other_experts_have_the_energy() {
        // The total is 8. Layer 0 has half of it; its experts have 2 and 2 in the domain, 0 and 4 in the baseline.
        let here = [[[2.0, 2.0], [0.0, 0.0]], [[4.0, 0.0], [0.0, 0.0]]];
        let there = [[[0.0, 4.0], [0.0, 0.0]], [[4.0, 0.0], [0.0, 0.0]]];
        assert_eq!(ranked(Ranking::Contrast, &here, &there), [(0, 0.25), (1, 0.0)]);
        assert_eq!(ranked(Ranking::Contrast, &here, &here), [(0, 0.0), (1, 0.0)]);
        let none = Energies::new();
        let found = rank_layers(&model(2), FAMILIES, Ranking::Contrast, &energies(&here), &none);
        assert!(found.unwrap_err().to_string().contains("no data"));
    }

    #[test]
    fn chosen_tensors_get_a_better_type_and_no_tensor_gets_a_worse_one() {
        let model = model(3);
        let rules = vec![crate::policy::Rule {
            pattern: regex::Regex::new(r"blk\.2\.ffn_down").unwrap(),
            to: Target::Type(TensorType::Q4_0),
        }];
        let base = || {
            let options = MixOptions {
                pure: true,
                rules: rules.clone(),
                ..MixOptions::default()
            };
            mix(&model, Mix::Q4_K_M, &options, None).unwrap()
        };
        let types = |layers: &[u32], families, promotion| {
            let layers = layers.iter().copied().collect();
            let options = Boost {
                layers: &layers,
                families,
                promotion,
            };
            boost(&model, base(), &options, None)
        };
        let table = types(&[0, 2], &[Family::Gate, Family::Down], TensorType::Q6_K).unwrap();
        for (choice, before) in table.choices.iter().zip(base().choices) {
            let gets = [
                "blk.0.ffn_gate_exps.weight",
                "blk.0.ffn_down_exps.weight",
                "blk.2.ffn_gate_exps.weight",
            ];
            if gets.contains(&choice.tensor.as_str()) {
                assert_eq!((choice.to, &choice.why), (TensorType::Q6_K, &Why::Boosted));
            } else {
                assert_eq!(*choice, before);
            }
        }
        let whole = types(&[1], &[Family::Shared], TensorType::F16).unwrap();
        assert_eq!(whole.get("blk.1.ffn_up_shexp.weight").unwrap().to, TensorType::F16);
        for (layers, promotion) in [
            (&[0][..], TensorType::Q3_K),
            (&[], TensorType::Q6_K),
            (&[3], TensorType::Q6_K),
        ] {
            let error = types(layers, &[Family::Gate], promotion).unwrap_err();
            assert!(matches!(error, PolicyError::Layers { .. }), "{error}");
        }
    }
}
