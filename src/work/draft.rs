//! A candidate in the making: its tensors quantized, and its file written under a temporary name.

use std::io;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use super::Context;
use super::StepError;
use super::assembly::AssembledTensor;
use super::assembly::Assembly;
use super::assembly::From;
use super::candidate_metadata::ImatrixFacts;
use super::candidate_metadata::candidate_metadata;
use super::documents::decode;
use super::documents::decode_metadata;
use super::hashed_file::write_hashed;
use super::join::Slices;
use super::locked;
use super::model_documents::INDEX;
use super::model_documents::IndexedTensor;
use super::tensors::Tensors;
use crate::action;
use crate::action::Action;
use crate::action::Promote;
use crate::container;
use crate::container::TensorSpec;
use crate::digest::BlobDigest;
use crate::digest::DigestWriter;
use crate::fs;
use crate::observer::ActionOutcome;
use crate::observer::Unit;
use crate::policy::Choice;
use crate::policy::Table;
use crate::prose;
use crate::store::Store;

/// Tensors that are worked on at once. Their rows are quantized by all threads; more of them only keep the disk busy.
const AT_ONCE: usize = 3;

/// How much of a tensor that stays as it is is copied at once.
const PIECE: u64 = 4 << 20;

/// A candidate before its tensors are there: its size is known to the byte.
pub struct Draft {
    /// The model's tensors.
    pub tensors: Tensors,
    /// What becomes of each.
    pub table: Table,
    /// The file.
    pub layout: Box<dyn container::Candidate>,
}

/// Refuses to quantize tensors again.
pub fn quantized_already(tensors: &[impl AsRef<str>]) -> StepError {
    StepError::input_hint(
        format!(
            "the source is quantized already: {} {}",
            prose::names(tensors, 3),
            if tensors.len() == 1 { "is" } else { "are" }
        ),
        "start from an F32, F16 or BF16 model, or set `allow_requantize = true` and accept the loss",
    )
}

/// A candidate's file, complete but without its name.
pub(super) struct Written {
    /// The file, if it was to be written.
    pub(super) temp: Option<fs::TempFile>,
    pub(super) assembly: Assembly,
    pub(super) tensors: Vec<IndexedTensor>,
}

impl Draft {
    /// Lays a candidate out. `imatrix` is where the importances come from, if they are not in the store.
    ///
    /// # Errors
    ///
    /// [`StepError::Input`] if the policy was made for a different model; errors of the store.
    pub fn load(store: &Store, promote: &Promote, imatrix: Option<BlobDigest>) -> Result<Self, StepError> {
        let slices = match promote.slices {
            Some(slices) => decode(store, "slices", slices)?,
            None => Slices::default(),
        };
        let mut tensors = Tensors::load(store, promote.model, slices, imatrix, promote.quantizer)?;
        tensors.refine(store, promote.rounding)?;
        let index = &tensors.index;
        let table: Table = decode(store, "policy", promote.policy)?;
        let same = index.tensors.len() == table.choices.len()
            && index
                .tensors
                .iter()
                .zip(&table.choices)
                .all(|(tensor, choice)| tensor.name == choice.tensor && tensor.ty == choice.from);
        if !same {
            return Err(StepError::input("the policy was made for a different model"));
        }
        let metadata = decode_metadata(store, promote.metadata)?;
        let said = ImatrixFacts::of(promote)?;
        let file_type = promote.imatrix.get("file_type").and_then(|number| number.parse().ok());
        let metadata = candidate_metadata(metadata, file_type, said.as_ref())?;
        let specs: Vec<TensorSpec> = index
            .tensors
            .iter()
            .zip(&table.choices)
            .map(|(tensor, choice)| TensorSpec {
                name: tensor.name.clone(),
                ty: choice.to,
                dims: tensor.dims.clone(),
            })
            .collect();
        let layout = container::OF_CANDIDATES
            .lay_out(&metadata, &specs, index.alignment)
            .map_err(|error| StepError::input(format!("cannot compute the layout of the candidate: {error}")))?;
        Ok(Self { tensors, table, layout })
    }

    /// Returns what becomes of each tensor, in the file's order.
    pub fn choices(&self) -> impl Iterator<Item = (&IndexedTensor, &Choice)> {
        self.tensors.index.tensors.iter().zip(&self.table.choices)
    }

    /// Returns the action that quantizes a tensor; nothing where its bytes stay as they are.
    pub fn action(&self, tensor: &IndexedTensor, choice: &Choice) -> Option<Action> {
        (choice.from != choice.to).then(|| self.tensors.action(tensor, choice.to))
    }

    pub(super) fn check_requantize(&self, allowed: bool) -> Result<(), StepError> {
        let again: Vec<&str> = self
            .table
            .choices
            .iter()
            .filter(|choice| choice.from.is_quantized() && choice.from != choice.to)
            .map(|choice| choice.tensor.as_str())
            .collect();
        if again.is_empty() || allowed {
            return Ok(());
        }
        Err(quantized_already(&again))
    }

    /// Quantizes what is not in the store and assembles the file: under a temporary name in `folder`, or only to digest it.
    pub(super) fn write(&self, context: &Context<'_>, folder: Option<&Path>) -> Result<Written, StepError> {
        if let Some(folder) = folder {
            let found = fs::free_space(folder)?;
            if found < self.layout.file_len() {
                return Err(StepError::NoSpace {
                    path: folder.to_owned(),
                    needed: self.layout.file_len(),
                    found,
                });
            }
        }
        let digests = self.quantize(context)?;
        self.assemble(context, folder, &digests)
    }

    /// Returns the digest of each tensor's bytes in the candidate.
    fn quantize(&self, context: &Context<'_>) -> Result<Vec<BlobDigest>, StepError> {
        let count = self.tensors.index.tensors.len();
        let changes = |index: usize| self.table.choices[index].from != self.table.choices[index].to;
        let bytes = |index: usize| self.tensors.index.tensors[index].bytes.len;
        let total: u64 = (0..count).filter(|&index| changes(index)).map(bytes).sum();
        // The largest first, so that the last ones to finish are small.
        let mut order: Vec<usize> = (0..count).filter(|&index| changes(index)).collect();
        order.sort_by_key(|&index| (std::cmp::Reverse(bytes(index)), index));
        // Tensors with the same input follow each other and share its factorization, which takes much memory.
        let is_refined = |index: usize| {
            let (tensor, choice) = (&self.tensors.index.tensors[index], &self.table.choices[index]);
            choice.from != choice.to && self.tensors.moments_of(tensor, choice.to).is_some()
        };
        let refined: u64 = (0..count).filter(|&index| is_refined(index)).map(bytes).sum();
        let at_once = if refined > 0 { 1 } else { AT_ONCE };
        if refined > 0 {
            order.sort_by_key(|&index| self.tensors.input_of(&self.tensors.index.tensors[index]));
            context.expect(Unit::BytesRefined, refined);
        }
        let digests: Vec<OnceLock<BlobDigest>> = (0..count).map(|_| OnceLock::new()).collect();
        for index in (0..count).filter(|&index| !changes(index)) {
            let _ = digests[index].set(self.tensors.index.tensors[index].bytes);
        }
        context.expect(Unit::BytesQuantized, total);
        context.expect(Unit::Tensors, order.len() as u64);
        let next = AtomicUsize::new(0);
        let failure = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..at_once.min(order.len()).min(rayon::current_num_threads()) {
                scope.spawn(|| {
                    while let Some(&index) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let (tensor, choice) = (&self.tensors.index.tensors[index], &self.table.choices[index]);
                        match self.tensors.quantize(context, tensor, choice.to) {
                            Ok(performed) => {
                                if performed.outcome != ActionOutcome::Ran {
                                    context.advance_known(Unit::BytesQuantized, tensor.bytes.len);
                                    if is_refined(index) {
                                        context.advance_known(Unit::BytesRefined, tensor.bytes.len);
                                    }
                                }
                                context.advance(Unit::Tensors, 1);
                                match performed.output(action::Tensor::TENSOR) {
                                    Ok(digest) => {
                                        let _ = digests[index].set(digest);
                                    }
                                    Err(error) => {
                                        locked(&failure).get_or_insert(error);
                                        return;
                                    }
                                }
                            }
                            Err(error) => {
                                next.store(usize::MAX / 2, Ordering::Relaxed);
                                locked(&failure).get_or_insert(error);
                                return;
                            }
                        }
                    }
                });
            }
        });
        if let Some(error) = failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            return Err(error);
        }
        Ok(digests.into_iter().filter_map(OnceLock::into_inner).collect())
    }

    fn assemble(
        &self,
        context: &Context<'_>,
        folder: Option<&Path>,
        digests: &[BlobDigest],
    ) -> Result<Written, StepError> {
        let mut temp = folder.map(fs::TempFile::new_in).transpose()?;
        let path = temp.as_ref().map_or_else(PathBuf::new, |temp| temp.path().to_owned());
        let mut nowhere = io::sink();
        let sink: &mut (dyn Write + Send) = match &mut temp {
            Some(temp) => temp,
            None => &mut nowhere,
        };
        let mut failure = None;
        context.expect(Unit::BytesWritten, self.layout.file_len());
        let result = write_hashed(sink, |mut out| {
            self.layout.write(&mut out, &mut |index, out| {
                let tensor = &self.tensors.index.tensors[index];
                let copied = if self.table.choices[index].from == self.table.choices[index].to {
                    copy_from_source(context, tensor, out)
                } else {
                    context.store().copy_to(&digests[index], out).map_err(StepError::from)
                };
                context.advance(Unit::BytesWritten, digests[index].len);
                copied.and_then(|()| context.check_cancel()).map_err(|error| {
                    failure = Some(error);
                    io::Error::other("a tensor could not be copied")
                })
            })
        });
        let (file, sha256) = match (result, failure) {
            (Ok(hashes), _) => hashes,
            // What the disk says comes before what follows from it.
            (Err(error), Some(failure)) if error.kind() == io::ErrorKind::Other => return Err(failure),
            (Err(error), _) => return Err(fs::PathError::new(&path, "write", error).into()),
        };
        let mut tensors = Vec::with_capacity(digests.len());
        let mut assembled = Vec::with_capacity(digests.len());
        for (index, (place, &bytes)) in self.layout.tensors().iter().zip(digests).enumerate() {
            let (source, choice) = (&self.tensors.index.tensors[index], &self.table.choices[index]);
            let start = self.layout.header().len() as u64 + place.offset;
            tensors.push(IndexedTensor {
                ty: choice.to,
                start,
                bytes,
                shard: 0,
                ..source.clone()
            });
            assembled.push(AssembledTensor {
                name: source.name.clone(),
                ty: choice.to,
                dims: source.dims.clone(),
                start,
                bytes,
                from: if choice.from == choice.to {
                    From::Source
                } else {
                    From::Store
                },
                action: self.action(source, choice).map(|action| action.digest()),
            });
        }
        let header = BlobDigest::of(self.layout.header());
        let assembly = Assembly {
            schema: INDEX,
            file,
            sha256,
            header,
            tensors: assembled,
        };
        Ok(Written {
            temp,
            assembly,
            tensors,
        })
    }
}

/// Copies a tensor that stays as it is, and checks that it is still what was hashed.
fn copy_from_source(context: &Context<'_>, tensor: &IndexedTensor, out: &mut dyn Write) -> Result<(), StepError> {
    let (source, start) = context.tensor_place(&tensor.bytes)?;
    let file = source.open()?;
    let mut out = DigestWriter::new(out);
    let mut piece = vec![0; PIECE.min(tensor.bytes.len) as usize];
    let mut at = 0;
    while at < tensor.bytes.len {
        let len = PIECE.min(tensor.bytes.len - at) as usize;
        fs::read_exact_at(&file, &mut piece[..len], start + at).map_err(fs::PathError::on(&source.path, "read"))?;
        out.write_all(&piece[..len])
            .map_err(fs::PathError::on(Path::new("the candidate"), "write"))?;
        at += len as u64;
    }
    if out.finish().1 == tensor.bytes {
        Ok(())
    } else {
        Err(StepError::SourceChanged {
            path: source.path.clone(),
        })
    }
}
