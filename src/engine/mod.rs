//! The embedded engine: llama.cpp, linked in. Quantizes rows, tokenizes texts, collects importance matrices and hands
//! out logits. All of its `unsafe` is in `embedded`; what is here and below is safe to call.
//!
//! Nothing in this module decides what to do: it runs the model's mathematics and says what engine did so
//! ([`Identity`]). Thread counts are machine matters: results do not depend on them (ggml on a CPU computes each row of a
//! product whole on one thread; `tests/it/engine.rs` holds that, bit for bit), so they are part of no key.

mod embedded;
mod error;
mod files;
mod identity;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

pub use self::embedded::compare::MatrixError;
pub use self::embedded::compare::compare;
pub use self::embedded::log::Transcript;
pub use self::embedded::model::CollectOptions;
pub use self::embedded::model::EachLogits;
pub use self::embedded::model::LoadedModel;
pub use self::embedded::quantize::QuantizeJob;
pub use self::embedded::quantize::ReadAt;
pub use self::embedded::quantize::can_dequantize;
pub use self::embedded::quantize::can_quantize;
pub use self::embedded::quantize::dequantize_rows;
pub use self::embedded::quantize::quantize;
pub use self::embedded::quantize::requires_weights;
pub use self::embedded::vocabulary::Vocabulary;
pub use self::embedded::workbench::Workbench;
pub use self::error::EngineError;
pub use self::files::ModelFiles;
pub use self::identity::Identity;
pub use self::identity::check_cpu;
pub use self::identity::evaluator;
pub use self::identity::has_devices;
pub use self::identity::quantizer;

/// How much of the machine to use. Never part of a key: results do not depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Threads of one computation; 0 is taken as 1.
    pub threads: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        }
    }
}

/// A request to stop, shared by its clones. Polled between rows and chunks, and by llama.cpp between graph nodes.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Returns a request that was not made yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks all work that holds a clone to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Returns true once [`Cancel::cancel`] was called on any clone.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Returns [`EngineError::Cancelled`] once cancelled.
    pub(crate) fn check(&self) -> Result<(), EngineError> {
        if self.is_cancelled() {
            Err(EngineError::Cancelled)
        } else {
            Ok(())
        }
    }
}
