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
use crate::report::words;
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

/// A model that variants of itself are measured against.
pub struct Bench<'r, 't> {
    /// The model and how it is compared.
    pub reference: Reference<'r, 't>,
    /// Its tensors.
    pub tensors: &'r Tensors<'r>,
    /// The chunks.
    pub blocks: &'r [Block],
}

/// A variant with the bytes of its tensors.
struct Ready<'v> {
    variant: &'v Variant,
    bytes: BTreeMap<usize, BlobDigest>,
    /// The digest of all that decides what it computes.
    compute: BlobDigest,
}

impl Bench<'_, '_> {
    /// Returns the mean KL divergence of each chunk, in nats, for each variant. What is not in the store is computed: the model
    /// is loaded at most once, and every block of every variant is an action of its own, so that whatever stops this, it
    /// goes on where it was.
    ///
    /// # Errors
    ///
    /// [`StepError::Input`] if the model does not fit into the memory that is free, and all that quantizing and evaluating can
    /// end with.
    pub fn divergences(&self, variants: &[Variant]) -> Result<Vec<Vec<f64>>, StepError> {
        let store = self.reference.task.env.store;
        let ready = variants
            .iter()
            .map(|variant| self.ready(variant))
            .collect::<Result<Vec<_>, _>>()?;
        let mut missing: Vec<(usize, &Block)> = Vec::new();
        for (at, ready) in ready.iter().enumerate() {
            for block in self.blocks {
                let action = self.reference.block_action(ready.compute, block, true)?;
                if store.lookup(&action.digest())?.is_none() {
                    missing.push((at, block));
                }
            }
        }
        if !missing.is_empty() {
            self.compute(&ready, &missing)?;
        }
        ready.iter().map(|ready| self.read(ready)).collect()
    }

    /// Returns how many blocks of these variants were not measured yet. Types whose tensors were not quantized count whole.
    pub fn missing(&self, variants: &[Variant]) -> Result<u64, StepError> {
        let store = self.reference.task.env.store;
        let mut missing = 0;
        for variant in variants {
            let known = variant
                .iter()
                .map(|(&at, &ty)| Ok(self.known_bytes(at, ty)?.map(|bytes| (at, bytes))))
                .collect::<Result<Option<BTreeMap<_, _>>, StepError>>()?;
            let Some(bytes) = known else {
                missing += self.blocks.len() as u64;
                continue;
            };
            let compute = self.compute_digest(variant, &bytes)?;
            for block in self.blocks {
                let action = self.reference.block_action(compute, block, true)?;
                missing += u64::from(store.lookup(&action.digest())?.is_none());
            }
        }
        Ok(missing)
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

    fn tensor(&self, at: usize) -> Result<&IndexedTensor, StepError> {
        let tensor = self.tensors.index.tensors.get(at);
        tensor.ok_or_else(|| StepError::input(format!("the model has no tensor {at}")))
    }

    /// Returns the digest of a tensor's bytes in a type, if it was quantized before; the bytes need not be there any more.
    fn known_bytes(&self, at: usize, ty: TensorType) -> Result<Option<BlobDigest>, StepError> {
        let tensor = self.tensor(at)?;
        if tensor.ty == ty {
            return Ok(Some(tensor.bytes));
        }
        let key = self.tensors.action(tensor, ty).digest();
        let result = self.reference.task.env.store.lookup_shallow(&key)?;
        Ok(result.and_then(|result| result.outputs.get("tensor").copied()))
    }

    /// Returns the bytes of a tensor in a type, in the store or in the source.
    fn quantized(&self, at: usize, ty: TensorType) -> Result<BlobDigest, StepError> {
        let tensor = self.tensor(at)?;
        let row = tensor.dims.first().copied().unwrap_or(0);
        let rows: u64 = tensor.dims.iter().skip(1).product();
        let expected = ty.row_bytes(row).and_then(|bytes| bytes.checked_mul(rows));
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

    fn ready<'v>(&self, variant: &'v Variant) -> Result<Ready<'v>, StepError> {
        let mut bytes = BTreeMap::new();
        for (&at, &ty) in variant {
            let digest = match self.known_bytes(at, ty)? {
                Some(known) => known,
                None => self.quantized(at, ty)?,
            };
            bytes.insert(at, digest);
        }
        Ok(Ready {
            variant,
            compute: self.compute_digest(variant, &bytes)?,
            bytes,
        })
    }

    fn compute(&self, ready: &[Ready<'_>], missing: &[(usize, &Block)]) -> Result<(), StepError> {
        let (task, store) = (self.reference.task, self.reference.task.env.store);
        let mut blocks: Vec<&Block> = Vec::new();
        for (_, block) in missing {
            if !blocks.iter().any(|known| known.digest == block.digest) {
                blocks.push(block);
            }
        }
        let references = self.reference.compute(&blocks)?;
        let mut bench = self.open()?;
        let total: u64 = missing.iter().map(|(_, block)| block.chunks.len() as u64).sum();
        // What differs on the bench from the model as it was loaded.
        let mut changed: BTreeSet<usize> = BTreeSet::new();
        let mut on_bench = None;
        for &(at, block) in missing {
            let ready = &ready[at];
            let action = self.reference.block_action(ready.compute, block, true)?;
            let part = self.name(ready.variant);
            task.perform_part(&part, &action, &self.reference.model.files, |made| {
                if on_bench != Some(at) {
                    on_bench = None;
                    self.put_back(&mut bench, &mut changed, ready)?;
                    self.put_on(&mut bench, &mut changed, ready)?;
                    on_bench = Some(at);
                }
                let mut compute = |chunk: &[i32], first: usize, each: &mut EachLogits<'_>| {
                    bench.logits(chunk, first, &task.env.cancel, each)
                };
                let known = references.get(&block.digest);
                let measured = self.reference.measure(&mut compute, block, known, total)?;
                made.output("figures", store.put(&measured.encode())?);
                Ok(())
            })?;
        }
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
                "measure on a machine with more memory, or choose by `method = \"prior\"`",
            ));
        }
        let path = files.first().map(|file| file.path.clone()).unwrap_or_default();
        let options = Options { threads: env.threads };
        Workbench::open(&path, &options, self.reference.context, &env.cancel)
            .map_err(StepError::engine(format!("loading `{}`", path.display())))
    }

    /// Puts back the model's own tensors, but for those that are replaced next anyway.
    fn put_back(
        &self,
        bench: &mut Workbench,
        changed: &mut BTreeSet<usize>,
        next: &Ready<'_>,
    ) -> Result<(), StepError> {
        let back: Vec<usize> = changed
            .iter()
            .copied()
            .filter(|at| !next.variant.contains_key(at))
            .collect();
        for at in back {
            let tensor = self.tensor(at)?;
            let shard = self.tensors.shard(tensor)?;
            let file = fs::open(&shard.path)?;
            let mut bytes = vec![0; usize::try_from(tensor.bytes.len).unwrap_or(usize::MAX)];
            fs::read_exact_at(&file, &mut bytes, tensor.start).map_err(fs::PathError::on(&shard.path, "read"))?;
            if BlobDigest::of(&bytes) != tensor.bytes {
                return Err(StepError::SourceChanged {
                    path: shard.path.clone(),
                });
            }
            replace(bench, tensor, tensor.ty, &bytes)?;
            changed.remove(&at);
        }
        Ok(())
    }

    fn put_on(&self, bench: &mut Workbench, changed: &mut BTreeSet<usize>, ready: &Ready<'_>) -> Result<(), StepError> {
        for (&at, &ty) in ready.variant {
            let tensor = self.tensor(at)?;
            if tensor.ty == ty {
                continue;
            }
            // Made again if it was collected; the same bytes, or the probe is another one.
            let digest = self.quantized(at, ty)?;
            if ready.bytes.get(&at) != Some(&digest) {
                return Err(StepError::input(format!(
                    "`{}` in {ty} was quantized to other bytes before: `forge check --twice` finds out why",
                    tensor.name
                )));
            }
            let bytes = self.reference.task.env.store.map(&digest)?;
            changed.insert(at);
            replace(bench, tensor, ty, &bytes)?;
        }
        Ok(())
    }

    fn read(&self, ready: &Ready<'_>) -> Result<Vec<f64>, StepError> {
        let store = self.reference.task.env.store;
        let mut divergences = Vec::new();
        for block in self.blocks {
            let action = self.reference.block_action(ready.compute, block, true)?;
            let result = store.lookup(&action.digest())?;
            let figures = result.and_then(|result| result.outputs.get("figures").copied());
            let figures = figures.ok_or_else(|| StepError::input("a measured block went missing: build again"))?;
            let bytes = store.read(&figures, DOCUMENT_CAP)?;
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
