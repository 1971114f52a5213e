//! The types of a candidate, to be shown: by tensor, by layer, and by class.

use std::collections::BTreeMap;
use std::hash::Hash;

use indexmap::IndexMap;

use crate::policy::Fixed;
use crate::policy::ModelFacts;
use crate::policy::Reason;
use crate::policy::Table;
use crate::policy::TensorFacts;
use crate::policy::Why;
use crate::policy::quantizable::quantizable;
use crate::policy::role::block_index;
use crate::prose;
use crate::tensor_type::TensorType;

/// A tensor of a candidate, as far as it is known.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Its type in the source, if that is known.
    pub from: Option<TensorType>,
    /// Its type.
    pub to: TensorType,
    /// The type that was asked for, if `to` is its fallback.
    pub instead_of: Option<TensorType>,
    /// Length of its data without padding.
    pub bytes: u64,
    /// Why it has this type, if that is known.
    pub why: Option<Why>,
    /// The loss that was predicted, in the policy's unit (nats per token where it was measured): the tensor's share of its group's,
    /// by weights.
    pub loss: Option<f64>,
}

/// The types of all tensors of a candidate.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Listing {
    /// The tensors, in the order of the file.
    pub tensors: Vec<Listed>,
    /// The loss that the policy predicts for the whole, as it stands in its table.
    pub predicted_loss: Option<String>,
    /// The size of the candidate's file, if it is known.
    pub file_bytes: Option<u64>,
}

/// Several tensors taken together.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sum {
    /// How many there are.
    pub tensors: u64,
    /// Their weights.
    pub elements: u64,
    /// Their bytes without padding.
    pub bytes: u64,
    /// The sum of the losses that were predicted; none where there is none.
    pub loss: Option<f64>,
    /// Tensors and bytes of each type.
    pub types: BTreeMap<TensorType, (u64, u64)>,
}

impl Listed {
    /// Returns how many weights it has: whole blocks of its type.
    pub fn elements(&self) -> u64 {
        (self.bytes / self.to.block_bytes()).saturating_mul(self.to.block_elements())
    }

    /// Returns the layer that it belongs to, if it belongs to one.
    pub fn layer(&self) -> Option<u32> {
        block_index(&self.name).and_then(|layer| u32::try_from(layer).ok())
    }

    /// Returns its class: its name without layer and ending, as `attn_q` or `token_embd`.
    pub fn class(&self) -> &str {
        let name = match self.name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
            Some((_, rest)) if self.layer().is_some() => rest,
            _ => &self.name,
        };
        name.strip_suffix(".weight").unwrap_or(name)
    }

    /// Returns true if a policy decides on it. Where that is not known, tensors in F32 count as left alone.
    pub fn is_open(&self) -> bool {
        match &self.why {
            Some(why) => !matches!(why, Why::NeverQuantized { .. }),
            None => self.to != TensorType::F32,
        }
    }
}

impl Sum {
    /// Adds a tensor.
    pub fn add(&mut self, tensor: &Listed) {
        self.tensors += 1;
        self.elements = self.elements.saturating_add(tensor.elements());
        self.bytes = self.bytes.saturating_add(tensor.bytes);
        if let Some(loss) = tensor.loss {
            *self.loss.get_or_insert(0.0) += loss;
        }
        let of_type = self.types.entry(tensor.to).or_default();
        *of_type = (of_type.0 + 1, of_type.1.saturating_add(tensor.bytes));
    }

    /// Returns the sum of tensors.
    pub fn of<'a>(tensors: impl IntoIterator<Item = &'a Listed>) -> Self {
        let mut sum = Self::default();
        tensors.into_iter().for_each(|tensor| sum.add(tensor));
        sum
    }

    /// Returns bits per weight.
    pub fn bpw(&self) -> f64 {
        prose::bpw(self.bytes, self.elements)
    }

    /// Returns each type with its tensors and bytes, most bytes first.
    pub fn by_bytes(&self) -> Vec<(TensorType, u64, u64)> {
        let types = self.types.iter();
        let mut types: Vec<_> = types.map(|(ty, (tensors, bytes))| (*ty, *tensors, *bytes)).collect();
        types.sort_by_key(|(ty, _, bytes)| (std::cmp::Reverse(*bytes), ty.name()));
        types
    }
}

impl Listing {
    /// Lists a policy's table.
    pub fn of(table: &Table) -> Self {
        let tensors = table.choices.iter().map(|choice| Listed {
            name: choice.tensor.clone(),
            from: Some(choice.from),
            to: choice.to,
            instead_of: choice.instead_of,
            bytes: choice.bytes,
            why: Some(choice.why.clone()),
            loss: None,
        });
        let mut listing = Self {
            tensors: tensors.collect(),
            predicted_loss: table.predicted_loss.clone(),
            file_bytes: None,
        };
        listing.share_losses();
        listing
    }

    /// Lists the tensors of a file: nothing is known of its source, and why a tensor has its type only where it is never
    /// quantized.
    pub fn of_model(model: &ModelFacts) -> Self {
        let known = |tensor: &TensorFacts| {
            let bytes = tensor.ty.tensor_bytes(&tensor.dims).unwrap_or(u64::MAX);
            (tensor.name.clone(), tensor.ty, bytes)
        };
        let mut listing = Self::of_tensors(model.tensors.iter().map(known));
        for (listed, tensor) in listing.tensors.iter_mut().zip(&model.tensors) {
            let never = quantizable(model, &tensor.name, &tensor.dims).err();
            listed.why = never.map(|reason| Why::NeverQuantized { reason });
        }
        listing
    }

    /// Lists tensors of which only name, type and length are known.
    pub fn of_tensors(tensors: impl IntoIterator<Item = (String, TensorType, u64)>) -> Self {
        let tensors = tensors.into_iter().map(|(name, to, bytes)| Listed {
            name,
            from: None,
            to,
            instead_of: None,
            bytes,
            why: None,
            loss: None,
        });
        Self {
            tensors: tensors.collect(),
            predicted_loss: None,
            file_bytes: None,
        }
    }

    /// Adds the size of the candidate's file.
    pub fn with_file_bytes(self, file_bytes: Option<u64>) -> Self {
        Self { file_bytes, ..self }
    }

    /// Returns the size of the candidate: that of its file, if it is known.
    pub fn size(&self) -> Option<String> {
        let weights = Sum::of(&self.tensors).elements;
        self.file_bytes.map(|bytes| prose::size(bytes, weights))
    }

    /// A group's loss stands at each of its tensors. So that sums are right, each gets its share by weights. Where the groups' losses
    /// are not what the whole is predicted to lose (as where they were only looked at around a choice), they are left out.
    fn share_losses(&mut self) {
        let mut groups: BTreeMap<String, (u64, f64)> = BTreeMap::new();
        for tensor in &self.tensors {
            if let Some((group, loss)) = loss_of(tensor) {
                let entry = groups.entry(group.to_owned()).or_insert((0, loss));
                entry.0 = entry.0.saturating_add(tensor.elements());
            }
        }
        let whole = self.predicted_loss.as_deref().and_then(|loss| loss.parse::<f64>().ok());
        let sum: f64 = groups.values().map(|(_, loss)| loss).sum();
        if whole.is_none_or(|whole| (whole - sum).abs() > 1e-6 * whole.abs()) {
            return;
        }
        for tensor in &mut self.tensors {
            let share = loss_of(tensor).and_then(|(group, _)| groups.get(group));
            let share = share.map(|(all, loss)| loss * tensor.elements() as f64 / (*all).max(1) as f64);
            tensor.loss = share;
        }
    }

    /// Returns the tensors by class, classes in the order in which they come.
    pub fn classes(&self) -> Vec<(&str, Sum)> {
        self.grouped(|tensor| Some(tensor.class()))
    }

    /// Returns the tensors by layer; those outside of layers first.
    pub fn layers(&self) -> Vec<(Option<u32>, Sum)> {
        let mut layers = self.grouped(|tensor| Some(tensor.layer()));
        layers.sort_by_key(|(layer, _)| *layer);
        layers
    }

    /// Sums tensors by key, keys in the order in which they come.
    fn grouped<'a, K: Hash + Eq>(&'a self, key: impl Fn(&'a Listed) -> Option<K>) -> Vec<(K, Sum)> {
        let mut groups: IndexMap<K, Sum> = IndexMap::new();
        for tensor in &self.tensors {
            let Some(key) = key(tensor) else { continue };
            groups
                .entry(key)
                .and_modify(|sum| sum.add(tensor))
                .or_insert_with(|| Sum::of([tensor]));
        }
        groups.into_iter().collect()
    }
}

fn loss_of(tensor: &Listed) -> Option<(&str, f64)> {
    match &tensor.why {
        Some(Why::Solved {
            group,
            loss: Some(loss),
        }) => Some((group, loss.parse().ok()?)),
        _ => None,
    }
}

impl Why {
    /// Returns the reason in few words.
    pub fn words(&self) -> String {
        match self {
            Self::Mix { .. } => "mix".to_owned(),
            Self::Uniform => "one type for all".to_owned(),
            Self::OutputType => "output type".to_owned(),
            Self::EmbeddingType => "embedding type".to_owned(),
            Self::Rule { index } => format!("rule {}", index + 1),
            Self::Otherwise => "otherwise".to_owned(),
            Self::NeverQuantized { reason } => match reason {
                Reason::OneDimension => "one dimension",
                Reason::NotAWeight => "no weight",
                Reason::Norm => "norm",
                Reason::ExpertRouter => "router",
                Reason::Small => "small",
                Reason::Position => "position",
                Reason::Encoder => "encoder",
            }
            .to_owned(),
            Self::Copy => "copied".to_owned(),
            Self::Fixed { what } => match what {
                Fixed::NextToken => "next token",
                Fixed::StateSpace => "state space",
            }
            .to_owned(),
            Self::Solved { group, .. } => match members(group) {
                0 => "solved".to_owned(),
                more => format!("solved, {} in one", more + 1),
            },
            Self::Floor => "floor".to_owned(),
            Self::Promoted { anchor_of: None } => "promoted".to_owned(),
            Self::Promoted { anchor_of: Some(_) } => "anchor".to_owned(),
            Self::Boosted => "boosted".to_owned(),
            Self::Ladder { steps: 1, .. } => "1 step up".to_owned(),
            Self::Ladder { steps, .. } => format!("{steps} steps up"),
        }
    }
}

/// Returns how many other tensors the name of a group contains: `blk.0.{attn_k,attn_q}.weight` has one.
fn members(group: &str) -> usize {
    let inner = group.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
    inner.map_or(0, |(names, _)| names.matches(',').count())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Choice;
    use TensorType as T;

    fn choice(tensor: &str, to: T, bytes: u64, why: Why) -> Choice {
        Choice {
            tensor: tensor.to_owned(),
            from: T::F16,
            to,
            instead_of: None,
            why,
            bytes,
        }
    }

    fn solved(group: &str, loss: &str) -> Why {
        Why::Solved {
            group: group.to_owned(),
            loss: Some(loss.to_owned()),
        }
    }

    #[test]
    fn a_groups_loss_is_shared_by_weights_and_sums_stay_right() {
        let pair = "blk.0.{attn_k,attn_q}.weight";
        let mut table = Table::new(
            vec![
                choice("token_embd.weight", T::Q8_0, 340, solved("token_embd.weight", "2e-3")),
                choice("blk.0.attn_k.weight", T::Q4_K, 144, solved(pair, "4e-3")),
                choice("blk.0.attn_q.weight", T::Q4_K, 432, solved(pair, "4e-3")),
                choice("blk.1.attn_q.weight", T::Q4_K, 144, Why::Rule { index: 0 }),
                choice(
                    "blk.1.attn_norm.weight",
                    T::F32,
                    1024,
                    Why::NeverQuantized { reason: Reason::Norm },
                ),
            ],
            Vec::new(),
        );
        table.predicted_loss = Some("9e-3".to_owned());
        assert!(Listing::of(&table).tensors.iter().all(|tensor| tensor.loss.is_none()));
        table.predicted_loss = Some("6e-3".to_owned());
        let listing = Listing::of(&table);
        let losses: Vec<_> = listing.tensors.iter().map(|tensor| tensor.loss).collect();
        assert_eq!(losses, [Some(2e-3), Some(1e-3), Some(3e-3), None, None], "6e-3 in all");
        let classes = listing.classes();
        let names: Vec<_> = classes.iter().map(|(class, _)| *class).collect();
        assert_eq!(names, ["token_embd", "attn_k", "attn_q", "attn_norm"]);
        let queries = &classes[2].1;
        assert_eq!((queries.tensors, queries.bytes, queries.elements), (2, 576, 1024));
        assert_eq!((queries.loss, queries.bpw()), (Some(3e-3), 4.5));
        let layers = listing.layers();
        let of_layer: Vec<_> = layers.iter().map(|(layer, sum)| (*layer, sum.tensors)).collect();
        assert_eq!(of_layer, [(None, 1), (Some(0), 2), (Some(1), 2)]);
        assert_eq!(layers[1].1.loss, Some(4e-3));
        assert_eq!(layers[2].1.by_bytes(), [(T::F32, 1, 1024), (T::Q4_K, 1, 144)]);
        assert!(listing.tensors[0].is_open() && !listing.tensors[4].is_open());
        assert_eq!(table.choices[1].why.words(), "solved, 2 in one");
    }

    #[test]
    fn classes_are_names_without_layers() {
        let class = |name: &str| {
            let listing = Listing::of_tensors([(name.to_owned(), T::Q4_K, 144)]);
            (listing.tensors[0].class().to_owned(), listing.tensors[0].layer())
        };
        assert_eq!(
            class("blk.12.ffn_down_exps.weight"),
            ("ffn_down_exps".to_owned(), Some(12))
        );
        assert_eq!(class("output.weight"), ("output".to_owned(), None));
        assert_eq!(class("blk.x.y.weight"), ("blk.x.y".to_owned(), None));
        assert_eq!(class("blk.0.attn_q.bias"), ("attn_q.bias".to_owned(), Some(0)));
    }
}
