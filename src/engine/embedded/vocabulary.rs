//! A model's vocabulary: texts to tokens, exactly as llama.cpp's tools do it.
#![allow(unsafe_code)]

use llama_cpp_sys_2 as ffi;

use super::log::Capture;
use super::sys::Model;
use crate::engine::EngineError;
use crate::engine::ModelFiles;

/// A model of which only the vocabulary was loaded: metadata is read, no weights are.
pub struct Vocabulary {
    model: Model,
}

impl Vocabulary {
    /// Loads the vocabulary of a GGUF model.
    pub fn open(files: &ModelFiles) -> Result<Self, EngineError> {
        // SAFETY: it returns plain values.
        let mut params = unsafe { ffi::llama_model_default_params() };
        params.vocab_only = true;
        params.n_gpu_layers = 0;
        let model = Model::load(files, params)?;
        Ok(Self { model })
    }

    /// Turns a text into tokens, with the tokens before and after a text that the vocabulary asks for (as
    /// `llama-imatrix` and `llama-perplexity` do before they cut chunks). With `parse_special`, texts of special tokens
    /// such as `<|im_start|>` become those tokens.
    pub fn tokenize(&self, text: &str, parse_special: bool) -> Result<Vec<i32>, EngineError> {
        self.tokens(text, true, parse_special)
    }

    /// Turns a text into tokens and adds none: for the second and later pieces of one text.
    pub fn tokenize_bare(&self, text: &str, parse_special: bool) -> Result<Vec<i32>, EngineError> {
        self.tokens(text, false, parse_special)
    }

    fn tokens(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<i32>, EngineError> {
        let capture = Capture::begin();
        let bytes = text.len();
        let error = |what| EngineError::Tokenize {
            bytes,
            what,
            log: capture.tail(),
        };
        // A token is at least one byte, but a prefix space and special tokens may be added.
        let length = i32::try_from(bytes).ok().filter(|length| *length < i32::MAX - 64);
        let length = length.ok_or_else(|| error("it is longer than 2 GiB; split it"))?;
        let mut capacity = bytes / 3 + 64;
        loop {
            let mut tokens = vec![0_i32; capacity];
            // SAFETY: the text has `length` bytes and `tokens` the stated capacity; the vocabulary is live.
            let count = unsafe {
                ffi::llama_tokenize(
                    self.model.vocabulary(),
                    text.as_ptr().cast(),
                    length,
                    tokens.as_mut_ptr(),
                    i32::try_from(capacity).unwrap_or(i32::MAX),
                    add_special,
                    parse_special,
                )
            };
            if let Ok(count) = usize::try_from(count) {
                tokens.truncate(count);
                return Ok(tokens);
            }
            // A negative count is the capacity needed.
            let needed = usize::try_from(count.unsigned_abs()).unwrap_or(usize::MAX);
            if count == i32::MIN || needed <= capacity {
                return Err(error("llama.cpp gave no tokens"));
            }
            capacity = needed;
        }
    }

    /// Returns true if a text begins with [`Vocabulary::bos`]; chunks then begin with it too.
    pub fn add_bos(&self) -> bool {
        // SAFETY: the vocabulary is live.
        unsafe { ffi::llama_vocab_get_add_bos(self.model.vocabulary()) }
    }

    /// Returns true if a text ends with an end token. llama.cpp's tools refuse to score such models.
    pub fn add_eos(&self) -> bool {
        // SAFETY: the vocabulary is live.
        unsafe { ffi::llama_vocab_get_add_eos(self.model.vocabulary()) }
    }

    /// Returns the token that begins a text, -1 if there is none.
    pub fn bos(&self) -> i32 {
        // SAFETY: the vocabulary is live.
        unsafe { ffi::llama_vocab_bos(self.model.vocabulary()) }
    }

    /// Returns the number of tokens.
    pub fn size(&self) -> usize {
        // SAFETY: the vocabulary is live.
        usize::try_from(unsafe { ffi::llama_vocab_n_tokens(self.model.vocabulary()) }).unwrap_or(0)
    }
}

impl std::fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vocabulary")
            .field("size", &self.size())
            .field("add_bos", &self.add_bos())
            .finish()
    }
}
