//! Engines: what runs the mathematics of models. [`interface`](Engine) says what can be asked of one, [`Engines`] which ones there
//! are. The embedded engine is llama.cpp, linked in; all of its `unsafe` is in `embedded`.
//!
//! Nothing in this module decides what to do: an engine computes what it is given and says what it is ([`Identity`]). Thread
//! counts belong to the machine: results do not depend on them (ggml on a CPU computes each row of a product whole on one thread;
//! `tests/it/engine.rs` holds that, bit for bit), so they are part of no key.

mod adjoint;
mod cancel;
mod capability;
mod embedded;
mod error;
mod files;
mod identity;
mod interface;
mod job;
mod options;
mod registry;
mod settings;

pub use self::adjoint::backward::EachGradient;
pub use self::adjoint::backward::Inputs;
pub use self::adjoint::backward::MatrixGradient;
pub use self::adjoint::backward::WeightGradient;
pub use self::adjoint::sampling::Labels;
pub use self::adjoint::sampling::Loss;
pub use self::cancel::Cancel;
pub use self::capability::Capability;
pub use self::embedded::compare::compare;
pub use self::embedded::gradient_model::GradientModel;
pub use self::embedded::log::Transcript;
pub use self::embedded::model::LoadedModel;
pub use self::embedded::probe_model::ProbeModel;
pub use self::embedded::quantize::can_dequantize;
pub use self::embedded::quantize::can_quantize;
pub use self::embedded::quantize::dequantize_rows;
pub use self::embedded::quantize::quantize;
pub use self::embedded::quantize::requires_weights;
pub use self::embedded::refine::refine;
pub use self::embedded::refine::refine_peak_bytes;
pub use self::embedded::vocabulary::Vocabulary;
pub use self::error::EngineError;
pub use self::files::ModelFiles;
pub use self::identity::Identity;
pub use self::interface::CollectOptions;
pub use self::interface::Collector;
pub use self::interface::EachLogits;
pub use self::interface::Engine;
pub use self::interface::GradientOptions;
pub use self::interface::Gradients;
pub use self::interface::Isolation;
pub use self::interface::Model;
pub use self::interface::Prober;
pub use self::interface::Quantizer;
pub use self::interface::Refiner;
pub use self::interface::Scorer;
pub use self::interface::SharedBytes;
pub use self::interface::Tokenizer;
pub use self::interface::WeightInput;
pub use self::job::KeptBytes;
pub use self::job::MatrixError;
pub use self::job::MatrixMoments;
pub use self::job::MatrixRefinement;
pub use self::job::MomentsOf;
pub use self::job::QuantizeJob;
pub use self::job::ReadAt;
pub use self::job::RowPanel;
pub use self::job::SumsOfRows;
pub use self::options::Options;
pub use self::registry::EngineSettings;
pub use self::registry::Engines;
pub use self::registry::built_in;
pub use self::registry::default_engine;
pub use self::settings::Setting;
pub use self::settings::SettingKind;
pub use self::settings::SettingValue;
pub use self::settings::Values;
pub use crate::vocab::EngineRole as Role;
