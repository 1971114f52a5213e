//! What a model loses when some of its tensors have other types, measured without writing a candidate: the tensors are
//! replaced in the loaded model by the very bytes that a candidate would have, chunks are computed, and the tensors put back.
//!
//! Such a probe computes what the candidate's file would, bit for bit ([`crate::engine::Prober`]); so it has the action of an
//! evaluation of that candidate, and is known to every later policy, budget and candidate that comes to the same tensors.

use std::collections::BTreeMap;
use std::ops::Range;

use super::Context;
use super::StepError;
use super::blocks::Block;
use super::blocks::first_blocks;
use super::documents::DOCUMENT_CAP;
use super::documents::decode_metadata;
use super::documents::encode;
use super::model_documents::IndexedTensor;
use super::model_documents::compute_of;
use super::references::Reference;
use super::scoring::failed;
use super::tensors::Tensors;
use crate::action::Action;
use crate::action::EvalBlock;
use crate::action::Tensor;
use crate::digest::BlobDigest;
use crate::figures::TokenBlock;
use crate::observer::Phase;
use crate::policy::ModelFacts;
use crate::policy::TensorFacts;
use crate::prose;
use crate::tensor_type::TensorType;
use crate::timing::Forward;

/// Tensors by their place in the model's index, and the type that each has instead of its own. Nothing at all is the model
/// itself, whose measure is the floor of all others: what rounding the reference costs.
pub(super) type Variant = BTreeMap<usize, TensorType>;

/// A model that variants of itself are measured against.
pub(super) struct ProbeRunner<'r, 'c> {
    context: &'r Context<'c>,
    /// The model and how it is compared.
    reference: Reference,
    hyperparameters: BlobDigest,
    /// Its tensors.
    tensors: &'r Tensors,
    /// The chunks.
    blocks: &'r [Block],
    /// The work of computing the model.
    forward: Forward,
}

/// A variant with the bytes of its tensors.
struct Ready<'v> {
    variant: &'v Variant,
    bytes: BTreeMap<usize, BlobDigest>,
    /// The digest of all that decides what it computes.
    compute: BlobDigest,
    /// Its blocks that were measured.
    known: BTreeMap<usize, BlobDigest>,
}

impl<'r, 'c> ProbeRunner<'r, 'c> {
    /// Prepares to measure on some blocks.
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub(super) fn new(
        context: &'r Context<'c>,
        reference: Reference,
        hyperparameters: BlobDigest,
        tensors: &'r Tensors,
        blocks: &'r [Block],
    ) -> Result<Self, StepError> {
        let metadata = decode_metadata(context.store(), hyperparameters)?;
        let facts = tensors.index.tensors.iter().map(|tensor| TensorFacts {
            name: tensor.name.clone(),
            ty: tensor.ty,
            dims: tensor.dims.clone(),
        });
        let facts = ModelFacts::from_metadata(&metadata, facts.collect())
            .map_err(|error| StepError::input(error.to_string()))?;
        Ok(Self {
            context,
            reference,
            hyperparameters,
            tensors,
            blocks,
            forward: Forward::new(&facts, &metadata),
        })
    }

    /// Returns how many blocks there are.
    pub(super) fn block_count(&self) -> usize {
        self.blocks.len()
    }

    /// Returns the least number of blocks that have so many chunks together, and the chunks of those; all if there are not
    /// so many.
    pub(super) fn first_blocks(&self, chunks: u64) -> (usize, usize) {
        first_blocks(self.blocks, chunks)
    }

    /// Returns the mean KL divergence of each chunk of some blocks, in nats, for each variant. Computes what is not in
    /// the store. Every block of every variant is a separate action, so that an interrupted measurement continues where it
    /// stopped. `phase` is the phase of the step, and `what` describes the measurement in messages.
    ///
    /// # Errors
    ///
    /// [`StepError::Input`] if the model does not fit into the memory that is free, and all that quantizing and evaluating can
    /// end with.
    pub(super) fn divergences(
        &mut self,
        phase: Phase,
        what: &str,
        variants: &[Variant],
        blocks: Range<usize>,
    ) -> Result<Vec<Vec<f64>>, StepError> {
        let blocks = self.blocks.get(blocks);
        let blocks = blocks.ok_or_else(|| StepError::input("the corpus has too few blocks"))?;
        let mut ready = Vec::with_capacity(variants.len());
        for variant in variants {
            ready.push(self.ready(variant, blocks)?);
        }
        let missing = ready
            .iter()
            .flat_map(|ready| blocks.iter().zip(0..).filter(|(_, at)| !ready.known.contains_key(at)));
        let chunks: u64 = missing.map(|(block, _)| block.chunks.len() as u64).sum();
        if chunks > 0 {
            self.context
                .note(format!("{what}: {} to compute", prose::count(chunks, "chunk")));
            let work = (0..blocks.len()).map(|at| {
                let missing = ready.iter().filter(|ready| !ready.known.contains_key(&at));
                let weights = self.weights(missing.map(|ready| ready.variant));
                weights.iter().sum::<f64>() * blocks[at].chunks.len() as f64
            });
            // Searches go on until nothing better is found.
            let is_final = matches!(phase, Phase::Unchanged | Phase::Screen);
            self.context.begin_phase(phase, what, (chunks, work.sum()), is_final);
            self.compute(&mut ready, blocks)?;
        }
        ready.iter().map(|ready| self.read(ready, blocks.len())).collect()
    }

    /// Returns how much a chunk of each variant counts, compared with one of the whole model.
    fn weights<'v>(&self, variants: impl IntoIterator<Item = &'v Variant>) -> Vec<f64> {
        let shares = self.forward.shares(variants).into_iter();
        shares
            .map(|share| self.forward.weight(share, self.reference.context))
            .collect()
    }

    /// Says for people what a variant is.
    fn name(&self, variant: &Variant) -> String {
        let named = variant.iter().filter_map(|(&at, ty)| {
            let tensor = self.tensors.index.tensors.get(at)?;
            Some(format!("{} in {ty}", tensor.name))
        });
        let named: Vec<String> = named.collect();
        if named.is_empty() {
            "the unchanged model".to_owned()
        } else {
            prose::names(&named.iter().map(String::as_str).collect::<Vec<_>>(), 3)
        }
    }

    /// Returns the digest of a tensor's bytes in a type, if it was quantized before; the bytes need not be there any more.
    fn known_bytes(&self, at: usize, ty: TensorType) -> Result<Option<BlobDigest>, StepError> {
        let tensor = self.tensors.get(at)?;
        if tensor.ty == ty {
            return Ok(Some(tensor.bytes));
        }
        let key = self.tensors.action(tensor, ty).digest();
        let result = self.context.store().lookup_shallow(&key)?;
        Ok(result.and_then(|result| result.output(Tensor::TENSOR.as_str())))
    }

    /// Returns the bytes of a tensor in a type, in the store or in the source.
    fn quantized(&self, at: usize, ty: TensorType) -> Result<BlobDigest, StepError> {
        let tensor = self.tensors.get(at)?;
        self.tensors.quantize(self.context, tensor, ty)?.output(Tensor::TENSOR)
    }

    /// Returns the document of a variant's tensors and hyperparameters.
    fn document(&self, variant: &Variant, bytes: &BTreeMap<usize, BlobDigest>) -> Result<Vec<u8>, StepError> {
        let tensors: Vec<IndexedTensor> = self
            .tensors
            .index
            .tensors
            .iter()
            .enumerate()
            .map(|(at, tensor)| match (variant.get(&at), bytes.get(&at)) {
                (Some(&ty), Some(&bytes)) => IndexedTensor {
                    ty,
                    bytes,
                    ..tensor.clone()
                },
                _ => tensor.clone(),
            })
            .collect();
        encode(&compute_of(self.hyperparameters, &tensors))
    }

    fn ready<'v>(&self, variant: &'v Variant, blocks: &[Block]) -> Result<Ready<'v>, StepError> {
        let store = self.context.store();
        let mut bytes = BTreeMap::new();
        for (&at, &ty) in variant {
            let digest = match self.known_bytes(at, ty)? {
                Some(known) => known,
                None => self.quantized(at, ty)?,
            };
            bytes.insert(at, digest);
        }
        let compute = BlobDigest::of(&self.document(variant, &bytes)?);
        let mut known = BTreeMap::new();
        for (at, block) in blocks.iter().enumerate() {
            let action = self.reference.block_action(compute, block, true);
            if let Some(result) = store.lookup(&action.digest())? {
                known.extend(result.output(EvalBlock::FIGURES.as_str()).map(|figures| (at, figures)));
            }
        }
        Ok(Ready {
            variant,
            bytes,
            compute,
            known,
        })
    }

    /// Computes the missing results, block by block. The engine gets all variants of a block in advance, so that it computes what
    /// they have in common once.
    fn compute(&self, ready: &mut [Ready<'_>], blocks: &[Block]) -> Result<(), StepError> {
        let context = self.context;
        let is_missing = |at: &usize| ready.iter().any(|ready| !ready.known.contains_key(at));
        let wanted: Vec<usize> = (0..blocks.len()).filter(is_missing).collect();
        self.reference
            .compute(context, &wanted.iter().map(|at| &blocks[*at]).collect::<Vec<_>>())?;
        for ready in ready.iter().filter(|ready| ready.known.len() < blocks.len()) {
            self.bring_bytes(ready)?;
        }
        for at in wanted {
            let block = &blocks[at];
            let missing = (0..ready.len()).filter(|number| !ready[*number].known.contains_key(&at));
            let missing: Vec<usize> = missing.collect();
            let actions: Vec<Action> = missing
                .iter()
                .map(|number| self.reference.block_action(ready[*number].compute, block, true))
                .collect();
            let weights = self.weights(missing.iter().map(|number| ready[*number].variant));
            for nth in context.prepare(&actions)? {
                context.weigh_chunks(weights[nth]);
                let ready = &mut ready[missing[nth]];
                let performed = context.perform_part(&self.name(ready.variant), &actions[nth])?;
                ready.known.insert(at, performed.output(EvalBlock::FIGURES)?);
            }
        }
        Ok(())
    }

    /// Makes sure that all that measuring a variant takes is in the store: its document, and the bytes of its tensors, which are
    /// quantized again if they were collected.
    fn bring_bytes(&self, ready: &Ready<'_>) -> Result<(), StepError> {
        let store = self.context.store();
        for (&at, &ty) in ready.variant {
            let tensor = self.tensors.get(at)?;
            if tensor.ty == ty {
                continue;
            }
            let expected = ready.bytes.get(&at);
            if expected != Some(&self.quantized(at, ty)?) {
                return Err(StepError::input(format!(
                    "`{}` in {ty} was quantized to different bytes before: `forge check --twice` shows which actions are not deterministic",
                    tensor.name
                )));
            }
        }
        store.put(&self.document(ready.variant, &ready.bytes)?)?;
        self.context.add_variant(ready.compute, self.reference.model);
        Ok(())
    }

    fn read(&self, ready: &Ready<'_>, blocks: usize) -> Result<Vec<f64>, StepError> {
        let store = self.context.store();
        let mut divergences = Vec::new();
        for at in 0..blocks {
            let figures = ready.known.get(&at);
            let figures = figures.ok_or_else(|| StepError::input("a measured block is missing: build again"))?;
            let bytes = store.read(figures, DOCUMENT_CAP)?;
            let part = TokenBlock::decode(&bytes).map_err(failed)?;
            divergences.extend(part.means().iter().map(|means| means.kld));
        }
        Ok(divergences)
    }
}
