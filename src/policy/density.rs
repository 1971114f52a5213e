//! Two types, a budget, and the tensors that gain most for each byte: those get the larger type.
//!
//! The sensitivity of a tensor is its mean squared activation; tensors are taken in the order of sensitivity per byte that the larger
//! type adds, and what does not fit is passed over. Nothing of the weights is looked at.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::policy::Choice;
use crate::policy::Energies;
use crate::policy::FileSize;
use crate::policy::ModelFacts;
use crate::policy::PolicyError;
use crate::policy::Rule;
use crate::policy::Table;
use crate::policy::Why;
use crate::policy::check::check;
use crate::policy::manual::RuleMatcher;
use crate::policy::manual::TypeRequest;
use crate::policy::manual::choice;
use crate::policy::quantizable::quantizable;
use crate::tensor_type::TensorType;

/// Parts of names of tensors that a runtime computes together with another of their layer, and of that one.
const ANCHORS: &[(&str, &str)] = &[
    (".attn_k.", ".attn_q."),
    (".attn_v.", ".attn_q."),
    (".ffn_up", ".ffn_gate"),
    (".attn_gate.", ".attn_qkv."),
    (".ssm_alpha.", ".attn_qkv."),
    (".ssm_beta.", ".attn_qkv."),
];

/// What the method is to do.
#[derive(Debug, Clone, Copy)]
pub struct Density<'a> {
    /// The type of every tensor that can be quantized.
    pub base: TensorType,
    /// The larger type.
    pub promotion: TensorType,
    /// The most bytes that the file may have.
    pub budget: u64,
    /// The size of the file without its tensors.
    pub size: FileSize,
    /// For runtimes that take the type of queries for keys and values, too, and of the gate for up: those are promoted only
    /// together with the one that they follow.
    pub anchors: bool,
    /// Tensors that keep the source's type.
    pub keep: &'a [Rule],
}

/// A tensor that could be promoted.
struct Candidate {
    at: usize,
    extra: u64,
    score: f64,
    promoted: Choice,
}

impl Candidate {
    /// First the densest, then the most sensitive, the smallest, the first by name. Scores and densities are not negative, and
    /// the bits of such floats are in their order.
    fn rank(&self) -> (Reverse<u64>, Reverse<u64>, u64, &str) {
        let density = self.score / self.extra as f64;
        (
            Reverse(density.to_bits()),
            Reverse(self.score.to_bits()),
            self.extra,
            &self.promoted.tensor,
        )
    }
}

/// Chooses between two types under a budget.
///
/// # Errors
/// [`PolicyError::BelowMinimum`] if not even the base type is within the budget; the rest as for the other methods.
pub fn density(model: &ModelFacts, energies: &Energies, options: &Density<'_>) -> Result<Table, PolicyError> {
    let mut keep = RuleMatcher::new(options.keep);
    let mut choices = Vec::with_capacity(model.tensors.len());
    let mut candidates: Vec<Candidate> = Vec::new();
    for (at, tensor) in model.tensors.iter().enumerate() {
        let rule = keep.find(&tensor.name);
        if let Err(reason) = quantizable(model, &tensor.name, &tensor.dims) {
            keep.without_effect(rule, tensor, reason);
            choices.push(choice(
                tensor,
                TypeRequest::keep(tensor, Why::NeverQuantized { reason }),
            )?);
            continue;
        }
        keep.had_effect(rule);
        if let Some(index) = rule {
            choices.push(choice(tensor, TypeRequest::keep(tensor, Why::Rule { index }))?);
            continue;
        }
        let request = |to, why| TypeRequest {
            to,
            why,
            may_fall_back: true,
        };
        let base = choice(tensor, request(options.base, Why::Floor))?;
        let promoted = choice(tensor, request(options.promotion, Why::Promoted { anchor_of: None }))?;
        let (small, large) = (options.size.padded(base.bytes), options.size.padded(promoted.bytes));
        choices.push(base);
        if let (Some(energy), Some(extra @ 1..)) = (energies.get(&tensor.name), large.checked_sub(small)) {
            let score = if energy.mean > 0.0 { energy.mean } else { 0.0 };
            candidates.push(Candidate {
                at,
                extra,
                score,
                promoted,
            });
        }
    }
    let least = options.size.of(&choices);
    let Some(mut left) = options.budget.checked_sub(least) else {
        return Err(PolicyError::BelowMinimum {
            budget: options.budget,
            minimum: least,
        });
    };

    candidates.sort_by(|a, b| a.rank().cmp(&b.rank()));
    let by_name: BTreeMap<&str, &Candidate> = candidates
        .iter()
        .map(|candidate| (candidate.promoted.tensor.as_str(), candidate))
        .collect();
    let mut taken = vec![false; model.tensors.len()];
    for candidate in &candidates {
        if taken[candidate.at] {
            continue;
        }
        let name = &candidate.promoted.tensor;
        let anchor = match anchor_of(name).filter(|_| options.anchors) {
            None => None,
            Some(anchor) => match by_name.get(anchor.as_str()) {
                Some(anchor) => Some(*anchor).filter(|anchor| !taken[anchor.at]),
                // What it would have to follow can't be promoted.
                None => continue,
            },
        };
        let extra = anchor.map_or(0, |anchor| anchor.extra).saturating_add(candidate.extra);
        if extra > left {
            continue;
        }
        left -= extra;
        if let Some(anchor) = anchor {
            taken[anchor.at] = true;
            choices[anchor.at] = Choice {
                why: Why::Promoted {
                    anchor_of: Some(name.clone()),
                },
                ..anchor.promoted.clone()
            };
        }
        taken[candidate.at] = true;
        choices[candidate.at] = candidate.promoted.clone();
    }
    let has = |name: &str| energies.contains_key(name);
    check(model, &choices, None, true, Some(&has))?;
    Ok(Table::new(choices, keep.warnings()))
}

/// Returns the name of the tensor that one follows.
fn anchor_of(name: &str) -> Option<String> {
    let rule = ANCHORS.iter().find(|(part, _)| name.contains(part));
    rule.map(|(part, anchor)| name.replacen(part, anchor, 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Energy;
    use crate::policy::TensorFacts;

    const SIZE: FileSize = FileSize {
        header: 1000,
        alignment: 32,
    };

    fn run(scores: &[(&str, f64)], extras: u64, anchors: bool) -> Result<Vec<(String, Why)>, PolicyError> {
        let model = ModelFacts {
            architecture: "llama".to_owned(),
            layers: 1,
            heads: 8,
            heads_kv: 8,
            experts: 0,
            is_70b: false,
            file_type: None,
            tensors: scores
                .iter()
                .map(|(name, _)| TensorFacts {
                    name: format!("blk.0.{name}.weight"),
                    ty: TensorType::F16,
                    dims: vec![256, 2],
                })
                .collect(),
        };
        let energy = |mean| Energy {
            mean,
            experts: vec![mean],
            columns: 256,
            tie: 0,
        };
        let known = scores.iter().filter(|(_, score)| *score >= 0.0);
        let energies = known
            .map(|(name, score)| (format!("blk.0.{name}.weight"), energy(*score)))
            .collect();
        // 144 bytes of 256 weights become 272.
        let options = Density {
            base: TensorType::Q4_K,
            promotion: TensorType::Q8_0,
            budget: 1000 + scores.len() as u64 * 288 + extras * 256,
            size: SIZE,
            anchors,
            keep: &[],
        };
        let table = density(&model, &energies, &options)?;
        assert!(SIZE.of(&table.choices) <= options.budget);
        let promoted = table.choices.into_iter().filter(|choice| choice.to == TensorType::Q8_0);
        Ok(promoted.map(|choice| (choice.tensor, choice.why)).collect())
    }

    fn names(found: &[(String, Why)]) -> Vec<&str> {
        let short = |name: &'_ (String, Why)| -> usize { name.0.len() };
        found
            .iter()
            .map(|found| &found.0["blk.0.".len()..short(found) - ".weight".len()])
            .collect()
    }

    #[test]
    fn the_densest_are_promoted_and_what_has_no_data_is_not() {
        let scores = [
            ("ffn_gate", 0.9),
            ("ffn_up", 0.4),
            ("ffn_down", 0.8),
            ("attn_output", -1.0),
        ];
        assert_eq!(names(&run(&scores, 2, false).unwrap()), ["ffn_gate", "ffn_down"]);
        assert_eq!(
            names(&run(&scores, 9, false).unwrap()),
            ["ffn_gate", "ffn_up", "ffn_down"]
        );
        assert!(run(&scores, 0, false).unwrap().is_empty());
        let equal = [("ffn_b", 0.5), ("ffn_a", 0.5)];
        assert_eq!(names(&run(&equal, 1, false).unwrap()), ["ffn_a"], "the first by name");
    }

    #[test]
    fn a_tensor_is_promoted_with_the_one_that_it_follows() {
        let scores = [("attn_q", 0.01), ("attn_k", 1.0), ("attn_output", 0.5)];
        let found = run(&scores, 2, true).unwrap();
        assert_eq!(names(&found), ["attn_q", "attn_k"]);
        let why = Why::Promoted {
            anchor_of: Some("blk.0.attn_k.weight".to_owned()),
        };
        assert_eq!(found[0].1, why);
        assert_eq!(names(&run(&scores, 1, true).unwrap()), ["attn_output"], "both or none");
        assert_eq!(names(&run(&scores, 2, false).unwrap()), ["attn_k", "attn_output"]);
        let orphan = [("attn_k", 1.0), ("attn_output", 0.5)];
        assert_eq!(names(&run(&orphan, 2, true).unwrap()), ["attn_output"]);
        assert_eq!(
            anchor_of("blk.1.ffn_up_exps.weight").unwrap(),
            "blk.1.ffn_gate_exps.weight"
        );
    }
}
