//! `[moments.NAME]`, read key by key.

use crate::recipe::decl::Moments;
use crate::recipe::read::Context;
use crate::syntax::field::Reader;
use crate::syntax::shared::BLOCKS;
use crate::syntax::shared::CONTEXTS;
use crate::syntax::shared::COUNTS;
use crate::syntax::shared::model;
use crate::syntax::shared::names_of;
use crate::syntax::shared::number;
use crate::syntax::shared::or_default;
use crate::syntax::shared::text;

/// Chunks in one action if the recipe does not say. The sums of a block are as large as those of the whole text, so blocks are large.
const DEFAULT_BLOCK: u32 = 256;
/// Of how many chunks one is kept for validation if the recipe does not say.
const DEFAULT_HELD_OUT: u32 = 8;
/// What `held_out` may be.
const HELD_OUT: std::ops::RangeInclusive<u32> = 0..=1000;

pub(crate) fn moments(reader: &mut Reader<'_, '_>, context: &Context<'_>) -> Option<Moments> {
    let model = model(reader, "model", context.names);
    reader.need("corpus", "corpus = \"calibration\"");
    let corpus = names_of(reader, "corpus", context.names, "corpus", "a corpus");
    let context = or_default(reader, "context", 512, |reader| {
        reader.sweep("context", u32::to_string, |field| field.integer32(CONTEXTS))
    });
    let chunks = reader.sweep("chunks", u64::to_string, |field| field.integer(COUNTS));
    let block = reader.read("block", |field| field.integer32(BLOCKS));
    let block = block.unwrap_or(DEFAULT_BLOCK);
    let held_out = reader.read("held_out", |field| field.integer32(HELD_OUT));
    let held_out = held_out.unwrap_or(DEFAULT_HELD_OUT);
    let (model, corpus) = (model?, corpus?);
    reader.put("model", model.as_str());
    reader.put("corpus", corpus.to_toml(text));
    reader.put("context", context.to_toml(|value| number(u64::from(*value))));
    if let Some(chunks) = &chunks {
        reader.put("chunks", chunks.to_toml(|value| number(*value)));
    }
    reader.put("block", number(u64::from(block)));
    reader.put("held_out", number(u64::from(held_out)));
    Some(Moments {
        model,
        corpus,
        context,
        chunks,
        block,
        held_out,
    })
}
