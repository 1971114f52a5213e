//! The answer of a policy: one choice per tensor.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::de::Error as _;

use crate::mix::Mix;
use crate::policy::Reason;
use crate::policy::Role;
use crate::policy::file_type::usual_file_type;
use crate::tensor_type::TensorType;

/// Name and version of a [`Table`] as a document.
pub const SCHEMA: &str = "policy.v1";

/// Why a tensor has its type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Why {
    /// The mix chose by the tensor's part in the model.
    Mix {
        /// The part.
        role: Role,
    },
    /// The mix has one type for every tensor: a plain float type, or a mix taken `pure`.
    Uniform,
    /// The type chosen for the output layer.
    OutputType,
    /// The type chosen for the token embedding.
    EmbeddingType,
    /// A rule of the user.
    Rule {
        /// Its place among the rules, from 0.
        index: usize,
    },
    /// What the user says of tensors that no rule matches.
    Otherwise,
    /// Such tensors are never quantized.
    NeverQuantized {
        /// The reason.
        reason: Reason,
    },
    /// Everything is copied.
    Copy,
    /// A kind of tensor for which the method has one type.
    Fixed {
        /// Which.
        what: Fixed,
    },
    /// The solver chose it.
    Solved {
        /// The group that it was chosen for; its own name if it stands alone.
        group: String,
        /// The loss that is predicted of the whole group in this type, as a decimal number. Tables of earlier versions have none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        loss: Option<String>,
    },
    /// The smallest type that such tensors get; the budget allowed no larger one.
    Floor,
    /// It got the larger of two types, since that gains most for its bytes.
    Promoted {
        /// The tensor that it was promoted for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        anchor_of: Option<String>,
    },
    /// Its layer and its family were chosen to get a better type.
    Boosted,
    /// `ashq1` upgraded it from its floor, because that had the highest gain per byte.
    Ladder {
        /// The group that was upgraded with it; its own name if it is in no group.
        group: String,
        /// The number of upgrades.
        steps: u32,
    },
}

/// Kinds of tensors for which a method has one type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fixed {
    /// Those of a layer that predicts further tokens.
    NextToken,
    /// The small matrices of a state-space layer.
    StateSpace,
}

/// The type of one tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// The tensor's name.
    pub tensor: String,
    /// Its type in the source.
    pub from: TensorType,
    /// Its type in the candidate; the same as `from` means that the bytes are copied.
    pub to: TensorType,
    /// The type that `why` asked for, if its blocks don't fit the row and `to` is used instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instead_of: Option<TensorType>,
    /// Why.
    pub why: Why,
    /// Length of the tensor's data in the candidate, without padding.
    pub bytes: u64,
}

/// Something the user should know, though the table stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Warning {
    /// A rule whose pattern matches no tensor.
    RuleMatchesNothing {
        /// Its place among the rules, from 0.
        index: usize,
        /// Its pattern.
        pattern: String,
    },
    /// A rule whose pattern only matches tensors that earlier rules took.
    RuleShadowed {
        /// Its place among the rules, from 0.
        index: usize,
        /// Its pattern.
        pattern: String,
    },
    /// A rule that only names tensors which are never quantized.
    RuleHasNoEffect {
        /// Its place among the rules, from 0.
        index: usize,
        /// Its pattern.
        pattern: String,
        /// A tensor it names.
        tensor: String,
        /// Why that tensor keeps its type.
        reason: Reason,
    },
}

/// The mean KL divergence from the source over the chunks of a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probed {
    /// The mean, in nats per token, as a decimal number.
    pub mean: String,
    /// The standard deviation of a chunk's mean, as a decimal number.
    pub deviation: String,
    /// How many chunks.
    pub chunks: u32,
    /// Tokens in a chunk.
    pub context: u32,
}

/// The types of all tensors of a candidate: the artifact of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// [`SCHEMA`]; a document of another version is not read.
    #[serde(deserialize_with = "known_schema")]
    pub schema: String,
    /// One choice per tensor, in the order of the source file.
    pub choices: Vec<Choice>,
    /// The loss that the policy predicts, as a decimal number; none where a method predicts nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted_loss: Option<String>,
    /// The measured loss of the whole choice on the validation chunks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probed_loss: Option<Probed>,
    /// What the user should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<Warning>,
}

fn known_schema<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let found = String::deserialize(deserializer)?;
    if found == SCHEMA {
        Ok(found)
    } else {
        Err(D::Error::custom(format!(
            "expected a document of schema `{SCHEMA}`, found `{found}`"
        )))
    }
}

impl Table {
    pub(crate) fn new(choices: Vec<Choice>, warnings: Vec<Warning>) -> Self {
        Self {
            schema: SCHEMA.to_owned(),
            choices,
            predicted_loss: None,
            probed_loss: None,
            warnings,
        }
    }

    /// Returns how many tensors have another type than asked for, since their rows don't fit it.
    pub fn fallbacks(&self) -> usize {
        self.choices.iter().filter(|choice| choice.instead_of.is_some()).count()
    }

    /// Returns the sum of the tensors' data without padding and header; none if 64 bits can't hold it.
    pub fn bytes(&self) -> Option<u64> {
        self.choices
            .iter()
            .try_fold(0_u64, |sum, choice| sum.checked_add(choice.bytes))
    }

    /// Returns the choice of a tensor.
    pub fn get(&self, tensor: &str) -> Option<&Choice> {
        self.choices.iter().find(|choice| choice.tensor == tensor)
    }

    /// Returns the number for `general.file_type`, when no mix gives one: that of the type which most of the quantizable
    /// tensors have, the smaller number if several types tie. llama.cpp only prints it.
    pub fn file_type(&self) -> u32 {
        let mut counts = BTreeMap::<u32, usize>::new();
        for choice in self
            .choices
            .iter()
            .filter(|choice| !matches!(choice.why, Why::NeverQuantized { .. }))
        {
            let file_type = match choice.to {
                TensorType::MXFP4 => Mix::MXFP4_MOE.ftype(),
                to => usual_file_type(to),
            };
            *counts.entry(file_type.unwrap_or(0)).or_default() += 1;
        }
        let most = counts
            .iter()
            .max_by_key(|(file_type, count)| (**count, std::cmp::Reverse(**file_type)));
        most.map_or(0, |(file_type, _)| *file_type)
    }
}
