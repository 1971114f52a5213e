//! What a file is, by what is in it.

use std::path::Path;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;

use super::DiffError;
use crate::container;
use crate::container::Source;
use crate::content::Content;
use crate::fs;
use crate::imatrix::Imatrix;
use crate::manifest::Manifest;
use crate::policy::Table;
use crate::recipe::Recipe;
use crate::report::metrics;
use crate::report::metrics::Metrics;

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
    /// A table of figures (`metrics.json`).
    Metrics,
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
            Self::Metrics => "a table of figures",
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
    /// A table of figures.
    Metrics(Metrics),
    /// Nothing.
    Nothing,
}

/// A model file and where it is.
pub struct Candidate {
    /// Where.
    pub path: PathBuf,
    /// Its headers.
    pub model: Box<dyn Source>,
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
            Self::Metrics(_) => Kind::Metrics,
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
    match Content::of(path)? {
        Content::Empty => Ok(Kind::Nothing),
        Content::Text => Ok(Kind::Recipe),
        Content::Json => Ok(json(path)?.0),
        Content::Model => Ok(Kind::Candidate),
        Content::Imatrix | Content::OldImatrix => Ok(Kind::Imatrix),
        Content::Damaged(error) => Err(error.into()),
        content @ (Content::Safetensors | Content::Unknown) => Err(DiffError::Unknown {
            path: path.to_owned(),
            problem: format!("it is {}", content.as_str()),
        }),
    }
}

fn json(path: &Path) -> Result<(Kind, Value), DiffError> {
    json_of(path, &fs::read_small(path, JSON_CAP)?)
}

fn json_of(path: &Path, bytes: &[u8]) -> Result<(Kind, Value), DiffError> {
    let unknown = |problem: String| DiffError::Unknown {
        path: path.to_owned(),
        problem,
    };
    let value: Value = serde_json::from_slice(bytes).map_err(|error| unknown(format!("it is not JSON: {error}")))?;
    let schema = value.get("schema").and_then(Value::as_str).unwrap_or_default();
    let kind = if value.get("_type").and_then(Value::as_str) == Some(crate::manifest::STATEMENT_TYPE) {
        Kind::Manifest
    } else if schema.starts_with("policy.") {
        Kind::Policy
    } else if schema == metrics::SCHEMA {
        Kind::Metrics
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

/// Opens a JSON document that is not in a file; `path` is for messages.
///
/// # Errors
///
/// [`DiffError::Unknown`].
pub fn open_json(path: &Path, bytes: &[u8]) -> Result<Opened, DiffError> {
    let (kind, value) = json_of(path, bytes)?;
    opened(path, kind, value)
}

fn opened(path: &Path, kind: Kind, value: Value) -> Result<Opened, DiffError> {
    let opened = match kind {
        Kind::Manifest => serde_json::from_value(value).map(|manifest| Opened::Manifest(Box::new(manifest))),
        Kind::Metrics => serde_json::from_value(value).map(Opened::Metrics),
        _ => serde_json::from_value(value).map(Opened::Policy),
    };
    opened.map_err(|error| DiffError::Unknown {
        path: path.to_owned(),
        problem: error.to_string(),
    })
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
        Kind::Manifest | Kind::Policy | Kind::Metrics => opened(path, kind, json(path)?.1)?,
        Kind::Candidate => Opened::Candidate(Candidate {
            path: path.to_owned(),
            model: container::open(path)?,
        }),
        Kind::Imatrix => {
            let bytes = fs::read_small(path, CAP)?;
            let imatrix = Imatrix::parse(&bytes).map_err(|source| {
                if container::recognize(&bytes).is_some() {
                    DiffError::Imatrix {
                        path: path.to_owned(),
                        source: Box::new(source),
                    }
                } else {
                    // The older form has no magic: what is not text is taken for it, and most likely is something else.
                    unknown(format!("it cannot be read as a legacy imatrix: {source}"))
                }
            })?;
            Opened::Imatrix(imatrix)
        }
    })
}
