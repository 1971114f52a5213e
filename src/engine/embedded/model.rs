//! A model that computes: importances and logits of chunks of tokens.
//!
//! Settings are those of `llama-imatrix` and `llama-perplexity` on the same machine (16-bit key-value cache, flash
//! attention where the backend has it, physical batches of 512 tokens), with three differences that are on purpose:
//!
//! - Chunks are computed one at a time, not four side by side. Each chunk's result is then the same bits whatever other
//!   chunks are asked for with it, which blocks of chunks as separate actions rely on. Sums differ from the tools' in the
//!   last digits only, counts not at all.
//! - Extra buffer types (weights repacked at load, AMX) are off: they change results between machines, and the AMX path
//!   crashes on some.
//! - A model is mapped, not read, so one larger than memory works. The weights are never written to. If another program
//!   cuts the file short meanwhile, the computation ends with an error ([`crate::fs::map::LossGuard`]).
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::path::Path;

use llama_cpp_sys_2 as ffi;

use super::collect::Importances;
use super::collect::LEAST_ROWS;
use super::log::Capture;
use super::moments::Moments;
use super::moments::Survey;
use super::product::Listener;
use super::product::Listening;
use super::sys::Batch;
use super::sys::Callback;
use super::sys::Context;
use super::sys::Model;
use crate::engine::Cancel;
use crate::engine::CollectOptions;
use crate::engine::EachLogits;
use crate::engine::EngineError;
use crate::engine::ModelFiles;
use crate::engine::Options;
use crate::engine::WeightInput;
use crate::fs::map::LossGuard;
use crate::imatrix::Imatrix;
use crate::moments::Accumulator;

/// Tokens of a physical batch, the default of llama.cpp's tools.
const BATCH: u32 = 512;
/// The shortest context that scores a position in its second half.
const LEAST_CONTEXT: u32 = 4;

/// The alignment of ggml's CPU buffers.
const TENSOR_ALIGNMENT: u64 = 32;

/// Where weights are loaded to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weights {
    /// They stay in the mapped file, where they are not on a device; else they are read into memory.
    pub(super) mapped: bool,
    /// They go to a device if there is one.
    pub(super) devices: bool,
}

/// How a context computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// With llama.cpp's defaults for its tools.
    Default,
    /// So that gradients can be computed: a chunk is one batch, attention is a product, a softmax and a product, the key-value cache
    /// rounds nothing, and everything is computed on the host.
    Gradients,
}

/// A model with its weights, ready to compute chunks of one length.
pub struct LoadedModel {
    /// Made at the first call of [`LoadedModel::logits`]; declared before the model so that it is dropped first.
    scorer: Option<Context>,
    model: Model,
    /// What `model` was loaded from. The maps lead to these files.
    files: ModelFiles,
    guard: LossGuard,
    threads: i32,
    context: u32,
    vocabulary: usize,
    trained: u32,
    bos: Option<i32>,
}

/// Returns whether all tensors of a model lie at multiples of the alignment that ggml needs in memory, as they do unless
/// `general.alignment` is smaller: llama.cpp refuses to map, or stops the process for, any other.
fn can_be_mapped(path: &Path) -> bool {
    // What cannot be read here is left to llama.cpp, which says why.
    crate::gguf::Model::open(path).map_or(true, |model| {
        let mut tensors = model.tensors().iter();
        tensors.all(|tensor| tensor.start.is_multiple_of(TENSOR_ALIGNMENT))
    })
}

impl LoadedModel {
    /// Loads a GGUF model for chunks of `context` tokens.
    ///
    /// Weights go to the GPU if the build has a GPU backend and there is one (its identity names it), and
    /// stay in the mapped file if not; those of a file aligned to less than 32 bytes are read into memory. A context longer
    /// than the model was trained for is refused: its figures mean nothing.
    pub fn open(files: ModelFiles, options: &Options, context: u32) -> Result<Self, EngineError> {
        let mapped = can_be_mapped(files.path());
        Self::load(files, options, context, Weights { mapped, devices: true })
    }

    /// Loads a GGUF model whose weights this program reads itself: they stay on the host, whatever devices there are.
    pub(super) fn open_on_host(files: ModelFiles, options: Options, context: u32) -> Result<Self, EngineError> {
        let mapped = can_be_mapped(files.path());
        Self::load(files, &options, context, Weights { mapped, devices: false })
    }

    /// Loads the model.
    pub(super) fn load(
        files: ModelFiles,
        options: &Options,
        context: u32,
        weights: Weights,
    ) -> Result<Self, EngineError> {
        if context < LEAST_CONTEXT {
            return Err(EngineError::ContextTooShort {
                context,
                least: LEAST_CONTEXT,
            });
        }
        let guard = LossGuard::new();
        // SAFETY: it returns plain values.
        let mut params = unsafe { ffi::llama_model_default_params() };
        params.use_extra_bufts = false;
        if !weights.mapped {
            params.load_mode = ffi::LLAMA_LOAD_MODE_NONE;
        }
        if !weights.devices {
            params.n_gpu_layers = 0;
            params.no_host = true;
        }
        let model = Model::load(&files, params)?;
        if guard.has_lost_pages() {
            return Err(EngineError::FileCut {
                path: files.path().to_owned(),
            });
        }
        let path = files.path();
        // SAFETY: the model and its vocabulary are live; none of the calls changes them.
        let (encoder, decoder, diffusion, trained, size, add_bos, bos) = unsafe {
            let vocabulary = model.vocabulary();
            (
                ffi::llama_model_has_encoder(model.as_ptr()),
                ffi::llama_model_has_decoder(model.as_ptr()),
                ffi::llama_model_is_diffusion(model.as_ptr()),
                ffi::llama_model_n_ctx_train(model.as_ptr()),
                ffi::llama_vocab_n_tokens(vocabulary),
                ffi::llama_vocab_get_add_bos(vocabulary),
                ffi::llama_vocab_bos(vocabulary),
            )
        };
        let refuse = |what| {
            Err(EngineError::NotAutoregressive {
                path: path.to_owned(),
                what,
            })
        };
        if encoder || !decoder {
            return refuse("it has an encoder");
        }
        if diffusion {
            return refuse("it is a diffusion model");
        }
        let trained = u32::try_from(trained).unwrap_or(0);
        if trained > 0 && context > trained {
            return Err(EngineError::ContextTooLong {
                path: path.to_owned(),
                context,
                trained,
            });
        }
        Ok(Self {
            scorer: None,
            model,
            files,
            guard,
            threads: i32::try_from(options.threads.clamp(1, 512)).unwrap_or(1),
            context,
            vocabulary: usize::try_from(size).unwrap_or(0),
            trained,
            bos: (add_bos && bos >= 0).then_some(bos),
        })
    }

    /// Returns the tokens of a chunk.
    pub fn context(&self) -> u32 {
        self.context
    }

    /// Returns the tokens of the longest context in training, 0 if the file does not say.
    pub fn trained_context(&self) -> u32 {
        self.trained
    }

    /// Returns the size of the vocabulary: logits per position.
    pub fn vocabulary_size(&self) -> usize {
        self.vocabulary
    }

    /// Collects the importance matrix of some chunks: for every weight the sums of its squared inputs per column, and how
    /// many rows were summed, as `llama-imatrix` does (the module `collect` says for which weights).
    ///
    /// Each chunk has `context` tokens and is a window of its own; its first token is taken as the token that begins a
    /// text if the vocabulary asks for one. `progress` gets the number of finished chunks.
    pub fn collect(
        &mut self,
        chunks: &[Vec<i32>],
        options: CollectOptions,
        cancel: &Cancel,
        progress: &dyn Fn(usize),
    ) -> Result<Imatrix, EngineError> {
        let listener = Importances::new(options.process_output);
        let importances = self.listen(listener, chunks, cancel, progress)?;
        importances.finish(u32::try_from(chunks.len()).unwrap_or(u32::MAX), self.context)
    }

    /// Finds out which weights share an input.
    pub fn inputs(&mut self, cancel: &Cancel) -> Result<Vec<WeightInput>, EngineError> {
        let mut listening = Box::new(Listening::new(Survey::default()));
        let data: *mut Listening<Survey> = &raw mut *listening;
        let capture = Capture::begin();
        let mut context = self.make_context(
            Form::Default,
            Some((Listening::<Survey>::callback(), data.cast())),
            &capture,
        )?;
        self.visit(&mut context, cancel)?;
        drop(context);
        Ok(listening.listener.finish())
    }

    /// Adds up the second moments of some inputs, in the order in which the model computes, over some chunks, as
    /// [`LoadedModel::collect`] does importances. Nothing after the last of these inputs is computed.
    pub fn moments(
        &mut self,
        chunks: &[Vec<i32>],
        inputs: &[WeightInput],
        cancel: &Cancel,
        progress: &dyn Fn(usize),
    ) -> Result<Vec<Accumulator>, EngineError> {
        let mut moments = self.listen(Moments::new(inputs), chunks, cancel, progress)?;
        let taken = inputs.iter().map(|input| {
            moments.take(input).ok_or_else(|| EngineError::Collect {
                tensor: input.name().to_owned(),
                what: "it is asked for twice".to_owned(),
            })
        });
        taken.collect()
    }

    /// Computes chunks for a listener.
    fn listen<L: Listener>(
        &mut self,
        listener: L,
        chunks: &[Vec<i32>],
        cancel: &Cancel,
        progress: &dyn Fn(usize),
    ) -> Result<L, EngineError> {
        if self.context < LEAST_ROWS {
            return Err(EngineError::ContextTooShort {
                context: self.context,
                least: LEAST_ROWS,
            });
        }
        for (index, chunk) in chunks.iter().enumerate() {
            self.check_chunk(index, chunk)?;
        }
        let mut listening = Box::new(Listening::new(listener));
        let data: *mut Listening<L> = &raw mut *listening;
        let capture = Capture::begin();
        let mut context =
            self.make_context(Form::Default, Some((Listening::<L>::callback(), data.cast())), &capture)?;
        for (index, chunk) in chunks.iter().enumerate() {
            cancel.check()?;
            // SAFETY: `listening` lives until the end of this function and is used through this pointer only, here and by
            // the callback, which llama.cpp calls on this thread during `decode`.
            unsafe { (*data).listener.begin_chunk(index) };
            let computed = self.decode(&mut context, index, chunk, 0, cancel, &capture, &mut |_, _| Ok(()));
            // SAFETY: as above; no computation is running.
            if let Some(failure) = unsafe { (*data).take_failure() } {
                return Err(failure);
            }
            computed?;
            progress(index + 1);
        }
        // The context has the pointer.
        drop(context);
        Ok(listening.listener)
    }

    /// Computes one chunk and hands out the logits of the positions from `first` on: `each` is called with the first
    /// position of a batch and one row of logits for it and for each after it, batches in order. Logits at a position
    /// predict the token after it.
    ///
    /// The chunk has `context` tokens; its first token is taken as in [`LoadedModel::collect`]. Logits that are not
    /// finite are an error; an error of `each` ends the call and is returned.
    pub fn logits(
        &mut self,
        chunk: &[i32],
        first: usize,
        cancel: &Cancel,
        each: &mut EachLogits<'_>,
    ) -> Result<(), EngineError> {
        let mut context = match self.scorer.take() {
            Some(context) => context,
            None => self.make_context(Form::Default, None, &Capture::begin())?,
        };
        let done = self.logits_in(&mut context, chunk, first, cancel, each);
        self.scorer = Some(context);
        done
    }

    /// As [`LoadedModel::logits`], in a context of the caller's.
    pub(super) fn logits_in(
        &self,
        context: &mut Context,
        chunk: &[i32],
        first: usize,
        cancel: &Cancel,
        each: &mut EachLogits<'_>,
    ) -> Result<(), EngineError> {
        self.check_chunk(0, chunk)?;
        cancel.check()?;
        let capture = Capture::begin();
        self.decode(context, 0, chunk, first, cancel, &capture, &mut |start, rows| {
            for (position, logits) in (start..).zip(rows) {
                if let Some(value) = logits.iter().find(|value| !value.is_finite()) {
                    return Err(EngineError::NonFiniteLogits {
                        chunk: 0,
                        position,
                        value: value.to_string(),
                    });
                }
            }
            each(start, rows)
        })
    }

    /// Computes a chunk whose result nobody wants but the context's callback.
    pub(super) fn walk(
        &self,
        context: &mut Context,
        chunk: &[i32],
        first: usize,
        cancel: &Cancel,
    ) -> Result<(), EngineError> {
        self.check_chunk(0, chunk)?;
        cancel.check()?;
        self.decode(context, 0, chunk, first, cancel, &Capture::begin(), &mut |_, _| Ok(()))
    }

    /// Computes the first batch of a chunk of any tokens, for the context's callback.
    pub(super) fn visit(&self, context: &mut Context, cancel: &Cancel) -> Result<(), EngineError> {
        // SAFETY: the context is live.
        let size = unsafe { ffi::llama_n_batch(context.as_ptr()) };
        let batch = vec![self.bos.unwrap_or(0); size as usize];
        self.decode(context, 0, &batch, 0, cancel, &Capture::begin(), &mut |_, _| Ok(()))
    }

    /// Fails if a file that is mapped was cut short.
    fn check_files(&self) -> Result<(), EngineError> {
        if self.guard.has_lost_pages() {
            return Err(EngineError::FileCut {
                path: self.files.path().to_owned(),
            });
        }
        Ok(())
    }

    /// Refuses a chunk of another length, or with tokens that llama.cpp would read out of bounds for.
    pub(super) fn check_chunk(&self, chunk: usize, tokens: &[i32]) -> Result<(), EngineError> {
        let expected = self.context as usize;
        if tokens.len() != expected {
            return Err(EngineError::ChunkLength {
                chunk,
                found: tokens.len(),
                expected,
            });
        }
        let size = self.vocabulary;
        match tokens
            .iter()
            .find(|token| usize::try_from(**token).is_ok_and(|token| token < size).eq(&false))
        {
            Some(token) => Err(EngineError::Token {
                chunk,
                token: *token,
                size,
            }),
            None => Ok(()),
        }
    }

    /// Makes a context for one chunk at a time.
    pub(super) fn make_context(
        &self,
        form: Form,
        callback: Option<(Callback, *mut c_void)>,
        capture: &Capture,
    ) -> Result<Context, EngineError> {
        let batch = match form {
            Form::Default => batch_size(self.context),
            Form::Gradients => self.context,
        };
        // SAFETY: llama.cpp's defaults with plain values changed; the callback's data outlives the context (the caller
        // drops the context first); the model outlives it as well.
        let context = unsafe {
            let mut params = ffi::llama_context_default_params();
            params.n_ctx = self.context;
            params.n_batch = batch;
            params.n_ubatch = batch;
            params.n_seq_max = 1;
            params.n_threads = self.threads;
            params.n_threads_batch = self.threads;
            params.swa_full = form == Form::Gradients;
            if form == Form::Gradients {
                params.flash_attn_type = ffi::LLAMA_FLASH_ATTN_TYPE_DISABLED;
                params.type_k = ffi::GGML_TYPE_F32;
                params.type_v = ffi::GGML_TYPE_F32;
                params.offload_kqv = false;
                params.op_offload = false;
            }
            if let Some((callback, data)) = callback {
                params.cb_eval = Some(callback);
                params.cb_eval_user_data = data;
            }
            Context::own(ffi::llama_init_from_model(self.model.as_ptr(), params))
        };
        context.ok_or_else(|| EngineError::Context {
            path: self.files.path().to_owned(),
            context: self.context,
            log: capture.tail(),
        })
    }

    /// Computes one chunk from an empty memory, batch by batch, and hands out the logits of the positions from `first` on.
    #[allow(clippy::too_many_arguments)]
    fn decode(
        &self,
        context: &mut Context,
        index: usize,
        chunk: &[i32],
        first: usize,
        cancel: &Cancel,
        capture: &Capture,
        each: &mut EachLogits<'_>,
    ) -> Result<(), EngineError> {
        let failed = |status| EngineError::Compute {
            chunk: index,
            status,
            log: capture.tail(),
        };
        let abort = Abort {
            cancel,
            guard: &self.guard,
        };
        // SAFETY: the context is live; `abort` outlives the guard below, which removes the callback.
        unsafe {
            ffi::llama_memory_clear(ffi::llama_get_memory(context.as_ptr()), true);
            let data: *const Abort<'_> = &raw const abort;
            ffi::llama_set_abort_callback(context.as_ptr(), Some(is_aborted), data.cast_mut().cast());
        }
        let guard = AbortGuard(context);
        // SAFETY: the context is live.
        let size = unsafe { ffi::llama_n_batch(guard.0.as_ptr()) };
        let mut batch = Batch::new(size);
        for (number, tokens) in chunk.chunks(size as usize).enumerate() {
            cancel.check()?;
            let start = number * size as usize;
            batch.clear();
            for (offset, token) in tokens.iter().enumerate() {
                let position = start + offset;
                let token = if position == 0 {
                    self.bos.unwrap_or(*token)
                } else {
                    *token
                };
                if !batch.push(token, i32::try_from(position).unwrap_or(-1), 0, position >= first) {
                    return Err(failed(-1));
                }
            }
            // SAFETY: the batch's arrays hold `n_tokens` entries, tokens are in the vocabulary.
            let status = unsafe { ffi::llama_decode(guard.0.as_ptr(), batch.raw()) };
            if cancel.is_cancelled() {
                return Err(EngineError::Cancelled);
            }
            self.check_files()?;
            if status != 0 {
                return Err(failed(status));
            }
            let from = first.saturating_sub(start).min(tokens.len());
            let mut rows = Vec::with_capacity(tokens.len() - from);
            for offset in from..tokens.len() {
                // SAFETY: the batch was computed and this entry was marked as an output; null means that it was not. llama.cpp
                // returns one logit per token of the vocabulary, which stay until the next computation.
                unsafe {
                    let at = i32::try_from(offset).unwrap_or(-1);
                    let logits = ffi::llama_get_logits_ith(guard.0.as_ptr(), at);
                    if logits.is_null() {
                        return Err(failed(0));
                    }
                    rows.push(std::slice::from_raw_parts(logits, self.vocabulary));
                }
            }
            if !rows.is_empty() {
                each(start + from, &rows)?;
            }
        }
        // SAFETY: the context is live. Waits for a device that computes on its own.
        unsafe { ffi::llama_synchronize(guard.0.as_ptr()) };
        self.check_files()
    }
}

impl std::fmt::Debug for LoadedModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadedModel")
            .field("path", &self.files.path())
            .field("context", &self.context)
            .finish_non_exhaustive()
    }
}

/// Returns the tokens of a batch: at most [`BATCH`], and such that the last batch of a chunk has at least
/// [`LEAST_ROWS`].
fn batch_size(context: u32) -> u32 {
    let rest = context % BATCH;
    if context <= BATCH {
        context
    } else if rest == 0 || rest >= LEAST_ROWS {
        BATCH
    } else {
        BATCH - LEAST_ROWS
    }
}

/// What ends a computation before its time.
struct Abort<'a> {
    cancel: &'a Cancel,
    guard: &'a LossGuard,
}

/// llama.cpp's abort callback: the data is an [`Abort`].
unsafe extern "C" fn is_aborted(data: *mut c_void) -> bool {
    // SAFETY: `decode` passes a pointer to an `Abort` and removes it before that value ends.
    let abort = unsafe { &*data.cast::<Abort<'_>>() };
    abort.cancel.is_cancelled() || abort.guard.has_lost_pages()
}

/// Takes the abort callback away, however `decode` ends.
struct AbortGuard<'a>(&'a mut Context);

impl Drop for AbortGuard<'_> {
    fn drop(&mut self) {
        // SAFETY: the context is live and not computing.
        unsafe { ffi::llama_set_abort_callback(self.0.as_ptr(), None, std::ptr::null_mut()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_batch_of_a_chunk_is_too_small_to_be_counted() {
        for context in LEAST_ROWS..3000 {
            let size = batch_size(context);
            assert!(size <= BATCH);
            let last = (context - 1) % size + 1;
            assert!(last >= LEAST_ROWS, "{context}: batches of {size}, the last of {last}");
        }
    }
}
