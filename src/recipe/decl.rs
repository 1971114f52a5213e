//! Sections of steps as declared: typed and with defaults, sweeps not yet expanded.

use std::collections::BTreeMap;

use crate::quantity::Decimal;
use crate::quantity::Quantity;
use crate::recipe::model::Chunking;
use crate::recipe::model::Device;
use crate::recipe::model::EngineRef;
use crate::recipe::model::MergeMode;
use crate::recipe::model::OnProblem;
use crate::recipe::model::Pattern;
use crate::recipe::model::Place;
use crate::recipe::model::RecipePath;
use crate::recipe::model::Rule;
use crate::recipe::model::RuleType;
use crate::recipe::model::SourceName;
use crate::recipe::names::Mix;
use crate::recipe::names::TypeName;
use crate::requirement::Requirement;

use crate::recipe::field::Sweep;

/// The most that a candidate's file may have.
#[derive(Debug, Clone)]
pub(crate) enum Budget {
    Quantity(Quantity),
    /// As much as another candidate has: all those of a `promote` section, or the one of this name, which stands there.
    Candidate(String, Place),
}

impl PartialEq for Budget {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Quantity(quantity), Self::Quantity(other)) => quantity == other,
            (Self::Candidate(name, _), Self::Candidate(other, _)) => name == other,
            _ => false,
        }
    }
}

impl Budget {
    /// Returns it as the resolved recipe has it.
    pub(crate) fn to_toml(&self) -> toml::Value {
        match self {
            Self::Quantity(quantity) => toml::Value::from(quantity.to_string()),
            Self::Candidate(name, _) => {
                let candidate = ("candidate".to_owned(), toml::Value::from(name.as_str()));
                toml::Value::Table(toml::Table::from_iter([candidate]))
            }
        }
    }
}

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
    Import {
        source: SourceName,
    },
}

#[derive(Debug)]
pub(crate) struct Join {
    pub(crate) model: SourceName,
    pub(crate) imatrix: Sweep<String>,
    pub(crate) missing: OnProblem,
    pub(crate) unrouted: OnProblem,
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
    pub(crate) method: Method,
    pub(crate) keep: Vec<Pattern>,
}

impl Policy {
    /// Returns the budgets, if the method keeps to one.
    pub(crate) fn budget(&self) -> Option<&Sweep<Budget>> {
        match &self.method {
            Method::Mix { .. } | Method::Manual { .. } | Method::Boost { .. } => None,
            Method::Ashq1 { budget, .. }
            | Method::Density { budget, .. }
            | Method::Prior { budget, .. }
            | Method::Measured { budget, .. }
            | Method::Error { budget, .. } => Some(budget),
        }
    }
}

#[derive(Debug)]
pub(crate) enum Method {
    Mix {
        mix: Sweep<Mix>,
        pure: Sweep<bool>,
        output_type: Option<Sweep<TypeName>>,
        embedding_type: Option<Sweep<TypeName>>,
    },
    Manual {
        rules: Vec<Rule>,
        otherwise: Option<Sweep<RuleType>>,
    },
    Ashq1 {
        budget: Sweep<Budget>,
        depth: Sweep<bool>,
        free: Sweep<bool>,
        qat: bool,
        floors: Vec<Rule>,
        ceilings: Vec<Rule>,
    },
    Density {
        budget: Sweep<Budget>,
        base: TypeName,
        promotion: TypeName,
        anchors: bool,
    },
    Boost {
        base: BoostBases,
        layers: BoostLayers,
        families: Vec<&'static str>,
        promotion: Sweep<TypeName>,
    },
    Prior {
        budget: Sweep<Budget>,
        types: Vec<TypeName>,
        fuse: Vec<&'static str>,
        floors: Vec<Rule>,
        ceilings: Vec<Rule>,
        devices: Vec<Device>,
    },
    Measured {
        budget: Sweep<Budget>,
        corpus: Sweep<String>,
        context: u32,
        chunks: Sweep<u64>,
        block: u32,
        screen: Option<u64>,
        max_probes: Option<u64>,
        refine: u32,
        types: Vec<TypeName>,
        fuse: Vec<&'static str>,
        floors: Vec<Rule>,
        ceilings: Vec<Rule>,
        devices: Vec<Device>,
    },
    Error {
        budget: Sweep<Budget>,
        probes: Option<Probes>,
        types: Vec<TypeName>,
        fuse: Vec<&'static str>,
        floors: Vec<Rule>,
        ceilings: Vec<Rule>,
        devices: Vec<Device>,
    },
}

/// What every tensor gets before some are boosted.
#[derive(Debug)]
pub(crate) enum BoostBases {
    Mix(Sweep<Mix>),
    Type(Sweep<TypeName>),
}

#[derive(Debug)]
pub(crate) enum BoostLayers {
    Listed(Vec<u32>),
    Ranked {
        count: u32,
        ranking: &'static str,
        baseline: Option<String>,
    },
}

#[derive(Debug)]
pub(crate) struct Probes {
    pub(crate) count: u32,
    pub(crate) corpus: Sweep<String>,
    pub(crate) context: u32,
    pub(crate) chunks: Sweep<u64>,
    pub(crate) block: u32,
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
