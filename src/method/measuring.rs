//! Keys of methods that measure losses on the model: the text, and how much of it.

use super::open::Open;
use super::section::PolicySection;
use crate::syntax::id::StepId;
use crate::syntax::id::StepKind;
use crate::syntax::shared::BLOCKS;
use crate::syntax::shared::CONTEXTS;
use crate::syntax::shared::COUNTS;
use crate::syntax::shared::names_of;
use crate::syntax::shared::number;
use crate::syntax::shared::text;
use crate::syntax::sweep::Sweep;
use crate::tensor_type::TensorType;

/// The chunks that a method measures on if the recipe does not say.
const DEFAULT_CHUNKS: u64 = 16;

/// The chunks of one of its actions.
const DEFAULT_BLOCK: u32 = 4;

/// The types that a method tries if the recipe names none, by size.
pub(super) const USUAL_TYPES: &[TensorType] = &[
    TensorType::IQ1_S,
    TensorType::IQ1_M,
    TensorType::IQ2_XXS,
    TensorType::IQ2_XS,
    TensorType::IQ2_S,
    TensorType::Q2_K,
    TensorType::IQ3_XXS,
    TensorType::IQ3_S,
    TensorType::Q3_K,
    TensorType::IQ4_XS,
    TensorType::IQ4_NL,
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q4_K,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::Q5_K,
    TensorType::Q6_K,
    TensorType::Q8_0,
];

/// The keys.
pub(super) const KEYS: [&str; 4] = ["corpus", "context", "chunks", "block"];

/// The text, and how much of it, as they are written.
pub(super) struct Measured {
    corpus: Sweep<String>,
    pub(super) context: u32,
    chunks: Sweep<u64>,
    pub(super) block: u32,
}

impl Measured {
    /// Reads them.
    pub(super) fn read(section: &mut PolicySection<'_, '_, '_>) -> Option<Self> {
        let reader = &mut *section.reader;
        reader.need("corpus", "corpus = \"calibration\"");
        let corpus = names_of(reader, "corpus", section.names, "corpus", "a corpus");
        let head = reader.head.clone();
        let context = reader.read("context", |field| field.integer32(CONTEXTS)).unwrap_or(512);
        let chunks = if reader.has("chunks") {
            reader.sweep("chunks", u64::to_string, |field| field.integer(COUNTS))
        } else {
            Some(Sweep::one(DEFAULT_CHUNKS, &head))
        };
        let block = reader
            .read("block", |field| field.integer32(BLOCKS))
            .unwrap_or(DEFAULT_BLOCK);
        Some(Self {
            corpus: corpus?,
            context,
            chunks: chunks?,
            block,
        })
    }

    /// Notes them for the resolved recipe.
    pub(super) fn put(&self, section: &mut PolicySection<'_, '_, '_>) {
        let reader = &mut *section.reader;
        reader.put("corpus", self.corpus.to_toml(text));
        reader.put("context", number(u64::from(self.context)));
        reader.put("chunks", self.chunks.to_toml(|value| number(*value)));
        reader.put("block", number(u64::from(self.block)));
    }

    /// Returns the corpus and the number of chunks of each variant.
    pub(super) fn variants(self) -> Open<(StepId, u64)> {
        let chunks = Open::values(self.chunks, |value| format!("chunks{value}"));
        Open::steps(StepKind::Corpus, self.corpus).and(chunks)
    }
}
