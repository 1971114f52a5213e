//! Tensors that get their types together.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;

use crate::policy::Energies;
use crate::policy::ModelFacts;
use crate::policy::Role;
use crate::policy::quantizable::quantizable;
use crate::policy::role::block_index;
use crate::tensor_type::TensorType;

/// Tensors that an engine wants to have one type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fuse {
    /// Queries, keys and values of a layer.
    Attention,
    /// Gate and up of a layer; those of experts and of shared experts by themselves.
    FeedForward,
    /// All expert tensors of a layer.
    Experts,
}

impl Fuse {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Attention, Self::FeedForward, Self::Experts];

    /// Returns the word for it in recipes and documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::FeedForward => "feed-forward",
            Self::Experts => "experts",
        }
    }

    /// Returns the one of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == name)
    }
}

/// What holds a group together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grouping {
    /// It is one tensor.
    Alone,
    /// They have the same inputs.
    Tied,
    /// A rule joins them.
    Fused,
}

/// Tensors that get their types together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorGroup {
    /// The tensor's name, or `blk.3.{attn_k,attn_q,attn_v}.weight`.
    pub name: String,
    /// Indices of the model's tensors, ascending.
    pub members: Vec<usize>,
    /// What holds it together.
    pub grouping: Grouping,
}

impl TensorGroup {
    /// Returns the type that all its tensors have in the model, if it is one.
    pub fn own_type(&self, model: &ModelFacts) -> Option<TensorType> {
        let mut types = self.members.iter().map(|at| model.tensors[*at].ty);
        let own = types.next()?;
        types.all(|ty| ty == own).then_some(own)
    }
}

/// Which tensors belong together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupOptions {
    /// Those of a layer that have equal sums in the imatrix, since they have the same inputs.
    pub tied: bool,
    /// Those that these rules join.
    pub fuse: Vec<Fuse>,
}

/// Returns the groups of all tensors that can be quantized, in the order of their first members. A token embedding that is the
/// output layer, too, is one tensor and so one group.
pub fn groups(model: &ModelFacts, energies: &Energies, options: &GroupOptions) -> Vec<TensorGroup> {
    /// What tensors share that belong together. Nothing is shared across layers.
    #[derive(PartialEq, Eq, PartialOrd, Ord)]
    enum Shared<'a> {
        Inputs(i64, u128),
        Rule(i64, Fuse, &'a str),
    }
    let mut parent: Vec<usize> = (0..model.tensors.len()).collect();
    let mut fused = vec![false; model.tensors.len()];
    let mut first: BTreeMap<Shared<'_>, usize> = BTreeMap::new();
    let candidates: Vec<usize> = (0..model.tensors.len())
        .filter(|at| quantizable(model, &model.tensors[*at].name, &model.tensors[*at].dims).is_ok())
        .collect();
    for at in &candidates {
        let name = &model.tensors[*at].name;
        let Some(layer) = block_index(name) else { continue };
        let mut shared = Vec::new();
        if let Some(energy) = energies.get(name).filter(|_| options.tied) {
            shared.push(Shared::Inputs(layer, energy.tie));
        }
        for rule in &options.fuse {
            shared.extend(part_of(*rule, name).map(|part| Shared::Rule(layer, *rule, part)));
        }
        for shared in shared {
            let rule = matches!(shared, Shared::Rule(..));
            let other = *first.entry(shared).or_insert(*at);
            if other != *at {
                fused[*at] |= rule;
                fused[other] |= rule;
            }
            let (a, b) = (root(&parent, other), root(&parent, *at));
            parent[a.max(b)] = a.min(b);
        }
    }
    let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for at in candidates {
        members.entry(root(&parent, at)).or_default().push(at);
    }
    members
        .into_values()
        .map(|members| TensorGroup {
            name: name_of(model, &members),
            grouping: match members.as_slice() {
                [_] => Grouping::Alone,
                several if several.iter().any(|at| fused[*at]) => Grouping::Fused,
                _ => Grouping::Tied,
            },
            members,
        })
        .collect()
}

fn root(parent: &[usize], mut at: usize) -> usize {
    while parent[at] != at {
        at = parent[at];
    }
    at
}

/// Returns what a tensor has in common with those that a rule joins it with; none if the rule says nothing of it.
fn part_of(rule: Fuse, name: &str) -> Option<&str> {
    match rule {
        Fuse::Attention => matches!(Role::of(name), Role::Query | Role::Key | Role::Value).then_some(""),
        Fuse::FeedForward => {
            let part = name.split_once("ffn_gate").or_else(|| name.split_once("ffn_up"));
            part.map(|(_, rest)| rest)
        }
        Fuse::Experts => name.contains("_exps.").then_some(""),
    }
}

/// Returns the name of a group: what its members' names have in common, and in braces what tells them apart.
fn name_of(model: &ModelFacts, members: &[usize]) -> String {
    let mut names: Vec<&str> = members.iter().map(|at| model.tensors[*at].name.as_str()).collect();
    names.sort_unstable();
    let [first, .., last] = names.as_slice() else {
        return names.concat();
    };
    // Names are parted by dots: only whole parts are taken out.
    let parts = |name: &str| -> Vec<String> { name.split('.').map(str::to_owned).collect() };
    let (first, last) = (parts(first), parts(last));
    let same = first.iter().zip(&last).take_while(|(a, b)| a == b).count();
    let most = first.len().min(last.len()) - same.min(first.len().min(last.len()));
    let ends = first.iter().rev().zip(last.iter().rev());
    let tail = ends.take_while(|(a, b)| a == b).count().min(most);
    let middle = names.iter().map(|name| {
        let parts = parts(name);
        let end = parts.len().saturating_sub(tail).max(same);
        parts[same.min(parts.len())..end.min(parts.len())].join(".")
    });
    let middle = format!("{{{}}}", middle.collect::<Vec<_>>().join(","));
    let head = first[..same].iter().cloned();
    let tail = first[first.len() - tail..].iter().cloned();
    head.chain([middle]).chain(tail).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Energy;
    use crate::policy::TensorFacts;
    use crate::tensor_type::TensorType;

    fn model(names: &[&str]) -> ModelFacts {
        let tensor = |name: &&str| TensorFacts {
            name: (*name).to_owned(),
            ty: TensorType::F16,
            dims: vec![256, 256],
        };
        ModelFacts {
            architecture: "qwen3moe".to_owned(),
            layers: 2,
            heads: 8,
            heads_kv: 8,
            experts: 4,
            is_70b: false,
            file_type: None,
            tensors: names.iter().map(tensor).collect(),
        }
    }

    fn energies(ties: &[(&str, u128)]) -> Energies {
        let energy = |tie| Energy {
            mean: 1.0,
            experts: vec![1.0],
            columns: 256,
            tie,
        };
        ties.iter()
            .map(|(name, tie)| ((*name).to_owned(), energy(*tie)))
            .collect()
    }

    const NAMES: &[&str] = &[
        "token_embd.weight",
        "blk.0.attn_q.weight",
        "blk.0.attn_k.weight",
        "blk.0.attn_norm.weight",
        "blk.0.attn_v.weight",
        "blk.0.ffn_gate_exps.weight",
        "blk.0.ffn_up_exps.weight",
        "blk.0.ffn_down_exps.weight",
        "blk.0.ffn_gate_shexp.weight",
        "blk.0.ffn_up_shexp.weight",
        "blk.1.attn_q.weight",
        "blk.1.attn_k.weight",
    ];

    fn named(energies: &Energies, options: &GroupOptions) -> Vec<(String, Grouping)> {
        let groups = groups(&model(NAMES), energies, options);
        groups.into_iter().map(|group| (group.name, group.grouping)).collect()
    }

    #[test]
    fn equal_inputs_tie_within_a_layer_only() {
        let ties = [
            ("blk.0.attn_q.weight", 1),
            ("blk.0.attn_k.weight", 1),
            ("blk.0.attn_v.weight", 2),
            ("blk.1.attn_q.weight", 1),
            ("blk.1.attn_k.weight", 1),
        ];
        let options = GroupOptions {
            tied: true,
            fuse: Vec::new(),
        };
        let found = named(&energies(&ties), &options);
        assert_eq!(found.len(), 9, "{found:?}");
        assert!(found.contains(&("blk.0.{attn_k,attn_q}.weight".to_owned(), Grouping::Tied)));
        assert!(found.contains(&("blk.1.{attn_k,attn_q}.weight".to_owned(), Grouping::Tied)));
        assert!(found.contains(&("blk.0.attn_v.weight".to_owned(), Grouping::Alone)));
        assert!(!found.iter().any(|(name, _)| name.contains("norm")), "never quantized");
        let none = named(&energies(&ties), &GroupOptions::default());
        assert!(none.iter().all(|(_, grouping)| *grouping == Grouping::Alone));
    }

    #[test]
    fn rules_fuse_what_an_engine_wants_alike() {
        let fuse = |fuse: &[Fuse]| {
            let options = GroupOptions {
                tied: false,
                fuse: fuse.to_vec(),
            };
            let found = named(&Energies::new(), &options);
            let fused = found.into_iter().filter(|(_, grouping)| *grouping == Grouping::Fused);
            fused.map(|(name, _)| name).collect::<Vec<_>>()
        };
        assert_eq!(
            fuse(&[Fuse::Attention]),
            ["blk.0.{attn_k,attn_q,attn_v}.weight", "blk.1.{attn_k,attn_q}.weight"]
        );
        assert_eq!(
            fuse(&[Fuse::FeedForward]),
            [
                "blk.0.{ffn_gate_exps,ffn_up_exps}.weight",
                "blk.0.{ffn_gate_shexp,ffn_up_shexp}.weight"
            ]
        );
        assert_eq!(
            fuse(&[Fuse::Experts, Fuse::FeedForward]),
            [
                "blk.0.{ffn_down_exps,ffn_gate_exps,ffn_up_exps}.weight",
                "blk.0.{ffn_gate_shexp,ffn_up_shexp}.weight"
            ]
        );
    }
}
