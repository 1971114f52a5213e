//! A model whose tensors can be given other types and bytes while it is loaded: what a candidate computes, without the
//! candidate's file.
//!
//! The tensor gets the very bytes that the candidate would have, in their own type, so that the kernels are those that the
//! candidate's file would run with. Its logits are then the candidate's, bit for bit (`tests/it/engine.rs` holds that), also
//! what comes of the activations being quantized to match. A replaced tensor takes the place of the loaded one and may not
//! be larger; so the model is to be loaded in its full precision.
//!
//! llama.cpp has no function that finds a weight. Its evaluation callback shows each node of the graph that is computed,
//! and a node's sources are the weights.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::ffi::c_void;
use std::path::Path;
use std::ptr::NonNull;

use llama_cpp_sys_2 as ffi;

use super::model::EachLogits;
use super::model::LoadedModel;
use super::sys;
use crate::engine::Cancel;
use crate::engine::Options;
use crate::engine::error::EngineError;
use crate::tensor_type::TensorType;

/// A weight of the loaded model.
#[derive(Debug, Clone, Copy)]
struct Weight {
    tensor: NonNull<ffi::ggml_tensor>,
    /// Bytes that it was loaded with.
    room: usize,
}

/// A loaded model whose weights can be replaced.
pub struct Workbench {
    // The weights lie in the model and are gone with it.
    model: LoadedModel,
    weights: BTreeMap<String, Weight>,
}

// SAFETY: the pointers are into the model, which is owned here and may move between threads; they are used only with the
// workbench borrowed mutably.
unsafe impl Send for Workbench {}

impl Workbench {
    /// Loads the model of a GGUF file into memory, for chunks of `context` tokens, and finds its weights.
    ///
    /// # Errors
    ///
    /// As [`LoadedModel::open`]; [`EngineError::Cancelled`].
    pub fn open(path: &Path, options: &Options, context: u32, cancel: &Cancel) -> Result<Self, EngineError> {
        let model = LoadedModel::load(path, options, context, false)?;
        let mut found: BTreeMap<String, Weight> = BTreeMap::new();
        model.visit(note, (&raw mut found).cast(), cancel)?;
        Ok(Self { model, weights: found })
    }

    /// Returns the names of the tensors that can be replaced.
    pub fn tensors(&self) -> impl Iterator<Item = &str> {
        self.weights.keys().map(String::as_str)
    }

    /// Returns the size of the vocabulary: logits per position.
    pub fn vocabulary_size(&self) -> usize {
        self.model.vocabulary_size()
    }

    /// Gives a tensor another type and other bytes, until it is given others again. What it was loaded with is not kept.
    ///
    /// # Errors
    ///
    /// [`EngineError::Replace`] if the model has no such tensor, if the bytes are not as many as its shape in that type
    /// takes, or if they are more than it was loaded with.
    pub fn replace(&mut self, name: &str, ty: TensorType, bytes: &[u8]) -> Result<(), EngineError> {
        let refuse = |what: String| EngineError::Replace {
            tensor: name.to_owned(),
            what,
        };
        let weight = *self
            .weights
            .get(name)
            .ok_or_else(|| refuse("the graph of the model has no such weight".to_owned()))?;
        let to = sys::ggml_type(ty);
        // SAFETY: the weight lies in the live model, which nobody else uses while `self` is borrowed mutably; no graph is
        // being computed. Its fields are changed together, and only to what fits into the memory that it has: the graph of
        // every computation reads them anew.
        unsafe {
            let tensor = weight.tensor.as_ptr();
            let columns = (*tensor).ne[0];
            if columns % ffi::ggml_blck_size(to) != 0 {
                return Err(refuse(format!("its rows of {columns} are not whole blocks of {ty}")));
            }
            let row = ffi::ggml_row_size(to, columns);
            let rows = ((*tensor).ne[1] * (*tensor).ne[2] * (*tensor).ne[3]) as usize;
            if row.checked_mul(rows) != Some(bytes.len()) {
                return Err(refuse(format!(
                    "{} bytes were given, and {ty} takes {rows} rows of {row}",
                    bytes.len()
                )));
            }
            let (before, strides) = ((*tensor).type_, (*tensor).nb);
            (*tensor).type_ = to;
            (*tensor).nb = [
                ffi::ggml_type_size(to),
                row,
                row * (*tensor).ne[1] as usize,
                row * ((*tensor).ne[1] * (*tensor).ne[2]) as usize,
            ];
            let buffers = ffi::ggml_backend_buffer_get_type((*tensor).buffer);
            let needed = ffi::ggml_backend_buft_get_alloc_size(buffers, tensor);
            if needed > weight.room {
                (*tensor).type_ = before;
                (*tensor).nb = strides;
                return Err(refuse(format!(
                    "it takes {needed} bytes in {ty}, and was loaded with {}",
                    weight.room
                )));
            }
            ffi::ggml_backend_tensor_set(tensor, bytes.as_ptr().cast(), 0, bytes.len());
        }
        Ok(())
    }

    /// Computes one chunk as [`LoadedModel::logits`] does.
    pub fn logits(
        &mut self,
        chunk: &[i32],
        first: usize,
        cancel: &Cancel,
        each: &mut EachLogits<'_>,
    ) -> Result<(), EngineError> {
        self.model.logits(chunk, first, cancel, each)
    }
}

impl std::fmt::Debug for Workbench {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workbench")
            .field("model", &self.model)
            .field("weights", &self.weights.len())
            .finish()
    }
}

/// llama.cpp's evaluation callback: notes the weights among a node's sources, and asks for no result.
///
/// # Safety
///
/// `data` points to the map of weights; nothing else uses it meanwhile.
unsafe extern "C" fn note(node: *mut ffi::ggml_tensor, ask: bool, data: *mut c_void) -> bool {
    if !ask {
        return true;
    }
    // SAFETY: llama.cpp passes a live node of the graph, whose sources are live or null; weights are those that lie in a
    // buffer for weights and are the result of no operation.
    unsafe {
        let found = &mut *data.cast::<BTreeMap<String, Weight>>();
        for source in (*node).src {
            let Some(tensor) = NonNull::new(source) else { continue };
            let fields = tensor.as_ref();
            if fields.op != ffi::GGML_OP_NONE || fields.buffer.is_null() || !fields.view_src.is_null() {
                continue;
            }
            if ffi::ggml_backend_buffer_get_usage(fields.buffer) != ffi::GGML_BACKEND_BUFFER_USAGE_WEIGHTS {
                continue;
            }
            let name = CStr::from_ptr(fields.name.as_ptr()).to_string_lossy().into_owned();
            let buffers = ffi::ggml_backend_buffer_get_type(fields.buffer);
            let room = ffi::ggml_backend_buft_get_alloc_size(buffers, source);
            found.insert(name, Weight { tensor, room });
        }
    }
    false
}
