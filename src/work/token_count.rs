//! How many chunks texts have in the tokens of a model, counted before a build begins. Nothing is stored: the actions of the steps
//! tokenize the texts again, with the digests of everything that they read.

use std::ffi::OsString;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

use super::StepError;
use super::documents::TEXT_CAP;
use crate::digest::Fingerprint;
use crate::engine::Engines;
use crate::engine::ModelFiles;
use crate::engine::Role;
use crate::engine::Transcript;
use crate::fs;
use crate::vocab::Chunking;

/// More bytes than a token has on average, in any text that people calibrate or evaluate with. Texts that are longer than the
/// wanted tokens can be are not tokenized.
const BYTES_PER_TOKEN: u64 = 32;

/// Texts, and the model in whose tokens they are counted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TokenCount {
    /// The engine that tokenizes.
    pub engine: Fingerprint,
    /// The files of the model, the first part first.
    model: Vec<OsString>,
    /// The files of the texts, in order.
    texts: Vec<OsString>,
    /// Whether each text is divided by itself.
    pub chunking: Chunking,
    /// Whether texts of special tokens become those tokens.
    pub parse_special: bool,
    /// Tokens in a chunk.
    pub context: u32,
    /// Counting ends at this number of chunks.
    pub enough: u64,
}

impl TokenCount {
    /// Asks for the number of chunks of `context` tokens, up to `enough`.
    pub fn new(
        engine: Fingerprint,
        model: &[PathBuf],
        texts: &[PathBuf],
        chunking: Chunking,
        parse_special: bool,
        (context, enough): (u32, u64),
    ) -> Self {
        let os = |paths: &[PathBuf]| paths.iter().map(|path| path.clone().into_os_string()).collect();
        Self {
            engine,
            model: os(model),
            texts: os(texts),
            chunking,
            parse_special,
            context,
            enough,
        }
    }

    /// Counts in this process.
    pub(super) fn count_here(&self, engines: &Engines) -> Result<Counted, StepError> {
        let engine = engines
            .by_fingerprint(Role::Evaluator, &self.engine)
            .ok_or(StepError::NoEngine {
                role: Role::Evaluator,
                fingerprint: self.engine,
            })?;
        let model = self
            .model
            .iter()
            .map(|path| Ok((PathBuf::from(path), fs::open(Path::new(path))?)));
        let model = ModelFiles::new(model.collect::<Result<Vec<_>, StepError>>()?);
        let transcript = Transcript::begin();
        let tokenizer = model.and_then(|model| engine.tokenizer(&model)).map_err(|error| {
            // The engine logs the reason.
            let lines = transcript.lines();
            let reason = lines.iter().find(|line| line.contains("error")).map(|line| line.trim());
            StepError::input(match reason {
                Some(reason) => format!("{error}: {reason}"),
                None => error.to_string(),
            })
        })?;
        let context = u64::from(self.context.max(1));
        let most = self.enough.saturating_mul(context).saturating_mul(BYTES_PER_TOKEN);
        let mut counted = Counted::default();
        let mut joined = String::new();
        for path in &self.texts {
            let path = Path::new(path);
            let file = fs::open(path)?;
            if fs::Stamp::of_file(&file, path)?.size >= most {
                counted.chunks = self.enough;
                return Ok(counted);
            }
            let bytes = fs::read_open(&file, path, TEXT_CAP)?;
            // What is no UTF-8 is reported for the corpus.
            joined.push_str(&String::from_utf8_lossy(&bytes));
            if self.chunking == Chunking::PerFile {
                counted.add(&tokenizer.tokenize(&joined, self.parse_special), context)?;
                joined.clear();
            } else if joined.len() as u64 >= most {
                counted.chunks = self.enough;
            }
            if counted.chunks >= self.enough {
                counted.chunks = self.enough;
                return Ok(counted);
            }
        }
        if self.chunking == Chunking::Joined {
            counted.add(&tokenizer.tokenize(&joined, self.parse_special), context)?;
        }
        counted.chunks = counted.chunks.min(self.enough);
        Ok(counted)
    }
}

/// What was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Whole chunks.
    pub chunks: u64,
    /// Tokens.
    pub tokens: u64,
}

impl Counted {
    fn add(&mut self, tokens: &Result<Vec<i32>, crate::engine::EngineError>, context: u64) -> Result<(), StepError> {
        let tokens = match tokens {
            Ok(tokens) => tokens.len() as u64,
            Err(error) => return Err(StepError::input(format!("tokenizing the corpus: {error}"))),
        };
        self.tokens += tokens;
        self.chunks += tokens / context;
        Ok(())
    }
}
