//! What a model loses when some of its tensors have other types, measured without writing a candidate: the tensors are
//! replaced in the loaded model by the very bytes that a candidate would have, chunks are computed, and the tensors put back.
//!
//! Such a probe computes what the candidate's file would, bit for bit ([`Workbench`]); so it has the action of an
//! evaluation of that candidate, and is known to every later policy, budget and candidate that comes to the same tensors.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::digest::BlobDigest;
use crate::engine::EachLogits;
use crate::engine::Options;
use crate::engine::Workbench;
use crate::figures;
use crate::figures::TokenBlock;
use crate::fs;
use crate::observer::Event;
use crate::report::words;
use crate::step::Outcome;
use crate::step::StepError;
use crate::step::eval::Reference;
use crate::step::eval::failed;
use crate::step::imatrix::model_files;
use crate::step::model::DOCUMENT_CAP;
use crate::step::model::IndexedTensor;
use crate::step::model::compute_of;
use crate::step::model::encode;
use crate::step::tensor::Tensors;
use crate::step::tokens::Block;
use crate::tensor_type::TensorType;

/// Bytes that may be kept of chunks in memory, at most; less where less is free.
const KEPT: u64 = 4 << 30;

/// Tensors by their place in the model's index, and the type that each has instead of its own. Nothing at all is the model
/// itself, whose measure is the floor of all others: what rounding the reference costs.
pub type Variant = BTreeMap<usize, TensorType>;

/// A model that variants of itself are measured against. It is loaded when the first one is computed, and stays.
pub struct Bench<'r, 't> {
    /// The model and how it is compared.
    reference: Reference<'r, 't>,
    /// Its tensors.
    tensors: &'r Tensors<'r>,
    /// The chunks.
    blocks: &'r [Block],
    loaded: Option<Loaded>,
    /// Chunks that were to be computed so far, for the progress.
    planned: u64,
}

/// The model in memory.
struct Loaded {
    bench: Workbench,
    /// What differs from the model as it was loaded, and the bytes of that.
    on: BTreeMap<usize, BlobDigest>,
    /// The digest of all that decides what it computes now.
    compute: Option<BlobDigest>,
}

impl Loaded {
    /// Gives a tensor back what it was loaded with.
    fn put_own(&mut self, at: usize, tensor: &IndexedTensor) {
        if self.on.remove(&at).is_some() {
            self.bench.restore(&tensor.name);
        }
    }
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

/// What most variants have in common: each tensor as most of them have it.
struct Base {
    variant: Variant,
    bytes: BTreeMap<usize, BlobDigest>,
}

impl Base {
    fn of(ready: &[Ready<'_>]) -> Self {
        let mut counts: BTreeMap<usize, BTreeMap<TensorType, (usize, BlobDigest)>> = BTreeMap::new();
        for ready in ready {
            for ((&at, &ty), &bytes) in ready.variant.iter().zip(ready.bytes.values()) {
                counts.entry(at).or_default().entry(ty).or_insert((0, bytes)).0 += 1;
            }
        }
        let mut base = Self {
            variant: Variant::new(),
            bytes: BTreeMap::new(),
        };
        for (at, types) in counts {
            let named: usize = types.values().map(|(count, _)| count).sum();
            let most = types.into_iter().max_by_key(|(_, (count, _))| *count);
            if let Some((ty, (count, bytes))) = most
                && count > ready.len() - named
            {
                base.variant.insert(at, ty);
                base.bytes.insert(at, bytes);
            }
        }
        base
    }

    /// Returns the tensors that are not the same in a variant.
    fn differing<'a>(
        &'a self,
        ready: &'a Ready<'_>,
        tensors: &'a Tensors<'_>,
    ) -> impl Iterator<Item = Result<&'a IndexedTensor, StepError>> {
        let either = ready.variant.keys().chain(self.variant.keys());
        let tensors = either.map(move |at| Ok((*at, tensors.get(*at)?)));
        tensors.filter_map(move |found| match found {
            Ok((at, tensor)) => {
                let of = |variant: &Variant| variant.get(&at).copied().unwrap_or(tensor.ty);
                (of(&self.variant) != of(ready.variant)).then_some(Ok(tensor))
            }
            Err(error) => Some(Err(error)),
        })
    }
}

impl<'r, 't> Bench<'r, 't> {
    /// Makes ready to measure on some blocks.
    pub fn new(reference: Reference<'r, 't>, tensors: &'r Tensors<'r>, blocks: &'r [Block]) -> Self {
        Self {
            reference,
            tensors,
            blocks,
            loaded: None,
            planned: 0,
        }
    }

    /// Returns how many blocks there are.
    pub fn block_count(&self) -> usize {
        self.blocks.len()
    }

    /// Returns the least number of blocks that have so many chunks together, and the chunks of those; all if there are not
    /// so many.
    pub fn first_blocks(&self, chunks: u64) -> (usize, usize) {
        let mut sum = 0;
        for (at, block) in self.blocks.iter().enumerate() {
            sum += block.chunks.len();
            if sum as u64 >= chunks {
                return (at + 1, sum);
            }
        }
        (self.blocks.len(), sum)
    }

    /// Returns the mean KL divergence of each chunk of some blocks, in nats, for each variant. What is not in the
    /// store is computed: every block of every variant is an action of its own, so that whatever stops this, it goes on
    /// where it was. `what` says for people what is measured.
    ///
    /// # Errors
    ///
    /// [`StepError::Input`] if the model does not fit into the memory that is free, and all that quantizing and evaluating can
    /// end with.
    pub fn divergences(
        &mut self,
        what: &str,
        variants: &[Variant],
        blocks: Range<usize>,
    ) -> Result<Vec<Vec<f64>>, StepError> {
        let blocks = self.blocks.get(blocks);
        let blocks = blocks.ok_or_else(|| StepError::input("there are not so many blocks"))?;
        let mut ready = Vec::with_capacity(variants.len());
        for variant in variants {
            ready.push(self.ready(variant, blocks)?);
        }
        let missing = ready
            .iter()
            .flat_map(|ready| blocks.iter().zip(0..).filter(|(_, at)| !ready.known.contains_key(at)));
        let chunks: u64 = missing.map(|(block, _)| block.chunks.len() as u64).sum();
        if chunks > 0 {
            self.reference.task.tell(Event::Note {
                step: self.reference.task.step.clone(),
                message: format!("{what}: {} to compute", words::count(chunks, "chunk")),
            });
            self.planned += chunks;
            self.compute(&mut ready, blocks)?;
        }
        ready.iter().map(|ready| self.read(ready, blocks.len())).collect()
    }

    /// Says for people what a variant is.
    fn name(&self, variant: &Variant) -> String {
        let named = variant.iter().filter_map(|(&at, ty)| {
            let tensor = self.tensors.index.tensors.get(at)?;
            Some(format!("{} in {ty}", tensor.name))
        });
        let named: Vec<String> = named.collect();
        if named.is_empty() {
            "the model itself".to_owned()
        } else {
            words::names(&named.iter().map(String::as_str).collect::<Vec<_>>(), 3)
        }
    }

    /// Returns the digest of a tensor's bytes in a type, if it was quantized before; the bytes need not be there any more.
    fn known_bytes(&self, at: usize, ty: TensorType) -> Result<Option<BlobDigest>, StepError> {
        let tensor = self.tensors.get(at)?;
        if tensor.ty == ty {
            return Ok(Some(tensor.bytes));
        }
        let key = self.tensors.action(tensor, ty).digest();
        let result = self.reference.task.env.store.lookup_shallow(&key)?;
        Ok(result.and_then(|result| result.outputs.get("tensor").copied()))
    }

    /// Returns the bytes of a tensor in a type, in the store or in the source.
    fn quantized(&self, at: usize, ty: TensorType) -> Result<BlobDigest, StepError> {
        let tensor = self.tensors.get(at)?;
        let expected = ty.tensor_bytes(&tensor.dims);
        let expected = expected.ok_or_else(|| StepError::input(format!("`{}` cannot be {ty}", tensor.name)))?;
        self.tensors
            .quantize(self.reference.task, tensor, ty, expected, &|_| {})
    }

    fn compute_digest(&self, variant: &Variant, bytes: &BTreeMap<usize, BlobDigest>) -> Result<BlobDigest, StepError> {
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
        let hyperparameters = self.reference.model.output("hyperparameters")?;
        Ok(BlobDigest::of(&encode(&compute_of(hyperparameters, &tensors))?))
    }

    fn ready<'v>(&self, variant: &'v Variant, blocks: &[Block]) -> Result<Ready<'v>, StepError> {
        let store = self.reference.task.env.store;
        let mut bytes = BTreeMap::new();
        for (&at, &ty) in variant {
            let digest = match self.known_bytes(at, ty)? {
                Some(known) => known,
                None => self.quantized(at, ty)?,
            };
            bytes.insert(at, digest);
        }
        let compute = self.compute_digest(variant, &bytes)?;
        let mut known = BTreeMap::new();
        for (at, block) in blocks.iter().enumerate() {
            let action = self.reference.block_action(compute, block, true)?;
            if let Some(result) = store.lookup(&action.digest())? {
                known.extend(result.outputs.get("figures").map(|figures| (at, *figures)));
            }
        }
        Ok(Ready {
            variant,
            bytes,
            compute,
            known,
        })
    }

    /// Computes what is missing, block by block. Within a block those variants that share most with what all share come last:
    /// the nodes before the first tensor that a variant has in another type are computed once for it and all after it.
    fn compute(&mut self, ready: &mut [Ready<'_>], blocks: &[Block]) -> Result<(), StepError> {
        let (task, store) = (self.reference.task, self.reference.task.env.store);
        let is_missing = |at: &usize| ready.iter().any(|ready| !ready.known.contains_key(at));
        let wanted: Vec<usize> = (0..blocks.len()).filter(is_missing).collect();
        let references = self
            .reference
            .compute(&wanted.iter().map(|at| &blocks[*at]).collect::<Vec<_>>())?;
        let mut loaded = match self.loaded.take() {
            Some(loaded) => loaded,
            None => Loaded {
                bench: self.open()?,
                on: BTreeMap::new(),
                compute: None,
            },
        };
        let base = Base::of(ready);
        let mut order: Vec<(usize, usize)> = Vec::with_capacity(ready.len());
        for (number, ready) in ready.iter().enumerate() {
            let differing: Vec<_> = base.differing(ready, self.tensors).collect::<Result<_, _>>()?;
            let place = loaded.bench.place(differing.iter().map(|tensor| tensor.name.as_str()));
            order.push((place, number));
        }
        order.sort_unstable();
        let room = fs::free_memory().map_or(KEPT, |free| KEPT.min(free / 4));
        let positions = figures::scored_positions(self.reference.context as usize).map_err(failed)?;
        for at in wanted {
            let block = &blocks[at];
            let missing = order
                .iter()
                .filter(|(_, number)| !ready[*number].known.contains_key(&at));
            let missing: Vec<(usize, usize)> = missing.copied().collect();
            loaded.bench.forget();
            let mut kept = 0;
            for (nth, (place, number)) in missing.iter().enumerate() {
                let ready = &mut ready[*number];
                let action = self.reference.block_action(ready.compute, block, true)?;
                let part = self.name(ready.variant);
                let performed = task.perform_part(&part, &action, &self.reference.model.files, |made| {
                    // Keeping costs what one variant saves by it.
                    if *place > kept && nth + 1 < missing.len() {
                        self.turn_to(&mut loaded, &base.variant, &base.bytes, None)?;
                        for chunk in &block.chunks {
                            loaded
                                .bench
                                .keep(chunk, positions.start, *place, room, &task.env.cancel)
                                .map_err(StepError::engine("measuring types"))?;
                        }
                        kept = *place;
                    }
                    self.turn_to(&mut loaded, ready.variant, &ready.bytes, Some(ready.compute))?;
                    let mut compute = |chunk: &[i32], first: usize, each: &mut EachLogits<'_>| {
                        loaded.bench.logits(chunk, first, &task.env.cancel, each)
                    };
                    let known = references.get(&block.digest);
                    let measured = self.reference.measure(&mut compute, block, known, self.planned)?;
                    made.output("figures", store.put(&measured.encode())?);
                    Ok(())
                })?;
                let figures = Outcome::of(performed, Vec::new()).output("figures")?;
                ready.known.insert(at, figures);
            }
        }
        loaded.bench.forget();
        self.loaded = Some(loaded);
        Ok(())
    }

    /// Has the loaded model be a variant, which `compute` names.
    fn turn_to(
        &self,
        loaded: &mut Loaded,
        variant: &Variant,
        bytes: &BTreeMap<usize, BlobDigest>,
        compute: Option<BlobDigest>,
    ) -> Result<(), StepError> {
        if compute.is_some() && loaded.compute == compute {
            return Ok(());
        }
        loaded.compute = None;
        self.put_back(loaded, variant)?;
        self.put_on(loaded, variant, bytes)?;
        loaded.compute = compute;
        Ok(())
    }

    /// Loads the model into memory.
    fn open(&self) -> Result<Workbench, StepError> {
        let env = self.reference.task.env;
        let files = &self.reference.model.files;
        let needed: u64 = files.iter().map(|file| file.digest.len).sum();
        if let Some(free) = fs::free_memory()
            && free < needed
        {
            return Err(StepError::input_hint(
                format!(
                    "measuring types takes the whole model in memory: {}, and {} are free",
                    words::bytes(needed),
                    words::bytes(free)
                ),
                "measure on a machine with more memory, or choose by `method = \"error\"` with `probes = 0`, which needs no model in memory",
            ));
        }
        let files = model_files(self.reference.model)?;
        let what = format!("loading `{}`", files.path().display());
        let options = Options { threads: env.threads };
        Workbench::open(files, &options, self.reference.context, &env.cancel).map_err(StepError::engine(what))
    }

    /// Puts back the model's own tensors, but for those that are replaced next anyway.
    fn put_back(&self, loaded: &mut Loaded, next: &Variant) -> Result<(), StepError> {
        let back: Vec<usize> = loaded.on.keys().copied().filter(|at| !next.contains_key(at)).collect();
        for at in back {
            loaded.put_own(at, self.tensors.get(at)?);
        }
        Ok(())
    }

    fn put_on(
        &self,
        loaded: &mut Loaded,
        variant: &Variant,
        bytes: &BTreeMap<usize, BlobDigest>,
    ) -> Result<(), StepError> {
        for (&at, &ty) in variant {
            let tensor = self.tensors.get(at)?;
            if tensor.ty == ty {
                loaded.put_own(at, tensor);
                continue;
            }
            let expected = bytes.get(&at);
            if expected.is_some() && loaded.on.get(&at) == expected {
                continue;
            }
            // Made again if it was collected; the same bytes, or the probe is another one.
            let digest = self.quantized(at, ty)?;
            if expected != Some(&digest) {
                return Err(StepError::input(format!(
                    "`{}` in {ty} was quantized to other bytes before: `forge check --twice` finds out why",
                    tensor.name
                )));
            }
            let bytes = self.reference.task.env.store.map(&digest)?;
            let replaced = loaded.bench.replace(&tensor.name, ty, bytes);
            replaced.map_err(StepError::engine("trying a type"))?;
            loaded.on.insert(at, digest);
        }
        Ok(())
    }

    fn read(&self, ready: &Ready<'_>, blocks: usize) -> Result<Vec<f64>, StepError> {
        let store = self.reference.task.env.store;
        let mut divergences = Vec::new();
        for at in 0..blocks {
            let figures = ready.known.get(&at);
            let figures = figures.ok_or_else(|| StepError::input("a measured block went missing: build again"))?;
            let bytes = store.read(figures, DOCUMENT_CAP)?;
            let part = TokenBlock::decode(&bytes).map_err(failed)?;
            divergences.extend(part.means().iter().map(|means| means.kld));
        }
        Ok(divergences)
    }
}
