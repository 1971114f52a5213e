//! Outputs against their manifests: the file's digests, every tensor at its place, the header; the manifest against
//! itself; its signatures. Nothing here writes, and nothing rests on a store.

mod document;
mod output;

use std::path::Path;
use std::path::PathBuf;

use crate::fs;
use crate::fs::PathError;
use crate::manifest;
use crate::manifest::Manifest;
use crate::sign;
use crate::sign::Envelope;
use crate::sign::PublicKey;

pub use document::Facts;
pub use document::check as check_document;

/// No file of signatures is longer: a manifest in base64, and some signatures.
const SIGNATURE_CAP: u64 = 2 * manifest::CAP;

/// What a problem is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The output.
    Output,
    /// The manifest.
    Manifest,
    /// The file with the signatures.
    Signature,
}

impl Part {
    /// Returns the word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Output => "output",
            Self::Manifest => "manifest",
            Self::Signature => "signature",
        }
    }
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Which of the files.
    pub part: Part,
    /// Where in it: a field (`predicate.forge.tensors[3].bytes`), a tensor (`tensor blk.3.ffn_down.weight`), or nothing for
    /// the file as a whole.
    pub place: String,
    /// What was found, and what was expected.
    pub what: String,
}

impl Problem {
    fn new(part: Part, place: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            part,
            place: place.into(),
            what: what.into(),
        }
    }
}

/// What an output is found to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It matches its manifest.
    Good,
    /// It matches its manifest, and the recipe no longer makes it.
    Stale,
    /// It does not match its manifest, or it has none.
    Bad,
    /// It is not there.
    Missing,
}

impl Verdict {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Good, Self::Stale, Self::Bad, Self::Missing];

    /// Returns the word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Stale => "stale",
            Self::Bad => "bad",
            Self::Missing => "missing",
        }
    }

    /// Returns whether it fails a verification. Only what is wrong or missing does.
    pub const fn is_failure(self) -> bool {
        matches!(self, Self::Bad | Self::Missing)
    }
}

/// What came of verifying an output.
#[derive(Debug)]
pub struct Verified {
    /// The output.
    pub output: PathBuf,
    /// All that is wrong; an output with none is good.
    pub problems: Vec<Problem>,
    /// How many bytes of the output were read.
    pub bytes: u64,
    /// How many tensors were compared with the manifest.
    pub tensors: usize,
    /// The names of the keys that a file of signatures says signed.
    pub signers: Vec<String>,
    /// How many of the given keys have signed.
    pub keys: usize,
    /// The name that the manifest has for the output, where that is not the file's.
    pub renamed_from: Option<String>,
    /// Whether the output is not there.
    pub is_missing: bool,
}

impl Verified {
    /// Returns what the output is found to be. `is_made` says whether its recipe makes it, as far as that is known.
    pub fn verdict(&self, is_made: bool) -> Verdict {
        if self.is_missing {
            Verdict::Missing
        } else if !self.problems.is_empty() {
            Verdict::Bad
        } else if is_made {
            Verdict::Good
        } else {
            Verdict::Stale
        }
    }
}

/// What to verify.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// The output.
    pub output: PathBuf,
    /// Its manifest.
    pub manifest: PathBuf,
}

impl Target {
    /// Returns an output with the manifest beside it.
    pub fn of_output(output: &Path) -> Self {
        Self {
            output: output.to_owned(),
            manifest: with_suffix(output, manifest::SUFFIX),
        }
    }

    /// Returns a manifest with the output beside it: the manifest's name without its end. `None` if the name has another
    /// end.
    pub fn of_manifest(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.strip_suffix(manifest::SUFFIX)?;
        (!name.is_empty()).then(|| Self {
            output: path.with_file_name(name),
            manifest: path.to_owned(),
        })
    }

    /// Returns where the signatures are.
    pub fn signatures(&self) -> PathBuf {
        with_suffix(&self.manifest, sign::SUFFIX)
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Reads a manifest's bytes. Only a plain file is one, and none is longer than [`manifest::CAP`].
pub fn read_manifest(path: &Path) -> Result<Vec<u8>, PathError> {
    fs::read_small(path, manifest::CAP)
}

/// Reads the envelope beside a manifest; `None` if there is none.
pub fn read_signatures(path: &Path) -> Result<Option<Vec<u8>>, PathError> {
    match fs::read_small(path, SIGNATURE_CAP) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Verifies an output. Every key in `keys` must have signed. `progress` gets the number of bytes of the output that were read.
pub fn verify(target: &Target, keys: &[PublicKey], progress: &(dyn Fn(u64) + Sync)) -> Verified {
    let mut verified = Verified {
        output: target.output.clone(),
        problems: Vec::new(),
        bytes: 0,
        tensors: 0,
        signers: Vec::new(),
        keys: 0,
        renamed_from: None,
        is_missing: matches!(fs::exists(&target.output), Ok(false)),
    };
    let bytes = match read_manifest(&target.manifest) {
        Ok(bytes) => bytes,
        Err(error) => {
            let what = if error.is_not_found() {
                format!("there is no `{}`", target.manifest.display())
            } else {
                error.to_string()
            };
            verified.problems.push(Problem::new(Part::Manifest, "", what));
            if verified.is_missing {
                let what = format!("there is no `{}`", target.output.display());
                verified.problems.push(Problem::new(Part::Output, "", what));
            }
            return verified;
        }
    };
    signatures(target, &bytes, keys, &mut verified);
    let manifest = match Manifest::parse(&bytes) {
        Ok(manifest) => manifest,
        Err(error) => {
            verified
                .problems
                .push(Problem::new(Part::Manifest, "", error.to_string()));
            return verified;
        }
    };
    let (facts, problems) = document::check(&manifest, &bytes);
    verified.problems.extend(problems);
    let named = manifest.subject.first().map(|subject| subject.name.clone());
    verified.renamed_from = named.filter(|name| target.output.file_name().is_none_or(|file| *file != **name));
    output::check(&target.output, &facts, progress, &mut verified);
    verified
}

fn signatures(target: &Target, manifest: &[u8], keys: &[PublicKey], verified: &mut Verified) {
    let path = target.signatures();
    let mut say = |place: &str, what: String| {
        verified.problems.push(Problem::new(Part::Signature, place, what));
    };
    let bytes = match read_signatures(&path) {
        Ok(Some(bytes)) => bytes,
        Ok(None) if keys.is_empty() => return,
        Ok(None) => {
            return say(
                "",
                format!("the manifest is not signed: there is no `{}`", path.display()),
            );
        }
        Err(error) => return say("", error.to_string()),
    };
    match Envelope::parse(&bytes) {
        Ok(envelope) => {
            let problems = envelope.problems(manifest, keys);
            for problem in &problems {
                let place = match problem {
                    sign::EnvelopeProblem::Payload { .. } => "payload",
                    sign::EnvelopeProblem::Type { .. } => "payloadType",
                    _ => "signatures",
                };
                say(place, problem.to_string());
            }
            let missing = problems
                .iter()
                .filter(|problem| matches!(problem, sign::EnvelopeProblem::Key { .. }))
                .count();
            verified.keys = keys.len() - missing;
            verified.signers = envelope
                .signatures
                .into_iter()
                .map(|signature| signature.keyid)
                .collect();
        }
        Err(error) => say("", error.to_string()),
    }
}
