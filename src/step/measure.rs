//! What a model loses when some of its tensors have other types, measured without writing a candidate: the tensors are
//! replaced in the loaded model by the very bytes that a candidate would have, chunks are computed, and the tensors put back.
//!
//! Such a probe computes what the candidate's file would, bit for bit ([`Workbench`]); so it has the action of an
//! evaluation of that candidate, and is known to every later policy, budget and candidate that comes to the same tensors.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::digest::BlobDigest;
use crate::engine::EachLogits;
use crate::engine::Options;
use crate::engine::Workbench;
use crate::figures::TokenBlock;
use crate::fs;
use crate::observer::Event;
use crate::report::words;
use crate::step::Outcome;
use crate::step::StepError;
use crate::step::eval::Reference;
use crate::step::eval::failed;
use crate::step::model::DOCUMENT_CAP;
use crate::step::model::IndexedTensor;
use crate::step::model::compute_of;
use crate::step::model::encode;
use crate::step::tensor::Tensors;
use crate::step::tokens::Block;
use crate::tensor_type::TensorType;

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
    /// What differs from the model as it was loaded.
    changed: BTreeSet<usize>,
    /// The bytes of those.
    on: BTreeMap<usize, BlobDigest>,
    /// The digest of all that decides what it computes now.
    compute: Option<BlobDigest>,
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

    /// Returns the mean KL divergence of each chunk of the first `blocks` blocks, in nats, for each variant. What is not in the
    /// store is computed: every block of every variant is an action of its own, so that whatever stops this, it goes on
    /// where it was. `what` says for people what is measured.
    ///
    /// # Errors
    ///
    /// [`StepError::Input`] if the model does not fit into the memory that is free, and all that quantizing and evaluating can
    /// end with.
    pub fn divergences(&mut self, what: &str, variants: &[Variant], blocks: usize) -> Result<Vec<Vec<f64>>, StepError> {
        let blocks = &self.blocks[..blocks.min(self.blocks.len())];
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

    fn compute(&mut self, ready: &mut [Ready<'_>], blocks: &[Block]) -> Result<(), StepError> {
        let (task, store) = (self.reference.task, self.reference.task.env.store);
        let wanted: Vec<&Block> = blocks
            .iter()
            .zip(0..)
            .filter(|(_, at)| ready.iter().any(|ready| !ready.known.contains_key(at)))
            .map(|(block, _)| block)
            .collect();
        let references = self.reference.compute(&wanted)?;
        let mut loaded = match self.loaded.take() {
            Some(loaded) => loaded,
            None => Loaded {
                bench: self.open()?,
                changed: BTreeSet::new(),
                on: BTreeMap::new(),
                compute: None,
            },
        };
        for ready in ready {
            for (at, block) in blocks.iter().enumerate() {
                if ready.known.contains_key(&at) {
                    continue;
                }
                let action = self.reference.block_action(ready.compute, block, true)?;
                let part = self.name(ready.variant);
                let performed = task.perform_part(&part, &action, &self.reference.model.files, |made| {
                    if loaded.compute != Some(ready.compute) {
                        loaded.compute = None;
                        self.put_back(&mut loaded, ready)?;
                        self.put_on(&mut loaded, ready)?;
                        loaded.compute = Some(ready.compute);
                    }
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
        self.loaded = Some(loaded);
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
        let path = files.first().map(|file| file.path.clone()).unwrap_or_default();
        let options = Options { threads: env.threads };
        Workbench::open(&path, &options, self.reference.context, &env.cancel)
            .map_err(StepError::engine(format!("loading `{}`", path.display())))
    }

    /// Puts back the model's own tensors, but for those that are replaced next anyway.
    fn put_back(&self, loaded: &mut Loaded, next: &Ready<'_>) -> Result<(), StepError> {
        let back: Vec<usize> = loaded
            .changed
            .iter()
            .copied()
            .filter(|at| !next.variant.contains_key(at))
            .collect();
        for at in back {
            self.put_own(loaded, at)?;
        }
        Ok(())
    }

    fn put_own(&self, loaded: &mut Loaded, at: usize) -> Result<(), StepError> {
        let tensor = self.tensors.get(at)?;
        let shard = self.tensors.shard(tensor)?;
        let file = fs::open(&shard.path)?;
        let mut bytes = vec![0; usize::try_from(tensor.bytes.len).unwrap_or(usize::MAX)];
        fs::read_exact_at(&file, &mut bytes, tensor.start).map_err(fs::PathError::on(&shard.path, "read"))?;
        if BlobDigest::of(&bytes) != tensor.bytes {
            return Err(StepError::SourceChanged {
                path: shard.path.clone(),
            });
        }
        replace(&mut loaded.bench, tensor, tensor.ty, &bytes)?;
        loaded.changed.remove(&at);
        loaded.on.remove(&at);
        Ok(())
    }

    fn put_on(&self, loaded: &mut Loaded, ready: &Ready<'_>) -> Result<(), StepError> {
        for (&at, &ty) in ready.variant {
            let tensor = self.tensors.get(at)?;
            if tensor.ty == ty {
                if loaded.changed.contains(&at) {
                    self.put_own(loaded, at)?;
                }
                continue;
            }
            let expected = ready.bytes.get(&at);
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
            loaded.changed.insert(at);
            loaded.on.remove(&at);
            replace(&mut loaded.bench, tensor, ty, &bytes)?;
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

fn replace(bench: &mut Workbench, tensor: &IndexedTensor, ty: TensorType, bytes: &[u8]) -> Result<(), StepError> {
    bench
        .replace(&tensor.name, ty, bytes)
        .map_err(StepError::engine("trying a type"))
}
