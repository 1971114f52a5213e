//! What a file is, by what is in it.

use std::io::Read as _;
use std::path::Path;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;

use super::DiffError;
use crate::fs;
use crate::gguf;
use crate::gguf::Model;
use crate::imatrix::Imatrix;
use crate::manifest::Manifest;
use crate::policy::Table;
use crate::recipe::Recipe;

/// So much of a file tells whether it is text.
const START: u64 = 64 << 10;
/// No JSON document is longer: a manifest has some 400 bytes for each tensor.
const JSON_CAP: u64 = 256 << 20;
/// No imatrix is longer: four bytes for each column of each expert.
const CAP: u64 = 4 << 30;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A recipe.
    Recipe,
    /// A manifest.
    Manifest,
    /// A candidate, or any model in GGUF form.
    Candidate,
    /// An importance matrix.
    Imatrix,
    /// A table of types.
    Policy,
    /// An empty file, as git gives for one that is not there.
    Nothing,
}

impl Kind {
    /// Returns the kind with its article.
    pub fn words(self) -> &'static str {
        match self {
            Self::Recipe => "a recipe",
            Self::Manifest => "a manifest",
            Self::Candidate => "a candidate",
            Self::Imatrix => "an imatrix",
            Self::Policy => "a policy",
            Self::Nothing => "an empty file",
        }
    }
}

/// A file that was opened, to be compared.
pub enum Opened {
    /// A recipe.
    Recipe(Box<Recipe>),
    /// A manifest.
    Manifest(Box<Manifest>),
    /// A candidate: its headers; the tensors are read when they must be.
    Candidate(Candidate),
    /// An imatrix.
    Imatrix(Imatrix),
    /// A policy.
    Policy(Table),
    /// Nothing.
    Nothing,
}

/// A model file and where it is.
pub struct Candidate {
    /// Where.
    pub path: PathBuf,
    /// Its headers.
    pub model: Model,
}

impl Opened {
    /// Returns what it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Recipe(_) => Kind::Recipe,
            Self::Manifest(_) => Kind::Manifest,
            Self::Candidate(_) => Kind::Candidate,
            Self::Imatrix(_) => Kind::Imatrix,
            Self::Policy(_) => Kind::Policy,
            Self::Nothing => Kind::Nothing,
        }
    }
}

/// Says what a file is.
///
/// # Errors
///
/// [`DiffError::Unknown`] if it is nothing that can be compared; what goes wrong when it is read.
pub fn detect(path: &Path) -> Result<Kind, DiffError> {
    // Git names it where a version has no such file.
    if path == Path::new("/dev/null") {
        return Ok(Kind::Nothing);
    }
    let mut start = Vec::new();
    fs::open(path)?
        .take(START)
        .read_to_end(&mut start)
        .map_err(fs::PathError::on(path, "read"))?;
    let text = match std::str::from_utf8(&start) {
        Ok(text) => Some(text),
        // The last character may go on after what was read.
        Err(error) if error.error_len().is_none() && start.len() as u64 == START => {
            std::str::from_utf8(&start[..error.valid_up_to()]).ok()
        }
        Err(_) => None,
    };
    let text = text.filter(|text| !text.contains('\0'));
    match text {
        _ if start.is_empty() => Ok(Kind::Nothing),
        _ if start.starts_with(&gguf::MAGIC) => gguf_kind(path),
        Some(text) if text.trim_start().starts_with('{') => Ok(json(path)?.0),
        Some(_) => Ok(Kind::Recipe),
        None if may_be_dat(&start) => Ok(Kind::Imatrix),
        None => Err(DiffError::Unknown {
            path: path.to_owned(),
            problem: "it is neither text nor GGUF, and does not begin as an imatrix of the older form".to_owned(),
        }),
    }
}

/// The older form has no magic; but it begins with the number of entries, and the first one's name.
fn may_be_dat(start: &[u8]) -> bool {
    let number = |at: usize| -> Option<usize> {
        let bytes = start.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(i32::from_le_bytes(bytes)).ok()
    };
    let (Some(entries), Some(length)) = (number(0), number(4)) else {
        return false;
    };
    let name = start.get(8..).and_then(|rest| rest.get(..length));
    let plain = name.is_some_and(|name| !name.is_empty() && name.iter().all(u8::is_ascii_graphic));
    (1..1 << 20).contains(&entries) && plain
}

fn gguf_kind(path: &Path) -> Result<Kind, DiffError> {
    let model = Model::open(path)?;
    let sums = |name: &str| name.ends_with(".in_sum2") || name.ends_with(".counts");
    let is_imatrix = model.metadata().get_str("general.type") == Some("imatrix")
        || (!model.tensors().is_empty() && model.tensors().iter().all(|tensor| sums(&tensor.info.name)));
    Ok(if is_imatrix { Kind::Imatrix } else { Kind::Candidate })
}

fn json(path: &Path) -> Result<(Kind, Value), DiffError> {
    let unknown = |problem: String| DiffError::Unknown {
        path: path.to_owned(),
        problem,
    };
    let bytes = fs::read_small(path, JSON_CAP)?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|error| unknown(format!("it is no JSON: {error}")))?;
    let schema = value.get("schema").and_then(Value::as_str).unwrap_or_default();
    let kind = if value.get("_type").and_then(Value::as_str) == Some(crate::manifest::STATEMENT_TYPE) {
        Kind::Manifest
    } else if schema.starts_with("policy.") {
        Kind::Policy
    } else {
        let found = if schema.is_empty() {
            "a JSON document without a schema that forge knows".to_owned()
        } else {
            format!("a JSON document of schema `{schema}`")
        };
        return Err(unknown(format!("it is {found}")));
    };
    Ok((kind, value))
}

/// Opens a file that is no recipe: what recipes extend is found by whoever calls.
pub fn open(path: &Path, kind: Kind) -> Result<Opened, DiffError> {
    let unknown = |problem: String| DiffError::Unknown {
        path: path.to_owned(),
        problem,
    };
    Ok(match kind {
        Kind::Recipe => return Err(unknown("it is a recipe, which is read with what it extends".to_owned())),
        Kind::Nothing => Opened::Nothing,
        Kind::Manifest => {
            let manifest = serde_json::from_value(json(path)?.1).map_err(|error| unknown(error.to_string()))?;
            Opened::Manifest(Box::new(manifest))
        }
        Kind::Policy => {
            Opened::Policy(serde_json::from_value(json(path)?.1).map_err(|error| unknown(error.to_string()))?)
        }
        Kind::Candidate => Opened::Candidate(Candidate {
            path: path.to_owned(),
            model: Model::open(path)?,
        }),
        Kind::Imatrix => {
            let bytes = fs::read_small(path, CAP)?;
            let imatrix = Imatrix::parse(&bytes).map_err(|source| {
                if bytes.starts_with(&gguf::MAGIC) {
                    DiffError::Imatrix {
                        path: path.to_owned(),
                        source: Box::new(source),
                    }
                } else {
                    // The older form has no magic: what is not text is taken for it, and most likely is something else.
                    unknown(format!("as an imatrix of the older form, {source}"))
                }
            })?;
            Opened::Imatrix(imatrix)
        }
    })
}
