//! The errors of this module.

use crate::prose;
use crate::tensor_type::TensorType;

/// A tensor and a change of its type that is an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retyped {
    /// The tensor's name.
    pub tensor: String,
    /// Its type in the source.
    pub from: TensorType,
    /// The type that was asked for.
    pub to: TensorType,
}

/// A row length that is not a multiple of a type's block size, if the engine defines no fallback type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{wanted} needs rows of a multiple of {} elements, found {columns}, and no type is defined to use instead", .wanted.block_elements())]
pub struct NoFallback {
    /// The type that was asked for.
    pub wanted: TensorType,
    /// The row length found.
    pub columns: u64,
}

/// Why no table can be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The metadata lacks a key that the rules need.
    #[error("the model's metadata has no `{key}` ({expected} expected)")]
    MissingKey {
        /// The key.
        key: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// A key holds something else than expected.
    #[error("`{key}` in the model's metadata: expected {expected}, found {found}")]
    BadValue {
        /// The key.
        key: String,
        /// What it should hold.
        expected: String,
        /// What it holds.
        found: String,
    },
    /// The engine can't quantize to a type.
    #[error("the engine can't quantize tensors to {ty}")]
    NotATarget {
        /// The type.
        ty: TensorType,
    },
    /// Tensors of a source type that the engine can't convert.
    #[error("the engine can't convert {}", changes(.tensors))]
    NotConvertible {
        /// The tensors.
        tensors: Vec<Retyped>,
    },
    /// Tensors that are quantized already.
    #[error("already quantized in the source: {}; quantize from a full-precision model, or allow requantizing", changes(.tensors))]
    Requantize {
        /// The tensors.
        tensors: Vec<Retyped>,
    },
    /// Types that give bad results, or abort the engine, without an imatrix entry.
    #[error("{} for {}", if *.have_imatrix { "the imatrix has no entry" } else { "an imatrix is needed" }, changes(.tensors))]
    NeedsImatrix {
        /// The tensors.
        tensors: Vec<Retyped>,
        /// True if there is an imatrix, which lacks these entries.
        have_imatrix: bool,
    },
    /// Rows that no type can be found for.
    #[error("tensor `{tensor}`: {source}")]
    NoFallback {
        /// The first such tensor.
        tensor: String,
        /// The type and the row length.
        source: NoFallback,
    },
    /// An explicitly chosen type (of the output or the token embedding) that the rows don't fit; the engine has no
    /// fallback there and would abort.
    #[error("tensor `{tensor}`: {wanted} needs rows of a multiple of {} elements, found {columns}; choose another type", .wanted.block_elements())]
    RowLength {
        /// The tensor.
        tensor: String,
        /// The type.
        wanted: TensorType,
        /// The row length.
        columns: u64,
    },
    /// A tensor of more than three dimensions, which the engine can't quantize.
    #[error("tensor `{tensor}` has dimensions {dims:?}: only two or three can be quantized; keep its type")]
    TooManyDimensions {
        /// The tensor.
        tensor: String,
        /// Its dimensions, fastest first.
        dims: Vec<u64>,
    },
    /// A tensor whose size can't be computed.
    #[error("the size of tensor `{tensor}` with dimensions {dims:?} in {ty} is not a whole number of bytes")]
    Size {
        /// The tensor.
        tensor: String,
        /// Its dimensions, fastest first.
        dims: Vec<u64>,
        /// The type.
        ty: TensorType,
    },
    /// A feed-forward tensor of a model with experts, whose name does not say which layer it is of.
    #[error(
        "tensor `{tensor}`: the mix depends on the layer, expected a name that begins with `blk.N.` with N below {layers}"
    )]
    BadLayer {
        /// The tensor.
        tensor: String,
        /// Number of layers.
        layers: u32,
    },
    /// A mix that asks for the attention heads of a model without layers.
    #[error(
        "the mix depends on the number of attention heads, which this `{architecture}` model does not state (tensor `{tensor}`); choose a type without a mix"
    )]
    NoHeads {
        /// The architecture.
        architecture: String,
        /// The tensor that the rule is for.
        tensor: String,
    },
    /// Layers can't be ranked or boosted.
    #[error("layers to boost: {message}")]
    Layers {
        /// Why not.
        message: String,
    },
    /// A budget that is too small even for the smallest allowed types.
    #[error("the budget of {budget} bytes is too small: the smallest file that this policy allows has {minimum} bytes")]
    BelowMinimum {
        /// The budget.
        budget: u64,
        /// The length of the smallest file.
        minimum: u64,
    },
    /// A device that is too small even for the smallest allowed types.
    #[error(
        "the memory of `{device}`, {memory} bytes, is too small: its tensors, its cache and its reserve need at least {minimum} bytes, of which {constant} do not depend on types"
    )]
    DeviceBelowMinimum {
        /// The device.
        device: String,
        /// Its memory.
        memory: u64,
        /// The minimum size.
        minimum: u64,
        /// The part that does not depend on types: the cache, the reserve, tensors that are never quantized.
        constant: u64,
    },
    /// A device without tensors.
    #[error("no tensor of the model is on `{device}`: no tensor name matches its patterns")]
    EmptyDevice {
        /// The device.
        device: String,
    },
    /// A cache with rows that are not a multiple of the block size.
    #[error("the cache can't have type {ty}: layer {layer} has {values} values per token, which is not a multiple of {}", .ty.block_elements())]
    BadCache {
        /// The cache's type.
        ty: TensorType,
        /// The layer.
        layer: u32,
        /// Its keys or its values.
        values: u64,
    },
    /// A group of tensors for which no type is left.
    #[error("no type is possible for `{group}`: none of {} is allowed for it, has a known loss, and is within its floor and ceiling", prose::list(.tried.iter(), LISTED))]
    NoOption {
        /// The first such group.
        group: String,
        /// The types that losses are known for.
        tried: Vec<TensorType>,
    },
    /// Losses that are not valid.
    #[error("the losses of `{group}`: {message}")]
    BadLoss {
        /// The group.
        group: String,
        /// What is wrong.
        message: String,
    },
    /// Sizes or losses that are too large for the solver.
    #[error("can't choose types with these sizes and losses: {message}")]
    NoProblem {
        /// Why.
        message: String,
    },
    /// A floor or a ceiling that is not one of the types of `ashq1`.
    #[error("tensor `{tensor}`: `ashq1` does not use {ty}")]
    NotAshq1Type {
        /// The first such tensor.
        tensor: String,
        /// The type.
        ty: TensorType,
    },
    /// A floor above the ceiling.
    #[error("tensor `{tensor}`: the floor {floor} is above the ceiling {ceiling}")]
    FloorAboveCeiling {
        /// The first such tensor.
        tensor: String,
        /// The floor.
        floor: TensorType,
        /// The ceiling.
        ceiling: TensorType,
    },
    /// Quantizable tensors that no rule matches.
    #[error("no rule matches {}; add a rule, or set `otherwise`", names(.tensors))]
    Unmatched {
        /// The tensors.
        tensors: Vec<String>,
    },
}

/// The maximum number of names in a message. Further names are only counted.
const LISTED: usize = 8;

fn names(tensors: &[String]) -> String {
    prose::names(tensors, LISTED)
}

fn changes(tensors: &[Retyped]) -> String {
    let changes = tensors
        .iter()
        .map(|Retyped { tensor, from, to }| format!("`{tensor}` ({from} to {to})"));
    prose::list(changes, LISTED)
}
