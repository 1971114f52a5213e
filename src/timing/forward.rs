//! The amounts of work of computing a model, from its header.
//!
//! Every token is multiplied with every matrix; of the experts of a layer, with those that are used. The other work of a chunk grows
//! with the number of nodes of the computation graph, which is taken to be proportional to the number of tensors.

use std::collections::BTreeMap;

use super::Amounts;
use super::Operation;
use super::Speeds;
use crate::gguf::Metadata;
use crate::policy::ModelFacts;
use crate::policy::TensorFacts;
use crate::tensor_type::TensorType;

/// Nodes of the graph for each tensor of the model: a matrix product comes with a norm, an addition or an activation.
const NODES_PER_TENSOR: u64 = 3;

/// The most tokens that are computed at once.
const BATCH: u64 = 512;

/// What one tensor adds to the work of a token.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct TensorWork {
    /// Multiply-adds.
    products: f64,
    /// Activations that it is multiplied with.
    inputs: f64,
    /// The share of the multiply-adds of the model from this tensor to the end.
    rest: f64,
    /// Whether only positions whose logits are wanted are multiplied.
    is_output: bool,
}

/// The work of computing a model, by tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Forward {
    tensors: Vec<TensorWork>,
    types: Vec<TensorType>,
    dims: Vec<Vec<u64>>,
    nodes: u64,
    vocabulary: u64,
    /// The multiply-adds of attention, for each token and each token of the chunk.
    attention: f64,
}

/// What is computed of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The imatrix.
    Collect,
    /// Log-probabilities that others are compared with.
    Reference,
    /// Logits that are compared with a reference.
    Score,
}

impl Forward {
    /// Reads the dimensions of a model.
    pub fn new(facts: &ModelFacts, metadata: &Metadata) -> Self {
        let key = |name: &str| metadata.get_u64(&format!("{}.{name}", facts.architecture));
        let used = key("expert_used_count");
        let is_tied = !facts.has_output();
        let mut tensors: Vec<TensorWork> = facts
            .tensors
            .iter()
            .map(|tensor| work_of(tensor, u64::from(facts.experts), used, is_tied))
            .collect();
        let mut order: Vec<usize> = (0..tensors.len()).collect();
        order.sort_by_key(|&at| std::cmp::Reverse(stage(&facts.tensors[at].name)));
        let all: f64 = tensors.iter().map(|tensor| tensor.products).sum();
        let mut rest = 0.0;
        for at in order {
            rest += tensors[at].products;
            tensors[at].rest = if all > 0.0 { rest / all } else { 1.0 };
            if facts.tensors[at].name.starts_with("token_embd") {
                tensors[at].rest = 1.0;
            }
        }
        let width = key("embedding_length").unwrap_or(0);
        let embedding = facts.tensors.iter().find(|tensor| tensor.name == "token_embd.weight");
        Self {
            tensors,
            types: facts.tensors.iter().map(|tensor| tensor.ty).collect(),
            dims: facts.tensors.iter().map(|tensor| tensor.dims.clone()).collect(),
            nodes: NODES_PER_TENSOR * facts.tensors.len() as u64,
            vocabulary: embedding.map_or(0, |tensor| tensor.dim(1)),
            // Keys and values, each once.
            attention: 2.0 * width as f64 * f64::from(facts.layers),
        }
    }

    /// Returns the size of the vocabulary in tokens.
    pub fn vocabulary(&self) -> u64 {
        self.vocabulary
    }

    /// Returns how many input vectors a tensor is multiplied with for each token: 1, or the experts that are used.
    pub fn rows_per_token(&self, tensor: usize) -> f64 {
        let columns = self
            .dims
            .get(tensor)
            .and_then(|dims| dims.first())
            .copied()
            .unwrap_or(1);
        self.tensors
            .get(tensor)
            .map_or(0.0, |work| work.inputs / columns.max(1) as f64)
    }

    /// Returns the work of a chunk of `context` tokens. `types` are the types of the tensors, in the order of the file; those of the
    /// model if `None`.
    pub fn chunk(&self, types: Option<&[TensorType]>, context: u32, purpose: Purpose) -> Amounts {
        let types = self.types_or_own(types);
        let tokens = f64::from(context);
        // The second half of a chunk is scored; an imatrix needs all of it, but no output matrix.
        let scored = match purpose {
            Purpose::Collect => 0.0,
            Purpose::Reference | Purpose::Score => (tokens / 2.0 - 1.0).max(0.0),
        };
        let mut amounts = Amounts::default();
        for (tensor, &ty) in self.tensors.iter().zip(types) {
            let positions = if tensor.is_output { scored } else { tokens };
            amounts.add(Operation::Multiply(ty), tensor.products * positions);
            if purpose == Purpose::Collect {
                amounts.add(Operation::Collect, tensor.inputs * positions);
            }
        }
        amounts.add(Operation::Multiply(TensorType::F16), self.attention * tokens * tokens);
        amounts.add(Operation::Node, self.nodes * u64::from(context).div_ceil(BATCH));
        let logits = scored * self.vocabulary as f64;
        match purpose {
            Purpose::Collect => {}
            Purpose::Reference => amounts.add(Operation::Encode, logits),
            Purpose::Score => amounts.add(Operation::Score, logits),
        }
        amounts
    }

    /// Returns the multiply-adds of the products of a chunk of `context` tokens with all weights, attention apart.
    pub fn multiply_adds(&self, context: u32) -> f64 {
        self.tensors.iter().map(|tensor| tensor.products).sum::<f64>() * f64::from(context)
    }

    /// Returns the work of loading the model, or a candidate of it, in a worker process.
    pub fn load(&self, types: Option<&[TensorType]>) -> Amounts {
        Amounts::of(Operation::Start, 1_u64).and(&Amounts::of(Operation::Load, self.bytes(types)))
    }

    /// Returns the bytes of all tensors.
    pub fn bytes(&self, types: Option<&[TensorType]>) -> u64 {
        let tensors = self.dims.iter().zip(self.types_or_own(types));
        tensors
            .map(|(dims, ty)| ty.tensor_bytes(dims).unwrap_or_default())
            .sum()
    }

    /// Returns about how much memory the model and a computation of `context` tokens need, in bytes.
    pub fn memory(&self, context: u32) -> u64 {
        let (context, batch) = (u64::from(context), u64::from(context).min(BATCH));
        let logits = 4 * batch * self.vocabulary;
        // Keys and values, 16 bits each, and some activations of 32 bits.
        let cache = 2 * self.attention as u64 * context;
        let widest = self
            .dims
            .iter()
            .filter_map(|dims| dims.get(1))
            .max()
            .copied()
            .unwrap_or_default();
        self.bytes(None) + logits + cache + 4 * batch * widest
    }

    fn types_or_own<'t>(&'t self, types: Option<&'t [TensorType]>) -> &'t [TensorType] {
        types
            .filter(|types| types.len() == self.types.len())
            .unwrap_or(&self.types)
    }

    /// Returns how much a chunk of a variant counts of which a share is computed, compared with a chunk of the whole model: its logits are
    /// compared in any case.
    pub fn weight(&self, share: f64, context: u32) -> f64 {
        // Only for the ratio of two kinds of work, so it need not be the speed of this machine.
        let speeds = Speeds::assumed(1);
        let (mut computed, mut fixed) = (0.0, 0.0);
        for (operation, amount) in self.chunk(None, context, Purpose::Score).iter() {
            let seconds = amount * speeds.seconds(operation);
            if operation == Operation::Score {
                fixed += seconds;
            } else {
                computed += seconds;
            }
        }
        (share * computed + fixed) / (computed + fixed)
    }

    /// Returns the work of chunks of `context` tokens of variants of the model, which has most tensors in `types`: `shares` of it, summed
    /// over `count` chunks.
    pub fn variants(&self, types: Option<&[TensorType]>, shares: f64, count: f64, context: u32) -> Amounts {
        let mut amounts = Amounts::default();
        for (operation, amount) in self.chunk(types, context, Purpose::Score).iter() {
            let factor = if operation == Operation::Score { count } else { shares };
            amounts.add(operation, factor * amount);
        }
        amounts
    }

    /// Returns the share of a chunk's work that is left to do when the first of some tensors is reached: what is before it need not be
    /// computed again when only these tensors change. `tensors` are places in the file; 0 if there is none.
    pub fn share_from(&self, tensors: impl IntoIterator<Item = usize>) -> f64 {
        let rest = tensors
            .into_iter()
            .filter_map(|at| self.tensors.get(at))
            .map(|tensor| tensor.rest);
        rest.fold(0.0, f64::max)
    }

    /// Returns the shares of the work that each of several variants of the model needs, if they are computed one after the other on the
    /// same tokens: what most of them have in common is computed once. A variant gives some tensors, by their places, other types.
    pub fn shares<'v>(&self, variants: impl IntoIterator<Item = &'v BTreeMap<usize, TensorType>>) -> Vec<f64> {
        let variants: Vec<_> = variants.into_iter().collect();
        // One alone has nothing in common with others.
        if variants.len() < 2 {
            return vec![1.0; variants.len()];
        }
        let mut counts: BTreeMap<usize, BTreeMap<TensorType, usize>> = BTreeMap::new();
        for variant in &variants {
            for (&at, &ty) in *variant {
                *counts.entry(at).or_default().entry(ty).or_default() += 1;
            }
        }
        let common: BTreeMap<usize, TensorType> = counts
            .into_iter()
            .filter_map(|(at, types)| {
                let named: usize = types.values().sum();
                let (ty, count) = types.into_iter().max_by_key(|(_, count)| *count)?;
                (count > variants.len() - named).then_some((at, ty))
            })
            .collect();
        let share = |variant: &&BTreeMap<usize, TensorType>| {
            let either = common.keys().chain(variant.keys());
            self.share_from(either.copied().filter(|at| common.get(at) != variant.get(at)))
        };
        variants.iter().map(share).collect()
    }
}

fn work_of(tensor: &TensorFacts, experts: u64, used: Option<u64>, is_tied: bool) -> TensorWork {
    let (columns, rows, matrices) = (tensor.dim(0), tensor.dim(1), tensor.dim(2));
    let is_embedding = tensor.name == "token_embd.weight";
    let is_output = tensor.name == "output.weight" || (is_embedding && is_tied);
    // Vectors are added or scaled with, and an embedding is looked up.
    if rows * matrices <= 1 || (is_embedding && !is_tied) {
        return TensorWork::default();
    }
    let matrices = match used {
        Some(used) if experts > 0 && matrices == experts => used.min(matrices),
        _ => matrices,
    };
    TensorWork {
        products: (columns as f64) * (rows as f64) * (matrices as f64),
        inputs: (columns as f64) * (matrices as f64),
        rest: 1.0,
        is_output,
    }
}

/// Returns where in the computation a tensor is used: its layer, and the part of the layer.
fn stage(name: &str) -> (u32, u32) {
    let Some(rest) = name.strip_prefix("blk.") else {
        return if name.starts_with("token_embd") {
            (0, 0)
        } else {
            (u32::MAX, 0)
        };
    };
    let (layer, rest) = rest.split_once('.').unwrap_or((rest, ""));
    let part = match rest {
        _ if rest.starts_with("attn_output") => 1,
        _ if rest.starts_with("ffn_down") => 3,
        _ if rest.starts_with("ffn") => 2,
        _ => 0,
    };
    (layer.parse::<u32>().map_or(u32::MAX, |layer| layer + 1), part)
}

#[cfg(test)]
mod tests;
