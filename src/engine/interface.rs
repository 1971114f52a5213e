//! What an engine can be asked for: one trait for each part of the work, so that linked-in code fits as well as a tool that
//! takes whole files. An engine implements what it can do and lists it as capabilities; the rest fails with
//! [`EngineError::Unsupported`].

use std::fmt;
use std::io::Write;
use std::ops::Deref;

use serde::Deserialize;
use serde::Serialize;

use super::Cancel;
use super::Capability;
use super::EachGradient;
use super::EngineError;
use super::Identity;
use super::Labels;
use super::Loss;
use super::MatrixError;
use super::MatrixRefinement;
use super::ModelFiles;
use super::MomentsOf;
use super::QuantizeJob;
use super::ReadAt;
use super::Role;
use super::SumsOfRows;
use crate::fisher::InputRounding;
use crate::imatrix::Imatrix;
use crate::moments::Accumulator;
use crate::tensor_type::TensorType;

/// Where an engine's models are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// In the process that builds.
    SameProcess,
    /// In a worker process, so that a crash of the engine fails one action and not the build.
    Worker,
}

/// An engine: what runs the mathematics of models.
pub trait Engine: Send + Sync + fmt::Debug {
    /// Returns the name that recipes and `forge.toml` use.
    fn name(&self) -> &str;

    /// Returns what the engine can do.
    fn capabilities(&self) -> &[Capability];

    /// Returns the identity of a role: the facts that decide its results.
    fn identity(&self, role: Role) -> Identity;

    /// Returns a text that differs whenever an identity may differ, and costs microseconds: a build with nothing to do
    /// compares it.
    fn quick_identity(&self) -> String;

    /// Says where models are loaded.
    fn isolation(&self) -> Isolation {
        Isolation::SameProcess
    }

    /// Checks that the engine can run on this machine.
    ///
    /// # Errors
    ///
    /// [`EngineError::Processor`] and what else keeps it from running.
    fn check(&self) -> Result<(), EngineError> {
        Ok(())
    }

    /// Opens the vocabulary of a model.
    ///
    /// # Errors
    ///
    /// What is wrong with the model.
    fn tokenizer(&self, _files: &ModelFiles) -> Result<Box<dyn Tokenizer>, EngineError> {
        Err(self.unsupported(Capability::Tokenize))
    }

    /// Makes a model ready to compute chunks of `context` tokens.
    ///
    /// # Errors
    ///
    /// What is wrong with the model, or with the machine.
    fn model(&self, _files: ModelFiles, _context: u32) -> Result<Box<dyn Model>, EngineError> {
        Err(self.unsupported(Capability::Score))
    }

    /// Loads a model whose tensors can be replaced, for chunks of `context` tokens.
    ///
    /// # Errors
    ///
    /// As [`Engine::model`]; [`EngineError::Cancelled`].
    fn prober(&self, _files: ModelFiles, _context: u32, _cancel: &Cancel) -> Result<Box<dyn Prober>, EngineError> {
        Err(self.unsupported(Capability::Probe))
    }

    /// Loads a model whose gradients can be computed, for chunks of `context` tokens.
    ///
    /// # Errors
    ///
    /// As [`Engine::model`]; [`EngineError::Gradient`] if the model computes something that has no gradient here;
    /// [`EngineError::GradientMemory`]; [`EngineError::Cancelled`].
    fn gradients(
        &self,
        _files: ModelFiles,
        _context: u32,
        _options: GradientOptions,
        _cancel: &Cancel,
    ) -> Result<Box<dyn Gradients>, EngineError> {
        Err(self.unsupported(Capability::Gradients))
    }

    /// Returns what quantizes.
    ///
    /// # Errors
    ///
    /// [`EngineError::Unsupported`].
    fn quantizer(&self) -> Result<&dyn Quantizer, EngineError> {
        Err(self.unsupported(Capability::Quantize))
    }

    /// Returns what refines.
    ///
    /// # Errors
    ///
    /// [`EngineError::Unsupported`].
    fn refiner(&self) -> Result<&dyn Refiner, EngineError> {
        Err(self.unsupported(Capability::Refine))
    }

    /// Returns the error of an engine that lacks a capability.
    fn unsupported(&self, capability: Capability) -> EngineError {
        EngineError::Unsupported {
            engine: self.name().to_owned(),
            capability,
        }
    }
}

/// The vocabulary of a model.
pub trait Tokenizer: Send {
    /// Turns a text into tokens, with the tokens before and after a text that the vocabulary asks for. With
    /// `parse_special`, texts of special tokens become those tokens.
    ///
    /// # Errors
    ///
    /// [`EngineError::Tokenize`].
    fn tokenize(&self, text: &str, parse_special: bool) -> Result<Vec<i32>, EngineError>;

    /// Returns the token that every text, and so every chunk, begins with, if the vocabulary asks for one.
    fn first_token(&self) -> Option<i32>;
}

/// Receives the logits of a chunk: the position of the first row, and one row with a number for each token of the vocabulary
/// for it and for each position after it. Its error ends the computation.
pub type EachLogits<'a> = dyn FnMut(usize, &[&[f32]]) -> Result<(), EngineError> + 'a;

/// What to collect importances of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CollectOptions {
    /// Also of the output matrix (`output.weight`).
    pub process_output: bool,
}

/// The input of some weights: the vectors that a model multiplies them with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightInput {
    /// The weights, in the order in which the model computes; not empty. The first one stands for the input.
    pub weights: Vec<String>,
    /// The length of the vectors.
    pub columns: u64,
    /// How many matrices each weight has: 1, or the number of experts.
    pub matrices: u64,
}

impl WeightInput {
    /// Returns the weight that stands for the input.
    pub fn name(&self) -> &str {
        self.weights.first().map_or("", String::as_str)
    }
}

/// Collects imatrices and second moments.
pub trait Collector: Send {
    /// Collects the imatrix of some chunks: for every weight the sums of its squared inputs by column, and how many rows
    /// were summed. `progress` receives the number of chunks that are done.
    ///
    /// # Errors
    ///
    /// What the computation fails with; [`EngineError::Cancelled`].
    fn collect(
        &mut self,
        chunks: &[Vec<i32>],
        options: CollectOptions,
        cancel: &Cancel,
        progress: &dyn Fn(usize),
    ) -> Result<Imatrix, EngineError>;

    /// Returns the inputs of weights, in the order in which the model computes.
    ///
    /// # Errors
    ///
    /// What the computation fails with; [`EngineError::Cancelled`].
    fn inputs(&mut self, cancel: &Cancel) -> Result<Vec<WeightInput>, EngineError>;

    /// Adds up the second moments of some inputs over some chunks, one accumulator for each. The inputs are some of those that
    /// [`Collector::inputs`] returned, in its order. The caller sees to it that the sums fit into memory ([`Accumulator::bytes`]). `progress` receives the number of chunks that are done.
    ///
    /// # Errors
    ///
    /// What the computation fails with; [`EngineError::Cancelled`].
    fn moments(
        &mut self,
        chunks: &[Vec<i32>],
        inputs: &[WeightInput],
        cancel: &Cancel,
        progress: &dyn Fn(usize),
    ) -> Result<Vec<Accumulator>, EngineError>;
}

/// Computes logits.
pub trait Scorer: Send {
    /// Returns the number of tokens in the vocabulary: the length of a row of logits.
    fn vocabulary_size(&self) -> usize;

    /// Computes a chunk and passes the logits of the positions from `first` on to `each`, batch by batch and in order. Logits
    /// at a position predict the token after it.
    ///
    /// # Errors
    ///
    /// What the computation fails with, logits that are not finite among it; what `each` fails with;
    /// [`EngineError::Cancelled`].
    fn logits(
        &mut self,
        chunk: &[i32],
        first: usize,
        cancel: &Cancel,
        each: &mut EachLogits<'_>,
    ) -> Result<(), EngineError>;
}

/// A model that is ready to compute.
pub trait Model: Collector + Scorer {}

impl<T: Collector + Scorer> Model for T {}

/// Bytes that stay where they are as long as their owner lives.
pub type SharedBytes = Box<dyn Deref<Target = [u8]> + Send>;

/// A loaded model whose tensors can be replaced.
pub trait Prober: Scorer {
    /// Gives a tensor another type and other bytes until it is replaced again or restored.
    ///
    /// # Errors
    ///
    /// [`EngineError::Replace`].
    fn replace(&mut self, tensor: &str, ty: TensorType, bytes: SharedBytes) -> Result<(), EngineError>;

    /// Gives a tensor the bytes back that it was loaded with.
    fn restore(&mut self, tensor: &str);

    /// Returns where a computation can begin if only these tensors have changed, in the order in which the model computes; 0
    /// is its beginning.
    fn place(&self, changed: &mut dyn Iterator<Item = &str>) -> usize;

    /// Keeps, in at most `limit` bytes together with what else is kept, what the nodes from a place on need of a chunk, so that
    /// [`Scorer::logits`] of this chunk can begin there. Keeping nothing is no error.
    ///
    /// # Errors
    ///
    /// As [`Scorer::logits`].
    fn keep(
        &mut self,
        chunk: &[i32],
        first: usize,
        place: usize,
        limit: u64,
        cancel: &Cancel,
    ) -> Result<(), EngineError>;

    /// Frees what is kept of all chunks.
    fn forget(&mut self);
}

/// How gradients are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GradientOptions {
    /// Memory for the values of a part of the graph, in bytes. A model whose values take more is computed in parts, and all parts but
    /// the last one are computed twice.
    pub memory: u64,
}

impl Default for GradientOptions {
    fn default() -> Self {
        Self { memory: 1 << 30 }
    }
}

/// Computes gradients of a loss at the outputs of all products with weights.
pub trait Gradients: Send {
    /// Computes a chunk, and the gradients of its loss: minus the log-likelihood of `labels` at the positions from `first` on. Each
    /// product with a weight is passed on to `each`, in the reverse order of the computation. Results do not depend on the number
    /// of threads.
    ///
    /// # Errors
    ///
    /// What the computation fails with; [`EngineError::Gradient`]; [`EngineError::Token`] for a label that the vocabulary does not
    /// have; what `each` fails with; [`EngineError::Cancelled`].
    fn gradients(
        &mut self,
        chunk: &[i32],
        first: usize,
        labels: Labels<'_>,
        cancel: &Cancel,
        each: &mut EachGradient<'_>,
    ) -> Result<Loss, EngineError>;

    /// Returns the memory that a chunk takes beside the model and its context, in bytes: values of the largest part of the graph, what
    /// the parts begin with, and logits.
    fn memory(&self) -> u64;
}

/// Quantizes tensors, and computes what they lose. Rows are quantized independently of each other, so results do not depend on
/// the number of threads.
pub trait Quantizer: Send + Sync {
    /// Quantizes a tensor. `progress` receives bytes of the source.
    ///
    /// # Errors
    ///
    /// What the job cannot be done for; errors of `read` and `out`; [`EngineError::Cancelled`].
    fn quantize(
        &self,
        job: &QuantizeJob<'_>,
        read: &ReadAt<'_>,
        out: &mut (dyn Write + Send),
        cancel: &Cancel,
        progress: &dyn Fn(u64),
    ) -> Result<(), EngineError>;

    /// Returns the squared errors of each matrix of a tensor whose quantized bytes are given.
    ///
    /// # Errors
    ///
    /// As for quantizing.
    fn compare(
        &self,
        job: &QuantizeJob<'_>,
        read: &ReadAt<'_>,
        quantized: &[u8],
        cancel: &Cancel,
        progress: &dyn Fn(u64),
    ) -> Result<Vec<MatrixError>, EngineError>;

    /// Adds up sums over the rows of one matrix of a tensor whose quantized bytes are given. The order of the additions depends on the
    /// tensor's shape alone.
    ///
    /// # Errors
    ///
    /// As for quantizing.
    #[expect(clippy::too_many_arguments, reason = "a job, its bytes, and what is done with them")]
    fn sum_rows(
        &self,
        job: &QuantizeJob<'_>,
        matrix: u64,
        read: &ReadAt<'_>,
        quantized: &[u8],
        cancel: &Cancel,
        progress: &dyn Fn(u64),
        sums: &SumsOfRows<'_>,
    ) -> Result<Vec<f64>, EngineError>;

    /// Returns how products with weights of a type round their inputs; `None` if they do not round them to 8 bits.
    fn input_rounding(&self, _ty: TensorType) -> Option<InputRounding> {
        None
    }
}

/// Chooses better codes for quantized tensors. Results do not depend on the number of threads.
pub trait Refiner: Send + Sync {
    /// Refines the codes of a tensor and writes its bytes, as many as `quantized` gives, to `out` in order. `read` gives the source,
    /// `quantized` the bytes that [`Quantizer::quantize`] made of the job. The weights of the job are not used. `progress` receives bytes of the source.
    ///
    /// Returns one refinement for each matrix. No row's objective is above that of its bytes in `quantized`.
    ///
    /// # Errors
    ///
    /// What the job cannot be done for; errors of `moments`, `read`, `quantized` and `out`; [`EngineError::Cancelled`].
    #[expect(
        clippy::too_many_arguments,
        reason = "the streams of a job that reads two and writes one"
    )]
    fn refine(
        &self,
        job: &QuantizeJob<'_>,
        moments: &mut MomentsOf<'_>,
        read: &ReadAt<'_>,
        quantized: &ReadAt<'_>,
        out: &mut (dyn Write + Send),
        cancel: &Cancel,
        progress: &dyn Fn(u64),
    ) -> Result<Vec<MatrixRefinement>, EngineError>;
}
