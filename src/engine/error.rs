//! What can go wrong in the engine, as data.

use std::path::PathBuf;

use super::Capability;
use crate::fs::PathError;
use crate::tensor_type::TensorType;

/// A failure of the engine, or of what it was given.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// The engine lacks a capability that was asked of it.
    #[error("the engine `{engine}` cannot {capability}")]
    Unsupported {
        /// The engine.
        engine: String,
        /// What it cannot do.
        capability: Capability,
    },
    /// A model without files.
    #[error("the model has no file")]
    NoFile,
    /// A model's file cannot be opened.
    #[error(transparent)]
    Open(PathError),
    /// Another program cut a file short that the engine had mapped.
    #[error("`{}` became shorter while the engine was reading it", path.display())]
    FileCut {
        /// The model.
        path: PathBuf,
    },
    /// This processor cannot run the instructions that the engine was compiled to.
    #[error(
        "this processor lacks {}, which this build of forge was compiled to use ({level}); use a build for an older processor",
        missing.join(", ")
    )]
    Processor {
        /// The instruction sets that are missing.
        missing: Vec<String>,
        /// All that the build needs, comma separated.
        level: String,
    },
    /// The engine has no kernel that writes this type.
    #[error("the engine cannot quantize to {to}")]
    NoQuantizer {
        /// The type asked for.
        to: TensorType,
    },
    /// The engine has no kernel that reads this type.
    #[error("the engine cannot convert {from} to numbers")]
    NoDequantizer {
        /// The type of the source.
        from: TensorType,
    },
    /// A row does not consist of whole blocks.
    #[error("rows of {columns} values are not whole blocks of {block}, which {ty} needs")]
    RowLength {
        /// The type with that block.
        ty: TensorType,
        /// Values in a row.
        columns: u64,
        /// Values in a block.
        block: u64,
    },
    /// A shape that is empty or too large to count in 63 bits of bytes.
    #[error("a tensor of {matrices} x {rows} x {columns} values cannot be processed")]
    Shape {
        /// Values in a row.
        columns: u64,
        /// Rows in a matrix.
        rows: u64,
        /// Matrices.
        matrices: u64,
    },
    /// A node of the model's graph that no gradient can be computed through.
    #[error("no gradient can be computed through the node `{node}` of the model's graph: {what}")]
    Gradient {
        /// The node.
        node: String,
        /// Why not: the operation that has no rule, or what is wrong.
        what: String,
    },
    /// The layers of a model take more memory for their gradients than is allowed.
    #[error("gradients take at least {needed} bytes of memory at once, more than the limit of {limit}")]
    GradientMemory {
        /// The least that they take.
        needed: u64,
        /// What is allowed.
        limit: u64,
    },
    /// A tensor of a loaded model that cannot be replaced.
    #[error("`{tensor}` cannot be replaced in the loaded model: {what}")]
    Replace {
        /// The tensor.
        tensor: String,
        /// Why not.
        what: String,
    },
    /// The kernel of this type refuses to work without importances.
    #[error("{to} needs an importance matrix for this tensor, and there is none")]
    WeightsRequired {
        /// The type asked for.
        to: TensorType,
    },
    /// Importances that do not fit the tensor.
    #[error("{found} importances for a tensor that takes {columns} per matrix and has {matrices} matrices")]
    WeightsLength {
        /// How many were given.
        found: u64,
        /// Values in a row.
        columns: u64,
        /// Matrices.
        matrices: u64,
    },
    /// An importance that is not a finite number of at least 0.
    #[error("importance {value} in column {column} of matrix {matrix} is not a finite number of at least 0")]
    WeightsValue {
        /// The matrix.
        matrix: u64,
        /// The column.
        column: u64,
        /// What stands there.
        value: String,
    },
    /// A NaN or an infinity in the source.
    #[error("value {value} in matrix {matrix}, row {row}, column {column} is not finite")]
    NonFinite {
        /// The matrix.
        matrix: u64,
        /// The row in its matrix.
        row: u64,
        /// The column.
        column: u64,
        /// `NaN`, `inf` or `-inf`.
        value: String,
    },
    /// The finite source does not survive the target type: what was written holds a NaN or an infinity.
    #[error(
        "matrix {matrix}, rows {row} to {end} cannot be held by {to}: the result is not finite (largest magnitude {largest}); use BF16 or F32"
    )]
    NotRepresentable {
        /// The matrix.
        matrix: u64,
        /// The first row of the piece that failed.
        row: u64,
        /// The row after its last.
        end: u64,
        /// The type asked for.
        to: TensorType,
        /// The largest magnitude in the piece.
        largest: String,
    },
    /// A buffer of the caller's has another size than its shape says.
    #[error("{what}: {found} bytes or values, expected {expected}")]
    Length {
        /// Which buffer.
        what: &'static str,
        /// What was given.
        found: u64,
        /// What the shape says.
        expected: u64,
    },
    /// The system gives no memory for a buffer.
    #[error("not enough memory for {bytes} bytes of {what}")]
    Memory {
        /// What they would hold.
        what: &'static str,
        /// How many bytes.
        bytes: u64,
    },
    /// Reading the source failed.
    #[error("cannot read the source at byte {offset}: {source}")]
    Read {
        /// Byte offset in the tensor.
        offset: u64,
        /// Why.
        source: std::io::Error,
    },
    /// Writing the result failed.
    #[error("cannot write the result: {source}")]
    Write {
        /// Why.
        source: std::io::Error,
    },
    /// llama.cpp did not load the model.
    #[error("llama.cpp cannot load `{}`", path.display())]
    Load {
        /// The model file.
        path: PathBuf,
        /// llama.cpp's last lines.
        log: Vec<String>,
    },
    /// llama.cpp made no context (mostly: not enough memory).
    #[error("llama.cpp cannot make a context of {context} tokens for `{}`", path.display())]
    Context {
        /// The model file.
        path: PathBuf,
        /// Tokens asked for.
        context: u32,
        /// llama.cpp's last lines.
        log: Vec<String>,
    },
    /// A context longer than the model was trained for.
    #[error("a context of {context} tokens is longer than the {trained} that `{}` was trained for; ask for at most {trained}", path.display())]
    ContextTooLong {
        /// The model file.
        path: PathBuf,
        /// Tokens asked for.
        context: u32,
        /// Tokens of the training.
        trained: u32,
    },
    /// A context too short to score or collect anything.
    #[error("a context of {context} tokens is too short; the engine needs at least {least}")]
    ContextTooShort {
        /// Tokens asked for.
        context: u32,
        /// The least.
        least: u32,
    },
    /// A model that is no decoder of text (an encoder, or a diffusion model).
    #[error("`{}` is not an autoregressive text model: {what}", path.display())]
    NotAutoregressive {
        /// The model file.
        path: PathBuf,
        /// Why not.
        what: &'static str,
    },
    /// A chunk with another number of tokens than the context.
    #[error("chunk {chunk} has {found} tokens, the context {expected}")]
    ChunkLength {
        /// Index in the call.
        chunk: usize,
        /// Its tokens.
        found: usize,
        /// The context.
        expected: usize,
    },
    /// A token that the model does not have.
    #[error("token {token} in chunk {chunk} is not in the vocabulary of {size} tokens")]
    Token {
        /// Index in the call.
        chunk: usize,
        /// The token.
        token: i32,
        /// Size of the vocabulary.
        size: usize,
    },
    /// llama.cpp could not compute a chunk.
    #[error("llama.cpp failed on chunk {chunk} with status {status}")]
    Compute {
        /// Index in the call.
        chunk: usize,
        /// `llama_decode`'s status.
        status: i32,
        /// llama.cpp's last lines.
        log: Vec<String>,
    },
    /// The model computed a NaN or an infinity.
    #[error(
        "the model computed {value} at position {position} of chunk {chunk}: its file may be damaged, or a type does not suit it"
    )]
    NonFiniteLogits {
        /// Index in the call.
        chunk: usize,
        /// Position in the chunk.
        position: usize,
        /// `NaN`, `inf` or `-inf`.
        value: String,
    },
    /// An activation is a NaN or an infinity.
    #[error("the activations that enter `{tensor}` are not finite in chunk {chunk}: the model's file may be damaged")]
    NonFiniteActivations {
        /// The weight.
        tensor: String,
        /// First chunk of the batch, index in the call.
        chunk: usize,
    },
    /// An activation of a shape that no importance can be collected from.
    #[error("cannot collect importances of `{tensor}`: {what}")]
    Collect {
        /// The weight.
        tensor: String,
        /// What is wrong with it.
        what: String,
    },
    /// A text that cannot be tokenized.
    #[error("cannot tokenize {bytes} bytes of text: {what}")]
    Tokenize {
        /// Length of the text.
        bytes: usize,
        /// Why.
        what: &'static str,
        /// llama.cpp's last lines.
        log: Vec<String>,
    },
    /// The path cannot be handed to llama.cpp.
    #[error("llama.cpp cannot open the path `{}`: {what}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// Why.
        what: &'static str,
    },
    /// The caller's own consumer of results failed.
    #[error("{0}")]
    Consumer(Box<dyn std::error::Error + Send + Sync>),
}

impl EngineError {
    /// Returns what llama.cpp said last before it failed, line by line.
    pub fn log(&self) -> &[String] {
        match self {
            Self::Load { log, .. }
            | Self::Context { log, .. }
            | Self::Compute { log, .. }
            | Self::Tokenize { log, .. } => log,
            _ => &[],
        }
    }
}
