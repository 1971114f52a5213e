//! Owners of llama.cpp's objects and the calls that need no object.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::ffi::CString;
use std::ffi::c_char;
use std::ffi::c_void;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr::NonNull;

use llama_cpp_sys_2 as ffi;

use super::log::Aliases;
use super::log::Capture;
use super::log::start_backend;
use crate::engine::EngineError;
use crate::engine::ModelFiles;
use crate::fisher::InputRounding;
use crate::tensor_type::TensorType;

/// llama.cpp's evaluation callback.
pub(super) type Callback = unsafe extern "C" fn(*mut ffi::ggml_tensor, bool, *mut c_void) -> bool;

/// Copies a version that llama.cpp returned; "unknown" for a null pointer.
fn version_text(text: *const c_char) -> String {
    if text.is_null() {
        return "unknown".to_owned();
    }
    // SAFETY: ggml and llama.cpp return string literals here.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Returns the versions of what is linked: (`llama.cpp`, `ggml`, commit of ggml).
pub(in crate::engine) fn versions() -> (String, String, String) {
    // SAFETY: the three functions return pointers to literals and have no preconditions.
    unsafe {
        (
            version_text(ffi::llama_version()),
            version_text(ffi::ggml_version()),
            version_text(ffi::ggml_commit()),
        )
    }
}

/// Returns the names and descriptions of the devices that computations may run on, in llama.cpp's order.
pub(in crate::engine) fn devices() -> Vec<(String, String)> {
    start_backend();
    // SAFETY: indices are below the count, and devices live as long as the process.
    unsafe {
        (0..ffi::ggml_backend_dev_count())
            .map(|index| {
                let device = ffi::ggml_backend_dev_get(index);
                (
                    version_text(ffi::ggml_backend_dev_name(device)),
                    version_text(ffi::ggml_backend_dev_description(device)),
                )
            })
            .collect()
    }
}

/// Returns the C library's name and version: `qsort` (IQ1 kernels) and `expf` are its.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(in crate::engine) fn c_library() -> String {
    unsafe extern "C" {
        fn gnu_get_libc_version() -> *const c_char;
    }
    // SAFETY: glibc returns a literal.
    format!("glibc {}", version_text(unsafe { gnu_get_libc_version() }))
}

/// Returns the C library's name and version: `qsort` (IQ1 kernels) and `expf` are its.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(in crate::engine) fn c_library() -> String {
    std::env::consts::OS.to_owned()
}

/// Returns how the CPU's products with weights of a type round their inputs.
pub(super) fn input_rounding(ty: TensorType) -> Option<InputRounding> {
    // SAFETY: a type of ggml's; the traits are a table that lives as long as the process.
    let inputs = unsafe {
        let traits = ffi::ggml_get_type_traits_cpu(ggml_type(ty));
        traits.as_ref()?.vec_dot_type
    };
    let is = |ty: TensorType| inputs == ggml_type(ty);
    if is(TensorType::Q8_K) {
        Some(InputRounding::Blocks256)
    } else if is(TensorType::Q8_0) || is(TensorType::Q8_1) {
        Some(InputRounding::Blocks32)
    } else {
        None
    }
}

/// Returns ggml's number of a type. The numbers in files and in ggml's headers are the same.
pub(super) fn ggml_type(ty: TensorType) -> ffi::ggml_type {
    ty.id() as ffi::ggml_type
}

/// Turns a path into what llama.cpp takes: its bytes, without a zero byte.
fn c_path(path: &Path) -> Result<CString, EngineError> {
    let error = |what| EngineError::Path {
        path: path.to_owned(),
        what,
    };
    CString::new(path.as_os_str().as_bytes()).map_err(|_| error("it contains a zero byte"))
}

/// A loaded model (or only its vocabulary).
pub(super) struct Model(NonNull<ffi::llama_model>);

// SAFETY: llama.cpp keeps no thread-local state in a model; it is only moved, never shared by reference across threads.
unsafe impl Send for Model {}

impl Model {
    /// Loads a model from its open files.
    pub(super) fn load(files: &ModelFiles, params: ffi::llama_model_params) -> Result<Self, EngineError> {
        let capture = Capture::begin();
        let paths = files.paths();
        let names: Vec<CString> = paths.iter().map(|(path, _)| c_path(path)).collect::<Result<_, _>>()?;
        let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
        let _aliases = Aliases::begin(&paths);
        // SAFETY: the array holds as many paths as stated, which outlive the call, as the open files do that they lead to;
        // nobody else owns the result.
        let model = unsafe { ffi::llama_model_load_from_splits(pointers.as_mut_ptr(), pointers.len(), params) };
        NonNull::new(model).map(Self).ok_or_else(|| EngineError::Load {
            path: files.path().to_owned(),
            log: capture.tail(),
        })
    }

    pub(super) fn as_ptr(&self) -> *mut ffi::llama_model {
        self.0.as_ptr()
    }

    /// Returns the vocabulary, which lives as long as the model.
    pub(super) fn vocabulary(&self) -> *const ffi::llama_vocab {
        // SAFETY: the model is live.
        unsafe { ffi::llama_model_get_vocab(self.0.as_ptr()) }
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: this is the only owner, and contexts are dropped before (fields drop in declared order).
        unsafe { ffi::llama_model_free(self.0.as_ptr()) }
    }
}

/// A context: key-value cache and compute buffers of one computation.
pub(super) struct Context(NonNull<ffi::llama_context>);

// SAFETY: as for `Model`; a context is used by one thread at a time because every use takes `&mut`.
unsafe impl Send for Context {}

impl Context {
    /// Takes what `llama_init_from_model` returned; `None` for a null pointer.
    ///
    /// # Safety
    ///
    /// `context` is null or owned by nobody else, and its model outlives the result.
    pub(super) unsafe fn own(context: *mut ffi::llama_context) -> Option<Self> {
        NonNull::new(context).map(Self)
    }

    pub(super) fn as_ptr(&mut self) -> *mut ffi::llama_context {
        self.0.as_ptr()
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: this is the only owner and the model is still live.
        unsafe { ffi::llama_free(self.0.as_ptr()) }
    }
}

/// A batch of tokens with a fixed capacity, one sequence each.
pub(super) struct Batch {
    raw: ffi::llama_batch,
    capacity: usize,
}

impl Batch {
    /// Allocates memory for `capacity` tokens.
    pub(super) fn new(capacity: u32) -> Self {
        // SAFETY: no preconditions; the three arrays of `capacity` entries are freed in `drop`.
        let raw = unsafe { ffi::llama_batch_init(capacity.cast_signed(), 0, 1) };
        Self {
            raw,
            capacity: capacity as usize,
        }
    }

    /// Forgets the tokens.
    pub(super) fn clear(&mut self) {
        self.raw.n_tokens = 0;
    }

    /// Adds a token at a position of a sequence; false if the batch is full.
    pub(super) fn push(&mut self, token: i32, position: i32, sequence: i32, output: bool) -> bool {
        let at = self.raw.n_tokens as usize;
        if at >= self.capacity {
            return false;
        }
        // SAFETY: `at` is below the capacity of the arrays, and each has one sequence id per token.
        unsafe {
            *self.raw.token.add(at) = token;
            *self.raw.pos.add(at) = position;
            *self.raw.n_seq_id.add(at) = 1;
            **self.raw.seq_id.add(at) = sequence;
            *self.raw.logits.add(at) = i8::from(output);
        }
        self.raw.n_tokens += 1;
        true
    }

    pub(super) fn raw(&self) -> ffi::llama_batch {
        self.raw
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        // SAFETY: made by `llama_batch_init` and freed once.
        unsafe { ffi::llama_batch_free(self.raw) }
    }
}
