//! Sections of steps as declared: typed and with defaults, sweeps not yet expanded.

use std::collections::BTreeMap;

use crate::method::Method;
use crate::method::Open;
use crate::method::WrittenBudget;
use crate::quantity::Decimal;
use crate::recipe::model::EngineRef;
use crate::recipe::model::Pattern;
use crate::recipe::model::Place;
use crate::recipe::model::RecipePath;
use crate::recipe::model::SourceName;
use crate::requirement::Requirement;
use crate::vocab::Chunking;
use crate::vocab::MergeMode;
use crate::vocab::Severity;

use crate::syntax::sweep::Sweep;

/// A section: its name, where that stands, and what the section says.
#[derive(Debug)]
pub(crate) struct Decl<T> {
    pub(crate) name: String,
    pub(crate) place: Place,
    pub(crate) body: T,
}

/// All sections of steps, each kind in the order of names.
#[derive(Debug, Default)]
pub(crate) struct Decls {
    pub(crate) corpora: Vec<Decl<Corpus>>,
    pub(crate) moments: Vec<Decl<Moments>>,
    pub(crate) matrices: Vec<Decl<Imatrix>>,
    pub(crate) joins: Vec<Decl<Join>>,
    pub(crate) policies: Vec<Decl<Policy>>,
    pub(crate) promotes: Vec<Decl<Promote>>,
    pub(crate) evals: Vec<Decl<Eval>>,
    pub(crate) metrics: Vec<Decl<Metrics>>,
    pub(crate) gates: Vec<Decl<Gate>>,
    /// The engines that sections name, by kind and name of the section.
    pub(crate) engines: BTreeMap<(String, String), EngineRef>,
}

#[derive(Debug)]
pub(crate) struct Corpus {
    pub(crate) files: Vec<RecipePath>,
    pub(crate) chunking: Chunking,
    pub(crate) parse_special: bool,
}

#[derive(Debug)]
pub(crate) struct Moments {
    pub(crate) model: SourceName,
    pub(crate) corpus: Sweep<String>,
    pub(crate) context: Sweep<u32>,
    pub(crate) chunks: Option<Sweep<u64>>,
    pub(crate) block: u32,
    pub(crate) held_out: u32,
}

#[derive(Debug)]
pub(crate) enum Imatrix {
    Collect {
        model: SourceName,
        corpus: Sweep<String>,
        context: Sweep<u32>,
        chunks: Option<Sweep<u64>>,
        process_output: Sweep<bool>,
        block: u32,
    },
    Merge {
        inputs: Vec<(String, Place)>,
        weights: Vec<Decimal>,
        mode: Sweep<MergeMode>,
    },
    Moments {
        moments: Sweep<String>,
        process_output: Sweep<bool>,
    },
    Import {
        source: SourceName,
    },
}

#[derive(Debug)]
pub(crate) struct Join {
    pub(crate) model: SourceName,
    pub(crate) imatrix: Sweep<String>,
    pub(crate) missing: Severity,
    pub(crate) unrouted: Severity,
    pub(crate) min_count: Option<u64>,
}

/// Where a policy's importance data come from.
#[derive(Debug)]
pub(crate) enum Data {
    None,
    Imatrix(Sweep<String>),
    Join(Sweep<String>),
}

#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) model: SourceName,
    pub(crate) data: Data,
    pub(crate) method: Open<Method>,
    /// The budgets, if the method keeps to one.
    pub(crate) budgets: Option<Sweep<WrittenBudget>>,
    pub(crate) keep: Vec<Pattern>,
    /// Whether codes are refined.
    pub(crate) refined: Sweep<bool>,
    /// The second moments that codes are refined under.
    pub(crate) moments: Option<Sweep<String>>,
}

#[derive(Debug)]
pub(crate) struct Promote {
    pub(crate) policy: Sweep<String>,
    pub(crate) allow_requantize: bool,
}

#[derive(Debug)]
pub(crate) struct Eval {
    /// Promote names and labels; all candidates when absent.
    pub(crate) candidates: Option<Vec<(String, Place)>>,
    pub(crate) reference: SourceName,
    pub(crate) corpus: String,
    pub(crate) context: u32,
    pub(crate) chunks: Option<u64>,
    pub(crate) kld: bool,
    pub(crate) block: u32,
    pub(crate) bootstrap: u32,
    pub(crate) seed: u64,
    pub(crate) allow_overlap: bool,
}

#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) evals: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) metrics: String,
    /// Promote names and labels; all but the baseline when absent.
    pub(crate) candidates: Option<Vec<(String, Place)>>,
    pub(crate) require: Vec<(Requirement, Place)>,
    pub(crate) baseline: Option<(String, Place)>,
    pub(crate) confidence: Decimal,
}
