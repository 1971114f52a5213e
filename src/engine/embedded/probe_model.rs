//! A loaded model whose tensors can be replaced. It computes what a candidate would compute, without the candidate's file.
//!
//! A replaced tensor has the bytes and the type that the candidate's file would have, so the engine runs the same kernels. The
//! logits, including the effect of quantized activations, are bit for bit those of the candidate (`tests/it/probe_model.rs`
//! checks that). On a CPU the weight points to the given bytes, and nothing is copied. On a device the bytes overwrite the
//! loaded ones and cannot be longer, so the model should be loaded in full precision.
//!
//! llama.cpp has no function that finds a weight. Its evaluation callback is called with each node of the graph, and the
//! sources of the nodes are the weights. Nodes before the first replaced weight need not be computed again (`checkpoint`).
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::ffi::c_void;
use std::ops::Deref;
use std::ptr::NonNull;

use llama_cpp_sys_2 as ffi;

use super::checkpoint::Checkpoint;
use super::checkpoint::Tap;
use super::checkpoint::Weight;
use super::log::Capture;
use super::model::Form;
use super::model::LoadedModel;
use super::model::Weights;
use super::sys;
use super::sys::Callback;
use super::sys::Context;
use crate::engine::Cancel;
use crate::engine::EachLogits;
use crate::engine::EngineError;
use crate::engine::ModelFiles;
use crate::engine::Options;
use crate::engine::SharedBytes;
use crate::tensor_type::TensorType;

/// What ggml's own buffers align tensors to, in bytes.
const ALIGNMENT: usize = 32;

/// Where a weight's bytes are, and what they are.
#[derive(Clone, Copy)]
struct Place {
    ty: ffi::ggml_type,
    strides: [usize; 4],
    data: *mut c_void,
}

impl Place {
    /// # Safety
    ///
    /// The tensor is live.
    unsafe fn of(tensor: *const ffi::ggml_tensor) -> Self {
        // SAFETY: the caller's promise.
        let tensor = unsafe { &*tensor };
        Self {
            ty: tensor.type_,
            strides: tensor.nb,
            data: tensor.data,
        }
    }

    /// Returns what a tensor would be at this place.
    ///
    /// # Safety
    ///
    /// The tensor is live.
    unsafe fn with(&self, tensor: *const ffi::ggml_tensor) -> ffi::ggml_tensor {
        // SAFETY: the caller's promise; the copy is ours alone.
        let mut like = unsafe { *tensor };
        (like.type_, like.nb, like.data) = (self.ty, self.strides, self.data);
        like
    }

    /// # Safety
    ///
    /// The tensor is live and not being computed with, and the place has its bytes.
    unsafe fn put_on(&self, tensor: *mut ffi::ggml_tensor) {
        // SAFETY: the caller's promise.
        unsafe { *tensor = self.with(tensor) };
    }
}

/// Returns the bytes of a tensor, wherever they lie.
///
/// # Safety
///
/// The tensor's buffer is live and has its bytes.
unsafe fn read(tensor: &ffi::ggml_tensor) -> Vec<u8> {
    // SAFETY: the caller's promise; as many bytes are read as the buffer holds.
    unsafe {
        let mut bytes = vec![0_u8; ffi::ggml_nbytes(tensor)];
        ffi::ggml_backend_tensor_get(tensor, bytes.as_mut_ptr().cast(), 0, bytes.len());
        bytes
    }
}

/// A weight that has other bytes than it was loaded with.
struct Replaced {
    /// Where it was loaded to.
    own: Place,
    /// The bytes that were there, if they were overwritten.
    saved: Option<Vec<u8>>,
    /// The bytes that it points to instead, if they were not copied.
    shared: Option<SharedBytes>,
}

/// A loaded model whose weights can be replaced: the embedded engine's [`Prober`](crate::engine::Prober).
pub struct ProbeModel {
    /// What leaves out nodes; nothing where all are computed. Dropped before the model.
    tapped: Option<Tapped>,
    // The weights lie in the model and are gone with it.
    model: LoadedModel,
    weights: BTreeMap<String, Weight>,
    /// Those that have other bytes now. What they point to is dropped after the model.
    replaced: BTreeMap<String, Replaced>,
    /// What is kept of chunks, by their tokens and the first position that counts.
    kept: HashMap<(Vec<i32>, usize), Checkpoint>,
}

/// A context that passes its nodes to the tap.
struct Tapped {
    /// Dropped before the tap.
    context: Context,
    tap: OwnedTap,
}

/// llama.cpp holds the pointer, so it is no box.
struct OwnedTap(NonNull<Tap>);

impl Drop for OwnedTap {
    fn drop(&mut self) {
        // SAFETY: it comes from a box, and who else had it is gone.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

impl Tapped {
    fn of(model: &LoadedModel) -> Result<Self, EngineError> {
        let tap = OwnedTap(NonNull::from(Box::leak(Box::default())));
        let callback: Callback = super::checkpoint::receive;
        let context = model.make_context(
            Form::Default,
            Some((callback, tap.0.as_ptr().cast())),
            &Capture::begin(),
        )?;
        Ok(Self { context, tap })
    }
}

impl std::ops::Deref for OwnedTap {
    type Target = Tap;

    fn deref(&self) -> &Tap {
        // SAFETY: it lives as long as this. llama.cpp changes it only while it computes, which takes the context, and with it
        // what holds both, borrowed mutably.
        unsafe { self.0.as_ref() }
    }
}

impl std::ops::DerefMut for OwnedTap {
    fn deref_mut(&mut self) -> &mut Tap {
        // SAFETY: as above.
        unsafe { self.0.as_mut() }
    }
}

// SAFETY: the pointers are into the model and to the tap, which are owned here and may move between threads; they are used
// only with the model borrowed mutably.
unsafe impl Send for ProbeModel {}

impl ProbeModel {
    /// Loads a GGUF model into memory, for chunks of `context` tokens, and finds its weights.
    ///
    /// # Errors
    ///
    /// As [`LoadedModel::open`]; [`EngineError::Cancelled`].
    pub fn open(files: ModelFiles, options: &Options, context: u32, cancel: &Cancel) -> Result<Self, EngineError> {
        let model = LoadedModel::load(
            files,
            options,
            context,
            Weights {
                mapped: false,
                devices: true,
            },
        )?;
        let mut tapped = Tapped::of(&model)?;
        tapped.tap.learn();
        model.visit(&mut tapped.context, cancel)?;
        tapped.tap.learned();
        Ok(Self {
            weights: tapped.tap.survey().weights.clone(),
            tapped: (!tapped.tap.survey().is_strange()).then_some(tapped),
            model,
            replaced: BTreeMap::new(),
            kept: HashMap::new(),
        })
    }

    /// Returns the names of the tensors that can be replaced.
    pub fn tensors(&self) -> impl Iterator<Item = &str> {
        self.weights.keys().map(String::as_str)
    }

    /// Returns the size of the vocabulary: logits per position.
    pub fn vocabulary_size(&self) -> usize {
        self.model.vocabulary_size()
    }

    /// Gives a tensor another type and other bytes, until it is replaced again or [restored](ProbeModel::restore). If the engine
    /// computes from this program's memory, it reads the bytes in place; otherwise they are copied.
    ///
    /// # Errors
    ///
    /// [`EngineError::Replace`] if the model has no such tensor, if the bytes are not as many as its shape in that type
    /// takes, or if they have to be copied and are more than it was loaded with.
    pub fn replace(
        &mut self,
        name: &str,
        ty: TensorType,
        bytes: impl Deref<Target = [u8]> + Send + 'static,
    ) -> Result<(), EngineError> {
        let refuse = |what: String| EngineError::Replace {
            tensor: name.to_owned(),
            what,
        };
        let weight = self.weights.get(name).copied();
        let weight = weight.ok_or_else(|| refuse("the graph of the model has no such weight".to_owned()))?;
        self.forget_after(name);
        // Boxed first: where they lie then is where they stay.
        let bytes: SharedBytes = Box::new(bytes);
        let to = sys::ggml_type(ty);
        let tensor = weight.tensor.as_ptr();
        // SAFETY: the weight lies in the live model, which nobody else uses while `self` is borrowed mutably; no graph is
        // being computed. Its fields are changed together, to bytes that live as long as it points to them and that computing
        // only reads, or to what fits into the memory that it has: the graph of every computation reads them anew.
        unsafe {
            let columns = (*tensor).ne[0];
            if columns % ffi::ggml_blck_size(to) != 0 {
                return Err(refuse(format!("its rows of {columns} are not whole blocks of {ty}")));
            }
            let row = ffi::ggml_row_size(to, columns);
            let rows = ((*tensor).ne[1] * (*tensor).ne[2] * (*tensor).ne[3]) as usize;
            if row.checked_mul(rows) != Some(bytes.len()) {
                return Err(refuse(format!(
                    "{} bytes were given, but {ty} takes {rows} rows of {row}",
                    bytes.len()
                )));
            }
            let mut next = Place {
                ty: to,
                strides: [
                    ffi::ggml_type_size(to),
                    row,
                    row * (*tensor).ne[1] as usize,
                    row * ((*tensor).ne[1] * (*tensor).ne[2]) as usize,
                ],
                data: bytes.as_ptr().cast_mut().cast(),
            };
            let own = (self.replaced.get(name)).map_or_else(|| Place::of(tensor), |replaced| replaced.own);
            let shares =
                ffi::ggml_backend_buffer_is_host((*tensor).buffer) && next.data.addr().is_multiple_of(ALIGNMENT);
            if !shares {
                next.data = own.data;
                let buffers = ffi::ggml_backend_buffer_get_type((*tensor).buffer);
                let needed = ffi::ggml_backend_buft_get_alloc_size(buffers, &next.with(tensor));
                if needed > weight.capacity {
                    return Err(refuse(format!(
                        "it takes {needed} bytes in {ty}, but was loaded with {}",
                        weight.capacity
                    )));
                }
            }
            next.put_on(tensor);
            let replaced = self.replaced.entry(name.to_owned()).or_insert(Replaced {
                own,
                saved: None,
                shared: None,
            });
            if !shares {
                let _ = replaced.saved.get_or_insert_with(|| read(&own.with(tensor)));
                ffi::ggml_backend_tensor_set(tensor, bytes.as_ptr().cast(), 0, bytes.len());
            }
            replaced.shared = shares.then_some(bytes);
        }
        Ok(())
    }

    /// Gives a tensor back what it was loaded with.
    pub fn restore(&mut self, name: &str) {
        let Some((weight, replaced)) = self.weights.get(name).copied().zip(self.replaced.remove(name)) else {
            return;
        };
        self.forget_after(name);
        // SAFETY: as in `replace`; the place is the one that it was loaded to, and what is saved of it has its length.
        unsafe {
            let tensor = weight.tensor.as_ptr();
            replaced.own.put_on(tensor);
            if let Some(saved) = replaced.saved {
                ffi::ggml_backend_tensor_set(tensor, saved.as_ptr().cast(), 0, saved.len());
            }
        }
    }

    /// Forgets what is kept of chunks that a tensor had a part in.
    fn forget_after(&mut self, name: &str) {
        let place = self.place([name]);
        self.kept.retain(|_, kept| kept.at() <= place);
    }

    /// Returns where computing can begin when only these tensors have changed, in the order in which the model computes; 0 is
    /// its beginning, and all that is known of tensors that it does not have.
    pub fn place<'n>(&self, changed: impl IntoIterator<Item = &'n str>) -> usize {
        let tapped = self.tapped.as_ref();
        tapped.map_or(0, |tapped| tapped.tap.survey().start(changed.into_iter()))
    }

    /// Keeps of a chunk what the nodes from a place on need of those before it, with the tensors that are there now, so that
    /// [`ProbeModel::logits`] of this chunk begins there until a tensor before it is replaced. Nothing is kept, and that
    /// is no error, if it would be more than `limit` bytes together with what else is kept.
    ///
    /// # Errors
    ///
    /// As [`LoadedModel::logits`].
    pub fn keep(
        &mut self,
        chunk: &[i32],
        first: usize,
        place: usize,
        limit: u64,
        cancel: &Cancel,
    ) -> Result<(), EngineError> {
        let key = (chunk.to_vec(), first);
        let at = self.kept.get(&key).map_or(0, Checkpoint::at);
        let Some(Tapped { context, tap }) = self.tapped.as_mut().filter(|_| place > at) else {
            return Ok(());
        };
        let from = self.kept.remove(&key).unwrap_or_default();
        let left = limit.saturating_sub(self.kept.values().map(Checkpoint::bytes).sum());
        tap.run(from, Some(place), left);
        let walked = self.model.walk(context, chunk, first, cancel);
        let kept = tap.done();
        walked?;
        self.kept.extend(kept.map(|kept| (key, kept)));
        Ok(())
    }

    /// Forgets what is kept of all chunks.
    pub fn forget(&mut self) {
        self.kept.clear();
    }

    /// Returns how many nodes were not computed so far, since what they compute was kept or is not needed.
    pub fn passed_over(&self) -> u64 {
        self.tapped.as_ref().map_or(0, |tapped| tapped.tap.passed_over())
    }

    /// Computes one chunk as [`LoadedModel::logits`] does, and begins where it is kept.
    pub fn logits(
        &mut self,
        chunk: &[i32],
        first: usize,
        cancel: &Cancel,
        each: &mut EachLogits<'_>,
    ) -> Result<(), EngineError> {
        let Some(Tapped { context, tap }) = &mut self.tapped else {
            return self.model.logits(chunk, first, cancel, each);
        };
        self.model.check_chunk(0, chunk)?;
        let key = (chunk.to_vec(), first);
        let from = self.kept.remove(&key).unwrap_or_default();
        tap.run(from, None, 0);
        let mut next = first;
        let computed = self.model.logits_in(context, chunk, first, cancel, &mut |start, rows| {
            if !tap.is_sound() {
                // Any error ends the call; that this one is not handed on is seen below.
                return Err(EngineError::Cancelled);
            }
            next = start + rows.len();
            each(start, rows)
        });
        let sound = tap.is_sound();
        let from = tap.done();
        if sound {
            self.kept
                .extend(from.filter(|from| from.at() > 0).map(|from| (key, from)));
            return computed;
        }
        cancel.check()?;
        // The graph differs from the learned one. From now on all nodes are computed, and this chunk continues where it was.
        self.tapped = None;
        self.kept.clear();
        self.model.logits(chunk, first, cancel, &mut |start, rows| {
            let skip = next.saturating_sub(start).min(rows.len());
            if skip == rows.len() {
                return Ok(());
            }
            each(start + skip, &rows[skip..])
        })
    }
}

impl std::fmt::Debug for ProbeModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProbeModel")
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}
