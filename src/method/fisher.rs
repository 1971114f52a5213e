//! `method = "fisher"`: by losses that gradients predict, solved exactly. `work::policy` collects and prices.

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
use crate::syntax::shared::number;
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

/// The version of the solver and of what losses are made of: raise it when either gives another choice.
const SOLVER: u32 = 1;

/// The default of `probes`.
const DEFAULT_PROBES: u32 = 8;

/// What `probes` may be.
const PROBES: std::ops::RangeInclusive<u32> = 0..=64;

/// The default of `corrections`.
const DEFAULT_CORRECTIONS: u32 = 1;

/// What `corrections` may be.
const CORRECTIONS: std::ops::RangeInclusive<u32> = 0..=10;

/// The settings of a recipe.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Settings {
    /// The most that the file may have.
    pub budget: Budget,
    /// The texts that gradients are computed on.
    pub corpus: StepId,
    /// Tokens in a chunk.
    pub context: u32,
    /// The maximum number of chunks.
    pub chunks: u64,
    /// Chunks in one action.
    pub block: u32,
    /// How many single groups are measured in a mixture of experts.
    pub probes: u32,
    /// How often losses are corrected by measurements of the whole choice.
    pub corrections: u32,
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
    /// What tensors are quantized with.
    pub imatrix: Option<BlobDigest>,
    /// The texts that gradients are computed on.
    pub corpus: BlobDigest,
    /// How the model reads them.
    pub tokenizer: BlobDigest,
    /// Tokens in a chunk.
    pub context: u32,
    /// The maximum number of chunks.
    pub chunks: u64,
    /// Chunks in one block.
    pub block: u32,
    /// How many single groups are measured in a mixture of experts.
    pub probes: u32,
    /// How often losses are corrected by measurements of the whole choice.
    pub corrections: u32,
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
    /// What quantizes.
    pub quantizer: Fingerprint,
    /// What computes gradients, and measures.
    pub evaluator: Fingerprint,
}

impl PolicyMethod for Settings {
    const NAME: &'static str = "fisher";
    const KEYS: &'static [&'static str] = &[
        "budget",
        "corpus",
        "context",
        "chunks",
        "block",
        "probes",
        "corrections",
        "types",
        "fuse",
        "floors",
        "ceilings",
        "device",
    ];
    type Document = Document;

    fn read(section: &mut PolicySection<'_, '_, '_>) -> Option<Open<Self>> {
        let measured = Measured::read(section);
        let probes = section.reader.read("probes", |field| field.integer32(PROBES));
        let probes = probes.unwrap_or(DEFAULT_PROBES);
        let corrections = section.reader.read("corrections", |field| field.integer32(CORRECTIONS));
        let corrections = corrections.unwrap_or(DEFAULT_CORRECTIONS);
        let budget = section.budgets("budget = \"4.5 bpw\"");
        let constraints = Constraints::read(section.reader, "a tensor type", TYPES, USUAL_TYPES);
        let (measured, budget, constraints) = (measured?, budget?, constraints?);
        section.reader.put("budget", budget.to_toml(WrittenBudget::to_toml));
        constraints.put(section.reader);
        measured.put(section);
        section.reader.put("probes", number(u64::from(probes)));
        section.reader.put("corrections", number(u64::from(corrections)));
        let (context, block) = (measured.context, measured.block);
        let open = Open::budgets(budget).and(measured.variants());
        Some(open.map(move |(budget, (corpus, chunks))| Self {
            budget,
            corpus,
            context,
            chunks,
            block,
            probes,
            corrections,
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
            probes: self.probes,
            corrections: self.corrections,
            rounding: inputs.rounding()?,
            constraints: self.constraints.document(keep),
            states: DEFAULT_STATES,
            solver: SOLVER,
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
            and_others: self.corrections > 0,
        })
    }

    fn needs(&self) -> Vec<Capability> {
        vec![
            Capability::Tokenize,
            Capability::Gradients,
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
        Probing::Gradients {
            probes: self.probes,
            corrections: self.corrections,
        }
    }
}

impl PolicyDocument for Document {
    const FIELDS: &'static [Field] = &fields::<22>(&[
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
            field("probes", Setting),
            field("corrections", Setting),
            RoundingDocument::field(),
        ],
        ConstraintsDocument::FIELDS,
        &[
            field("states", Setting),
            field("solver", Version),
            field("quantizer", Engine(Quantizer)),
            field("evaluator", Engine(Evaluator)),
        ],
    ]);

    fn choose<M: Material>(&self, _material: &M) -> Result<Chosen, M::Error> {
        Err(MethodError::new("`fisher` runs the model: it cannot choose types from documents alone").into())
    }
}
