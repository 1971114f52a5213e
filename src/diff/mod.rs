//! Compares two things of one kind: recipes, tables of figures, manifests, candidates, imatrices or policies. What a file is, is seen from what
//! is in it. Large files are read in pieces, and not at all where the store knows what is in them (`docs/diff.md`).

mod candidates;
mod detect;
mod figures;
mod imatrices;
mod known;
mod listing;
mod manifests;
mod metrics;
mod policies;
mod recipes;
mod tensor;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use crate::container;
use crate::fs;
use crate::policy::Listing;
use crate::store::Store;

pub use detect::Kind;
pub use detect::Opened;
pub use detect::detect;
pub use detect::open;
pub use detect::open_json;
pub use figures::Comparison;
pub use figures::Evaluation;
pub use figures::Measured;
pub use figures::Unpaired;
pub use figures::Verdict;
pub use known::read_figures;
pub use listing::listing;
pub use listing::policy_of;
pub use listing::table_of;

/// The version of the document.
const SCHEMA: &str = "forge.diff.v1";

/// How a row came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// Only the second has it.
    Added,
    /// Only the first has it.
    Removed,
    /// Both have it, not alike.
    Changed,
}

/// A difference of figures that were measured on the same chunks: second less first.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Paired {
    /// The mean over chunks.
    pub value: f64,
    /// The 95 % interval, by bootstrap over chunks.
    pub ci95: [f64; 2],
}

/// One thing that differs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What.
    pub what: String,
    /// How.
    pub change: Change,
    /// In the first; nothing where it is not there.
    pub before: Option<String>,
    /// In the second.
    pub after: Option<String>,
    /// How much it matters beside the other rows of its part: bytes, or a share. Rows stand in this order.
    pub effect: Option<f64>,
    /// What else there is to say.
    pub note: Option<String>,
    /// The paired difference, for figures.
    pub paired: Option<Paired>,
}

/// A part of what is compared.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Part {
    /// Its name, as `tensors`.
    pub name: &'static str,
    /// What only the second has.
    pub added: u64,
    /// What only the first has.
    pub removed: u64,
    /// What both have, not alike.
    pub changed: u64,
    /// What both have alike.
    pub same: u64,
    /// What differs, by effect.
    pub rows: Vec<Row>,
}

/// How two things differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diff {
    /// The version of this form.
    pub schema: &'static str,
    /// What they are.
    pub kind: Kind,
    /// The first, as it was named.
    pub a: String,
    /// The second.
    pub b: String,
    /// Whether they differ.
    pub differ: bool,
    /// The parts in which they do, and those that were compared at all.
    pub parts: Vec<Part>,
    /// Whether candidates became better: those that both recipes, or both tables of figures, have.
    pub comparisons: Vec<Comparison>,
    /// What else there is to say.
    pub notes: Vec<String>,
}

/// Why two things cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// They are of different kinds.
    #[error("`{a}` is {}, and `{b}` is {}", kind_a.words(), kind_b.words())]
    Kinds {
        /// The first.
        a: String,
        /// What it is.
        kind_a: Kind,
        /// The second.
        b: String,
        /// What it is.
        kind_b: Kind,
    },
    /// A file is nothing that can be compared.
    #[error("`{}` is not a recipe, table of figures, manifest, candidate, imatrix or policy: {problem}", path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
        /// What was found.
        problem: String,
    },
    /// A file has no types to be listed.
    #[error("`{}` is {}, which has no tensors", path.display(), kind.words())]
    Unlisted {
        /// The file.
        path: PathBuf,
        /// What it is.
        kind: Kind,
    },
    /// A file cannot be read.
    #[error(transparent)]
    Path(#[from] fs::PathError),
    /// A GGUF file is broken.
    #[error(transparent)]
    Gguf(#[from] container::OpenError),
    /// A part of a file cannot be read.
    #[error("`{}` cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// An imatrix is broken.
    #[error("`{}`: {source}", path.display())]
    Imatrix {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<crate::imatrix::ImatrixError>,
    },
}

/// Compares two things. With a store, candidates that forge wrote are not read, and figures of both are compared where both
/// were measured on the same chunks.
pub fn compare(a: &Opened, b: &Opened, names: [&str; 2], store: Option<&Store>) -> Result<Diff, DiffError> {
    let mut notes = Vec::new();
    let (kind, parts) = match (a, b) {
        (Opened::Recipe(a), Opened::Recipe(b)) => (Kind::Recipe, recipes::compare(a, b)),
        (Opened::Manifest(a), Opened::Manifest(b)) => (Kind::Manifest, manifests::compare(a, b)),
        (Opened::Policy(a), Opened::Policy(b)) => (Kind::Policy, policies::compare(&Listing::of(a), &Listing::of(b))),
        (Opened::Imatrix(a), Opened::Imatrix(b)) => (Kind::Imatrix, imatrices::compare(a, b)),
        (Opened::Candidate(a), Opened::Candidate(b)) => {
            (Kind::Candidate, candidates::compare(a, b, store, &mut notes)?)
        }
        (Opened::Metrics(a), Opened::Metrics(b)) => {
            let mut diff = Diff::of(Kind::Metrics, names, metrics::compare(a, b), notes);
            if diff.differ {
                diff.add_figures(&metrics::evaluations(a, store), &metrics::evaluations(b, store));
            }
            return Ok(diff);
        }
        _ => {
            return Err(DiffError::Kinds {
                a: names[0].to_owned(),
                kind_a: a.kind(),
                b: names[1].to_owned(),
                kind_b: b.kind(),
            });
        }
    };
    Ok(Diff::of(kind, names, parts, notes))
}

/// Compares the types of two candidates, wherever they are known from.
pub fn compare_listings(a: &Listing, b: &Listing, names: [&str; 2]) -> Diff {
    Diff::of(Kind::Policy, names, policies::compare(a, b), Vec::new())
}

impl Diff {
    fn of(kind: Kind, names: [&str; 2], parts: Vec<Part>, notes: Vec<String>) -> Self {
        Self {
            schema: SCHEMA,
            kind,
            a: names[0].to_owned(),
            b: names[1].to_owned(),
            differ: parts.iter().any(Part::differs),
            parts,
            comparisons: Vec::new(),
            notes,
        }
    }

    /// Adds the figures of the candidates that both have.
    pub fn add_figures(&mut self, a: &[Evaluation], b: &[Evaluation]) {
        let (part, comparisons) = figures::compare(a, b);
        self.parts.push(part);
        self.comparisons = comparisons;
    }
}

impl Part {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            added: 0,
            removed: 0,
            changed: 0,
            same: 0,
            rows: Vec::new(),
        }
    }

    /// Returns whether anything in it differs.
    pub fn differs(&self) -> bool {
        self.added + self.removed + self.changed > 0
    }

    /// Compares two maps. `row` makes a row of what differs, and nothing of what does not.
    fn of<V>(
        name: &'static str,
        a: &BTreeMap<String, V>,
        b: &BTreeMap<String, V>,
        row: impl Fn(Option<&V>, Option<&V>) -> Option<Row>,
    ) -> Self {
        let mut part = Self::new(name);
        let names = a.keys().chain(b.keys().filter(|name| !a.contains_key(*name)));
        for what in names {
            match row(a.get(what), b.get(what)) {
                None => part.same += 1,
                Some(row) => part.push(Row {
                    what: what.clone(),
                    ..row
                }),
            }
        }
        part.sort();
        part
    }

    fn push(&mut self, row: Row) {
        *match row.change {
            Change::Added => &mut self.added,
            Change::Removed => &mut self.removed,
            Change::Changed => &mut self.changed,
        } += 1;
        self.rows.push(row);
    }

    /// The largest effect first; what has none stays in its order.
    fn sort(&mut self) {
        let effect = |row: &Row| row.effect.unwrap_or(0.0).abs();
        self.rows.sort_by(|a, b| effect(b).total_cmp(&effect(a)));
    }
}

impl Row {
    /// Makes a row of two texts; nothing where both are the same.
    fn of(before: Option<String>, after: Option<String>) -> Option<Self> {
        let change = match (&before, &after) {
            (a, b) if a == b => return None,
            (None, _) => Change::Added,
            (_, None) => Change::Removed,
            _ => Change::Changed,
        };
        Some(Self {
            what: String::new(),
            change,
            before,
            after,
            effect: None,
            note: None,
            paired: None,
        })
    }

    fn effect(self, effect: f64) -> Self {
        Self {
            effect: Some(effect),
            ..self
        }
    }

    fn note(self, note: impl Into<String>) -> Self {
        Self {
            note: Some(note.into()),
            ..self
        }
    }
}

/// Writes a difference of sizes with its sign.
fn delta(bytes: i128) -> String {
    let size = crate::prose::bytes(u64::try_from(bytes.unsigned_abs()).unwrap_or(u64::MAX));
    if bytes < 0 {
        format!("-{size}")
    } else {
        format!("+{size}")
    }
}
