//! A model, measured on a block of chunks: a candidate by its file, or a variant of a source whose tensors are in the store.
//!
//! A variant is measured without writing a file: the source is loaded, and the tensors that differ are replaced by the bytes that a
//! candidate's file would have. It computes what that file would, bit for bit ([`crate::engine::Prober`]), so both have the
//! same action.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::ActionOutputs;
use super::Context;
use super::LocatedModel;
use super::SourceFile;
use super::StepError;
use super::Work;
use super::blocks::Block;
use super::locked;
use super::model_documents::Compute;
use super::models::Batch;
use super::models::Probing;
use super::perform::output_of;
use super::scoring::failed;
use super::scoring::score;
use super::variants::Difference;
use super::variants::difference;
use crate::action::EvalBlock;
use crate::action::ReferenceBlock;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;
use crate::figures;
use crate::fs;
use crate::tensor_type::TensorType;

/// Bytes that may be kept of chunks in memory, at most; less where less is free.
const KEPT: u64 = 4 << 30;

/// What computes a candidate.
enum Candidate<'l> {
    /// Its own file.
    File(&'l LocatedModel),
    /// A source with some tensors replaced.
    Variant(&'l LocatedModel),
}

impl Context<'_> {
    /// Says that a model differs from another one, a source, only in types and bytes of tensors, so that it can be measured
    /// without a file.
    pub(super) fn add_variant(&self, compute: BlobDigest, base: BlobDigest) {
        locked(&self.variants).add(compute, base);
    }

    fn compute_document(&self, digest: BlobDigest) -> Result<Arc<Compute>, StepError> {
        locked(&self.variants).document(self.store(), digest)
    }
}

impl EvalBlock {
    fn candidate<'l>(&self, context: &Context<'_>, located: &'l super::Located) -> Result<Candidate<'l>, StepError> {
        if let Ok(model) = located.model(&self.candidate) {
            // A source that is loaded to have tensors replaced measures itself, too.
            return Ok(if context.probes(model) {
                Candidate::Variant(model)
            } else {
                Candidate::File(model)
            });
        }
        if let Some(base) = locked(&context.variants).base_of(&self.candidate) {
            return Ok(Candidate::Variant(located.model(&base)?));
        }
        // Any source with the same tensors will do: the bytes of those that differ are in the store.
        let compute = context.compute_document(self.candidate)?;
        for model in located.models() {
            if difference(&*context.compute_document(model.compute)?, &compute).is_some() {
                locked(&context.variants).add(self.candidate, model.compute);
                return Ok(Candidate::Variant(model));
            }
        }
        Err(StepError::NotLocated {
            what: "model, or source with the same tensors,",
            digest: self.candidate,
        })
    }

    fn reference(&self, context: &Context<'_>) -> Result<Option<BlobDigest>, StepError> {
        let result = self.reference.as_ref().map(|key| context.result_of(key)).transpose()?;
        let output = |result| output_of(&result, ReferenceBlock::REFERENCE);
        result.map(output).transpose()
    }
}

impl Work for EvalBlock {
    fn reads(&self, context: &Context<'_>) -> Result<Vec<SourceFile>, StepError> {
        let located = context.located();
        let (Candidate::File(model) | Candidate::Variant(model)) = self.candidate(context, &located)?;
        Ok(model.files.clone())
    }

    fn evaluator(&self) -> Option<Fingerprint> {
        Some(self.engine)
    }

    fn run(&self, context: &Context<'_>) -> Result<ActionOutputs, StepError> {
        let block = Block::load(context.store(), self.tokens, self.context)?;
        let reference = self.reference(context)?;
        let located = context.located();
        let scored = match self.candidate(context, &located)? {
            Candidate::File(model) => context.with_model(self.engine, model, self.context, |model| {
                score(context, model, &block, self.context, reference.as_ref())
            })?,
            Candidate::Variant(base) => context.with_prober(self.engine, base, self.context, |probing| {
                let variant = probing.variant(context, base, self.candidate)?;
                probing.keep_common(context, self, &block)?;
                probing.turn_to(context, &variant, Some(self.candidate))?;
                score(
                    context,
                    probing.prober.as_mut(),
                    &block,
                    self.context,
                    reference.as_ref(),
                )
            })?,
        };
        let mut made = ActionOutputs::default();
        made.output(Self::FIGURES, context.store().put(&scored.encode())?);
        Ok(made)
    }
}

impl Probing {
    /// Returns what a variant differs in from the loaded model.
    fn variant(
        &mut self,
        context: &Context<'_>,
        base: &LocatedModel,
        compute: BlobDigest,
    ) -> Result<Arc<Difference>, StepError> {
        if let Some(known) = self.known.get(&compute) {
            return Ok(Arc::clone(known));
        }
        let own = context.compute_document(base.compute)?;
        let found = difference(&own, &*context.compute_document(compute)?);
        let found = Arc::new(found.ok_or_else(|| StepError::input("the variant is of a different model"))?);
        self.known.insert(compute, Arc::clone(&found));
        Ok(found)
    }

    /// Prepares for variants that are measured on the same tokens, and returns the order in which to measure them: those that share
    /// most with what most of them have in common come last, for their common beginning is computed once.
    fn prepare(
        &mut self,
        context: &Context<'_>,
        base: &LocatedModel,
        batch: &[EvalBlock],
    ) -> Result<Vec<usize>, StepError> {
        self.prober.forget();
        let mut variants = Vec::with_capacity(batch.len());
        for block in batch {
            variants.push(self.variant(context, base, block.candidate)?);
        }
        let common = common(&variants);
        let mut places = BTreeMap::new();
        let mut order = Vec::with_capacity(batch.len());
        for (at, (block, variant)) in batch.iter().zip(&variants).enumerate() {
            let either = common.keys().chain(variant.keys());
            let mut differing = either
                .filter(|name| common.get(*name) != variant.get(*name))
                .map(String::as_str);
            let place = self.prober.place(&mut differing);
            places.insert(block.candidate, place);
            order.push((place, at));
        }
        order.sort_unstable();
        self.batch = Batch {
            tokens: batch.first().map(|block| block.tokens),
            common,
            left: batch.iter().map(|block| block.candidate).collect(),
            places,
            kept: 0,
        };
        Ok(order.into_iter().map(|(_, at)| at).collect())
    }

    /// Keeps what a variant of the batch has in common with those that come after it.
    fn keep_common(&mut self, context: &Context<'_>, action: &EvalBlock, block: &Block) -> Result<(), StepError> {
        if self.batch.tokens != Some(action.tokens) || !self.batch.left.remove(&action.candidate) {
            return Ok(());
        }
        let place = self.batch.places.get(&action.candidate).copied().unwrap_or(0);
        // Keeping costs what one variant saves by it.
        if place <= self.batch.kept || self.batch.left.is_empty() {
            return Ok(());
        }
        let common = Arc::new(self.batch.common.clone());
        self.turn_to(context, &common, None)?;
        let limit = fs::free_memory().map_or(KEPT, |free| KEPT.min(free / 4));
        let positions = figures::scored_positions(action.context as usize).map_err(failed)?;
        for chunk in &block.chunks {
            self.prober
                .keep(chunk, positions.start, place, limit, context.cancel())
                .map_err(StepError::engine("measuring types"))?;
        }
        self.batch.kept = place;
        Ok(())
    }

    /// Replaces and restores tensors until the model is a variant, whose document is `compute`.
    fn turn_to(
        &mut self,
        context: &Context<'_>,
        variant: &Difference,
        compute: Option<BlobDigest>,
    ) -> Result<(), StepError> {
        if compute.is_some() && self.compute == compute {
            return Ok(());
        }
        self.compute = None;
        let back: Vec<String> = self
            .replaced
            .keys()
            .filter(|name| !variant.contains_key(*name))
            .cloned()
            .collect();
        for name in back {
            self.prober.restore(&name);
            self.replaced.remove(&name);
        }
        for (name, (ty, bytes)) in variant {
            if self.replaced.get(name) == Some(bytes) {
                continue;
            }
            let mapped = context.store().map(bytes)?;
            let replaced = self.prober.replace(name, *ty, Box::new(mapped));
            replaced.map_err(StepError::engine("trying a type"))?;
            self.replaced.insert(name.clone(), *bytes);
        }
        self.compute = compute;
        Ok(())
    }
}

/// Returns each tensor that most variants have, as they have it.
fn common(variants: &[Arc<Difference>]) -> Difference {
    let mut counts: BTreeMap<&String, BTreeMap<(TensorType, BlobDigest), usize>> = BTreeMap::new();
    for variant in variants {
        for (name, what) in variant.iter() {
            *counts.entry(name).or_default().entry(*what).or_insert(0) += 1;
        }
    }
    let mut common = Difference::new();
    for (name, kinds) in counts {
        let named: usize = kinds.values().sum();
        let most = kinds.into_iter().max_by_key(|(_, count)| *count);
        if let Some((what, count)) = most
            && count > variants.len() - named
        {
            common.insert(name.clone(), what);
        }
    }
    common
}

/// Prepares for variants that are measured on the same tokens one after the other, and returns the order in which they are to be
/// measured. Preparing changes no result.
pub(super) fn prepare(context: &Context<'_>, batch: &[EvalBlock]) -> Result<Vec<usize>, StepError> {
    let located = context.located();
    for block in batch {
        if let Candidate::Variant(base) = block.candidate(context, &located)? {
            return context.with_prober(block.engine, base, block.context, |probing| {
                probing.prepare(context, base, batch)
            });
        }
    }
    Ok((0..batch.len()).collect())
}
