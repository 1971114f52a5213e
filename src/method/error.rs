//! `method = "error"`: by the squared errors of the quantized tensors, scaled by a few measurements, solved exactly.
//! `work::policy` compares and measures.

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
use super::measuring;
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
use crate::vocab::ERROR_FORM;
use crate::vocab::EngineRole::Evaluator;
use crate::vocab::EngineRole::Quantizer;
use crate::vocab::inputs::COMPUTES;
use crate::vocab::inputs::CORPORA;
use crate::vocab::inputs::JOINED;
use crate::vocab::inputs::TOKENIZERS;
use crate::vocab::role::Field;
use crate::vocab::role::Role::Engine;
use crate::vocab::role::Role::Fields;
use crate::vocab::role::Role::Input;
use crate::vocab::role::Role::Setting;
use crate::vocab::role::Role::Version;
use crate::vocab::role::field;
use crate::vocab::role::fields;

/// The version of the solver and of what losses are made of: raise it when either gives another answer.
const SOLVER: u32 = 2;

/// How many types of each group are measured if the recipe does not say.
const DEFAULT_PROBES: u32 = 1;

/// What `probes` may be: of each group at least none, and no more types than there are.
const PROBES: std::ops::RangeInclusive<u32> = 0..=64;

/// The settings of a recipe.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Settings {
    /// The most that the file may have.
    pub budget: Budget,
    /// What sensitivities are measured with; without, a squared error counts the same everywhere.
    pub probes: Option<Probes>,
    /// What bounds the choice.
    #[serde(flatten)]
    pub constraints: Constraints,
}

/// A few measurements of each group of tensors.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Probes {
    /// How many types of each group.
    pub count: u32,
    /// The texts that are measured on.
    pub corpus: StepId,
    /// Tokens in a chunk.
    pub context: u32,
    /// The maximum number of chunks.
    pub chunks: u64,
    /// Chunks in one action.
    pub block: u32,
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
    /// The importances, and how often experts were routed to.
    pub imatrix: Option<BlobDigest>,
    /// What the sensitivities are measured with; all count the same without.
    pub probes: Option<ProbesDocument>,
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
    /// The version of a tensor's errors.
    pub form: u32,
    /// What quantizes.
    pub quantizer: Fingerprint,
}

/// A few measurements of each group, as documents have them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbesDocument {
    /// How many types are measured of each group.
    pub count: u32,
    /// The texts that are measured on.
    pub corpus: BlobDigest,
    /// How the model reads them.
    pub tokenizer: BlobDigest,
    /// Tokens in a chunk.
    pub context: u32,
    /// The maximum number of chunks.
    pub chunks: u64,
    /// Chunks in one block.
    pub block: u32,
    /// What measures.
    pub evaluator: Fingerprint,
}

impl PolicyMethod for Settings {
    const NAME: &'static str = "error";
    const KEYS: &'static [&'static str] = &[
        "budget", "probes", "corpus", "context", "chunks", "block", "types", "fuse", "floors", "ceilings", "device",
    ];
    type Document = Document;

    fn read(section: &mut PolicySection<'_, '_, '_>) -> Option<Open<Self>> {
        let absent = !section.reader.has("probes");
        let count = section.reader.read("probes", |field| field.integer32(PROBES));
        let measured = if count == Some(0) {
            let place = section.place_of("probes");
            let reader = &mut *section.reader;
            reader.misplaced(&measuring::KEYS, "`probes` above 0", place.as_ref());
            Some(None)
        } else {
            let count = if absent { Some(DEFAULT_PROBES) } else { count };
            Measured::read(section).zip(count).map(Some)
        };
        let budget = section.budgets("budget = \"4.5 bpw\"");
        let constraints = Constraints::read(section.reader, "a tensor type", TYPES, USUAL_TYPES);
        let (budget, constraints) = (budget?, constraints?);
        section.reader.put("budget", budget.to_toml(WrittenBudget::to_toml));
        constraints.put(section.reader);
        let measured = measured?;
        let count = measured.as_ref().map_or(0, |(_, count)| *count);
        section.reader.put("probes", number(u64::from(count)));
        let probes = match measured {
            None => Open::one(None),
            Some((measured, count)) => {
                measured.put(section);
                let (context, block) = (measured.context, measured.block);
                measured.variants().map(move |(corpus, chunks)| {
                    Some(Probes {
                        count,
                        corpus,
                        context,
                        chunks,
                        block,
                    })
                })
            }
        };
        Some(Open::budgets(budget).and(probes).map(move |(budget, probes)| Self {
            budget,
            probes,
            constraints: constraints.clone(),
        }))
    }

    fn document<I: Inputs>(&self, keep: Vec<String>, inputs: &I) -> Result<Document, I::Error> {
        let probes = self.probes.as_ref().map(|probes| {
            Ok::<_, I::Error>(ProbesDocument {
                count: probes.count,
                corpus: inputs.corpus(&probes.corpus)?,
                tokenizer: inputs.tokenizer()?,
                context: probes.context,
                chunks: probes.chunks,
                block: probes.block,
                evaluator: inputs.engine(Evaluator)?,
            })
        });
        Ok(Document {
            header: inputs.header()?,
            budget: inputs.budget(&self.budget)?,
            model: inputs.model()?,
            imatrix: inputs.imatrix()?,
            probes: probes.transpose()?,
            rounding: inputs.rounding()?,
            constraints: self.constraints.document(keep),
            states: DEFAULT_STATES,
            solver: SOLVER,
            form: ERROR_FORM,
            quantizer: inputs.engine(Quantizer)?,
        })
    }

    fn budget(&self) -> Option<&Budget> {
        Some(&self.budget)
    }

    fn measures(&self) -> Option<Measures<'_>> {
        let probes = self.probes.as_ref()?;
        Some(Measures {
            corpus: &probes.corpus,
            context: probes.context,
            chunks: probes.chunks,
            block: probes.block,
            and_others: false,
        })
    }

    fn needs(&self) -> Vec<Capability> {
        let mut needs = vec![Capability::Quantize, Capability::Compare];
        if self.probes.is_some() {
            needs.extend([Capability::Tokenize, Capability::Score, Capability::Probe]);
        }
        needs
    }

    fn constraints(&self) -> Option<&Constraints> {
        Some(&self.constraints)
    }

    fn probing(&self) -> Probing {
        Probing::OfEachGroup(self.probes.as_ref().map_or(0, |probes| probes.count))
    }
}

impl PolicyDocument for Document {
    const FIELDS: &'static [Field] = &fields::<16>(&[
        &[
            HeaderDocument::field(),
            BudgetDocument::field(),
            field("model", Input(COMPUTES)),
            field("imatrix", Input(JOINED)),
            field(
                "probes",
                Fields(&[
                    field("count", Setting),
                    field("corpus", Input(CORPORA)),
                    field("tokenizer", Input(TOKENIZERS)),
                    field("context", Setting),
                    field("chunks", Setting),
                    field("block", Setting),
                    field("evaluator", Engine(Evaluator)),
                ]),
            ),
            RoundingDocument::field(),
        ],
        ConstraintsDocument::FIELDS,
        &[
            field("states", Setting),
            field("solver", Version),
            field("form", Version),
            field("quantizer", Engine(Quantizer)),
        ],
    ]);

    fn choose<M: Material>(&self, _material: &M) -> Result<Chosen, M::Error> {
        Err(MethodError::new("`error` quantizes tensors: it cannot choose types from documents alone").into())
    }
}
