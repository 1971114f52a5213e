//! `method = "measured"`: by losses that are measured on the model itself, solved exactly. `work::policy` measures.

use serde::Deserialize;
use serde::Serialize;

use super::budget::Budget;
use super::budget::BudgetDocument;
use super::budget::WrittenBudget;
use super::constraints::Constraints;
use super::constraints::ConstraintsDocument;
use super::header::HeaderDocument;
use super::interface::Chosen;
use super::interface::Inputs;
use super::interface::Material;
use super::interface::Measures;
use super::interface::PolicyDocument;
use super::interface::PolicyMethod;
use super::interface::Probing;
use super::measuring::Measured;
use super::measuring::USUAL_TYPES;
use super::open::Open;
use super::problem::MethodError;
use super::rounding::RoundingDocument;
use super::section::PolicySection;
use crate::allocation::DEFAULT_STATES;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;
use crate::engine::Capability;
use crate::syntax::id::StepId;
use crate::syntax::names::TYPES;
use crate::syntax::shared::COUNTS;
use crate::syntax::shared::number;
use crate::vocab::ERROR_FORM;
use crate::vocab::EngineRole::Evaluator;
use crate::vocab::EngineRole::Quantizer;
use crate::vocab::inputs::COMPUTES;
use crate::vocab::inputs::CORPORA;
use crate::vocab::inputs::JOINED;
use crate::vocab::inputs::TOKENIZERS;
use crate::vocab::role::Field;
use crate::vocab::role::Role::Engine;
use crate::vocab::role::Role::Input;
use crate::vocab::role::Role::Setting;
use crate::vocab::role::Role::Version;
use crate::vocab::role::field;
use crate::vocab::role::fields;

/// The version of the search and the solver: increase it when either gives another choice.
const SOLVER: u32 = 9;

/// The default of `refine`.
const DEFAULT_ROUNDS: u32 = 10;

/// How often a recipe may ask for that.
const ROUNDS: std::ops::RangeInclusive<u32> = 0..=100;

/// The default of `screen` is `chunks` divided by this.
const SCREENED: u64 = 4;

/// The settings of a recipe.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Settings {
    /// The most that the file may have.
    pub budget: Budget,
    /// The texts that losses are measured on.
    pub corpus: StepId,
    /// Tokens in a chunk.
    pub context: u32,
    /// The maximum number of chunks.
    pub chunks: u64,
    /// Chunks in one action.
    pub block: u32,
    /// How many chunks every probe is measured on before it is decided which need all.
    pub screen: u64,
    /// The maximum number of probes.
    pub max_probes: Option<u64>,
    /// The maximum number of rounds of refinement.
    pub refine: u32,
    /// What bounds the choice.
    #[serde(flatten)]
    pub constraints: Constraints,
}

/// The settings and inputs of an action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// What decides on the length of the file's header.
    pub header: HeaderDocument,
    /// The most that the file may have.
    pub budget: BudgetDocument,
    /// The compute-relevant part of the model.
    pub model: BlobDigest,
    /// What tensors are quantized with, and their errors weighted by.
    pub imatrix: Option<BlobDigest>,
    /// The texts that losses are measured on.
    pub corpus: BlobDigest,
    /// How the model reads them.
    pub tokenizer: BlobDigest,
    /// Tokens in a chunk.
    pub context: u32,
    /// The maximum number of chunks.
    pub chunks: u64,
    /// Chunks in one block.
    pub block: u32,
    /// How many chunks every probe is measured on.
    pub screen: u64,
    /// The maximum number of probes.
    pub max_probes: Option<u64>,
    /// The maximum number of rounds of refinement.
    pub refine: u32,
    /// How codes are refined, if they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounding: Option<RoundingDocument>,
    /// What bounds the choice.
    #[serde(flatten)]
    pub constraints: ConstraintsDocument,
    /// How many states the solver may make.
    pub states: u64,
    /// The version of the solver and of what losses are made of.
    pub solver: u32,
    /// The version of the computation of squared errors.
    pub form: u32,
    /// What quantizes.
    pub quantizer: Fingerprint,
    /// What measures.
    pub evaluator: Fingerprint,
}

impl PolicyMethod for Settings {
    const NAME: &'static str = "measured";
    const KEYS: &'static [&'static str] = &[
        "budget",
        "corpus",
        "context",
        "chunks",
        "block",
        "screen",
        "max_probes",
        "refine",
        "types",
        "fuse",
        "floors",
        "ceilings",
        "device",
    ];
    type Document = Document;

    fn read(section: &mut PolicySection<'_, '_, '_>) -> Option<Open<Self>> {
        let measured = Measured::read(section);
        let screen = section.reader.read("screen", |field| field.integer(COUNTS));
        let max_probes = section.reader.read("max_probes", |field| field.integer(COUNTS));
        let refine = section.reader.read("refine", |field| field.integer32(ROUNDS));
        let refine = refine.unwrap_or(DEFAULT_ROUNDS);
        let budget = section.budgets("budget = \"4.5 bpw\"");
        let constraints = Constraints::read(section.reader, "a tensor type", TYPES, USUAL_TYPES);
        let (measured, budget, constraints) = (measured?, budget?, constraints?);
        section.reader.put("budget", budget.to_toml(WrittenBudget::to_toml));
        constraints.put(section.reader);
        measured.put(section);
        for (key, value) in [("screen", screen), ("max_probes", max_probes)] {
            if let Some(value) = value {
                section.reader.put(key, number(value));
            }
        }
        section.reader.put("refine", number(u64::from(refine)));
        let (context, block) = (measured.context, measured.block);
        let open = Open::budgets(budget).and(measured.variants());
        Some(open.map(move |(budget, (corpus, chunks))| Self {
            budget,
            corpus,
            context,
            chunks,
            block,
            screen: screen.unwrap_or_else(|| chunks.div_ceil(SCREENED)),
            max_probes,
            refine,
            constraints: constraints.clone(),
        }))
    }

    fn document<I: Inputs>(&self, keep: Vec<String>, inputs: &I) -> Result<Document, I::Error> {
        Ok(Document {
            header: inputs.header()?,
            budget: inputs.budget(&self.budget)?,
            model: inputs.model()?,
            imatrix: inputs.imatrix()?,
            corpus: inputs.corpus(&self.corpus)?,
            tokenizer: inputs.tokenizer()?,
            context: self.context,
            chunks: self.chunks,
            block: self.block,
            screen: self.screen,
            max_probes: self.max_probes,
            refine: self.refine,
            rounding: inputs.rounding()?,
            constraints: self.constraints.document(keep),
            states: DEFAULT_STATES,
            solver: SOLVER,
            form: ERROR_FORM,
            quantizer: inputs.engine(Quantizer)?,
            evaluator: inputs.engine(Evaluator)?,
        })
    }

    fn budget(&self) -> Option<&Budget> {
        Some(&self.budget)
    }

    fn measures(&self) -> Option<Measures<'_>> {
        Some(Measures {
            corpus: &self.corpus,
            context: self.context,
            chunks: self.chunks,
            block: self.block,
            and_others: true,
        })
    }

    fn needs(&self) -> Vec<Capability> {
        vec![
            Capability::Tokenize,
            Capability::Score,
            Capability::Probe,
            Capability::Quantize,
            Capability::Compare,
        ]
    }

    fn constraints(&self) -> Option<&Constraints> {
        Some(&self.constraints)
    }

    fn probing(&self) -> Probing {
        Probing::All {
            most: self.max_probes,
            screen: self.screen,
            rounds: self.refine,
        }
    }
}

impl PolicyDocument for Document {
    const FIELDS: &'static [Field] = &fields::<24>(&[
        &[
            HeaderDocument::field(),
            BudgetDocument::field(),
            field("model", Input(COMPUTES)),
            field("imatrix", Input(JOINED)),
            field("corpus", Input(CORPORA)),
            field("tokenizer", Input(TOKENIZERS)),
            field("context", Setting),
            field("chunks", Setting),
            field("block", Setting),
            field("screen", Setting),
            field("max_probes", Setting),
            field("refine", Setting),
            RoundingDocument::field(),
        ],
        ConstraintsDocument::FIELDS,
        &[
            field("states", Setting),
            field("solver", Version),
            field("form", Version),
            field("quantizer", Engine(Quantizer)),
            field("evaluator", Engine(Evaluator)),
        ],
    ]);

    fn choose<M: Material>(&self, _material: &M) -> Result<Chosen, M::Error> {
        Err(MethodError::new("`measured` runs the model: it cannot choose types from documents alone").into())
    }
}
