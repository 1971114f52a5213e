//! Which type for which tensor: pure functions from facts about a model to a table of choices.
//!
//! The rules are those of llama.cpp's quantizer (`llama-quant.cpp` of the linked engine): which tensors are never quantized, the
//! fallback types for rows that are not whole blocks, and the types of each named mix. They are implemented here again, so that a
//! plan knows every type and every size before any work begins; `tests/it/peer_quantize.rs` compares them with the
//! real `llama-quantize` over many models. Where the tool aborts or writes something unusable, these functions
//! return a [`PolicyError`].
//!
//! - [`ModelFacts`]: what the rules look at.
//! - [`mix()`]: a named mix, as `llama-quantize` knows it.
//! - [`manual()`]: the user's own rules, first match wins.
//! - [`ashq1()`]: floors, and then the upgrades that gain most for their bytes, by the imatrix alone.
//! - [`prepare()`]: groups, losses and sizes as a problem for the solver ([`crate::allocation`]), and its answer as a table.
//! - [`ChunkLosses`], [`LocalLosses`]: losses from what was measured, and which measurements are worth making next.
//! - [`boost()`]: a mix with a better type for families of tensors in a few layers.
//! - [`density()`]: two types, the larger one where it gains most for its bytes.
//! - [`prior()`]: losses estimated from roles, depth and types.
//! - [`squared_error`], [`Sensitivity`]: losses from squared errors and a few measurements.
//! - [`lines_of_tensors`], [`lines_of_rules`], [`rules_of_lines`]: types in the forms of other programs.
//! - [`CacheShape`]: how much memory the cache of keys and values takes.
//! - [`forgequant_of`], [`rules_of_forgequant`]: the same as a recipe of forgequant.
//! - [`groups()`]: tensors that get their types together.
//! - [`Listing`]: types to be looked at, tensor by tensor, by layer and by class.
//! - [`Table`]: the answer, in the order of the source file; the artifact `policy.v1`.

mod allocate;
mod ashq1;
mod boost;
mod cache;
mod check;
mod chunk_losses;
mod density;
mod energy;
mod error;
mod exchange;
mod file_type;
mod forgequant;
mod groups;
mod inputs;
mod listing;
mod local_losses;
mod manual;
mod mix_choice;
mod model;
mod prior;
mod quantizable;
mod role;
mod routers;
mod rules;
mod size;
mod squared;
mod table;

pub use self::allocate::Device;
pub use self::allocate::Loss;
pub use self::allocate::Losses;
pub use self::allocate::Prepared;
pub use self::allocate::Priced;
pub use self::allocate::Question;
pub use self::allocate::legal;
pub use self::allocate::prepare;
pub use self::ashq1::ASHQ1_TYPES;
pub use self::ashq1::Ashq1;
pub use self::ashq1::Span;
pub use self::ashq1::ashq1;
pub use self::ashq1::spans;
pub use self::boost::Boost;
pub use self::boost::Family;
pub use self::boost::Ranking;
pub use self::boost::boost;
pub use self::boost::rank_layers;
pub use self::cache::CacheShape;
pub use self::cache::cached_layer;
pub use self::chunk_losses::ChunkLosses;
pub use self::chunk_losses::Probe;
pub use self::chunk_losses::is_less;
pub use self::chunk_losses::mean;
pub use self::chunk_losses::variance;
pub use self::density::Density;
pub use self::density::density;
pub use self::energy::Energies;
pub use self::energy::Energy;
pub use self::error::NoFallback;
pub use self::error::PolicyError;
pub use self::error::Retyped;
pub use self::exchange::LineError;
pub use self::exchange::Typed;
pub use self::exchange::lines_of_rules;
pub use self::exchange::lines_of_tensors;
pub use self::exchange::rules_of_lines;
pub use self::file_type::file_type_of;
pub use self::forgequant::ForgequantError;
pub use self::forgequant::PRODUCIBLE;
pub use self::forgequant::Unproducible;
pub use self::forgequant::forgequant_of;
pub use self::forgequant::rules_of_forgequant;
pub use self::groups::Fuse;
pub use self::groups::GroupOptions;
pub use self::groups::Grouping;
pub use self::groups::TensorGroup;
pub use self::groups::groups;
pub use self::inputs::LikelyInput;
pub use self::inputs::likely_inputs;
pub use self::listing::Listed;
pub use self::listing::Listing;
pub use self::listing::Sum;
pub use self::local_losses::LocalLosses;
pub use self::manual::ManualOptions;
pub use self::manual::Rule;
pub use self::manual::Target;
pub use self::manual::manual;
pub use self::mix_choice::MixOptions;
pub use self::mix_choice::mix;
pub use self::model::ModelFacts;
pub use self::model::TensorFacts;
pub use self::prior::CURVE;
pub use self::prior::prior;
pub use self::quantizable::Reason;
pub use self::quantizable::fallback;
pub use self::quantizable::quantizable;
pub use self::role::Role;
pub use self::routers::routers_after;
pub use self::size::Budget;
pub use self::size::FileSize;
pub use self::squared::Sensitivity;
pub use self::squared::geometric_means;
pub use self::squared::in_proportion;
pub use self::squared::lift_sensitivities;
pub use self::squared::probed_types;
pub use self::squared::squared_error;
pub use self::table::Choice;
pub use self::table::Fixed;
pub use self::table::Probed;
pub use self::table::SCHEMA;
pub use self::table::Table;
pub use self::table::Warning;
pub use self::table::Why;

/// Says whether an imatrix holds an entry for a tensor. `None` in its place means that there is no imatrix at all, which
/// some mixes answer differently from an imatrix without the entry.
pub type HasImatrix<'a> = Option<&'a dyn Fn(&str) -> bool>;

#[cfg(test)]
mod tests;
