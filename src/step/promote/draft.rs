//! A candidate in the making: its tensors quantized, and its file written under a temporary name.

use std::io;
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use super::assembly::AssembledTensor;
use super::assembly::Assembly;
use super::assembly::From;
use super::parts::Said;
use super::parts::candidate_metadata;
use crate::digest::BlobDigest;
use crate::digest::DigestWriter;
use crate::fs;
use crate::gguf::Layout;
use crate::gguf::TensorSpec;
use crate::graph::Node;
use crate::graph::Work;
use crate::observer::Unit;
use crate::policy::Table;
use crate::recipe::model::PromoteStep;
use crate::recipe::model::StepBody;
use crate::recipe::model::StepId;
use crate::report::words;
use crate::step::Env;
use crate::step::Inputs;
use crate::step::Outcome;
use crate::step::StepError;
use crate::step::Task;
use crate::step::hashed_file::write_hashed;
use crate::step::misplaced;
use crate::step::model::DOCUMENT_CAP;
use crate::step::model::INDEX;
use crate::step::model::IndexedTensor;
use crate::step::model::decode;
use crate::step::model::decode_metadata;
use crate::step::tensor::Tensors;

/// Tensors that are worked on at once. Their rows are quantized by all threads; more of them only keep the disk busy.
const AT_ONCE: usize = 3;

/// How much of a tensor that stays as it is is copied at once.
const PIECE: u64 = 4 << 20;

/// Returns the name and the settings of a candidate's step.
pub(super) fn promote(node: &Node) -> Result<(&StepId, &PromoteStep), StepError> {
    match &node.work {
        Work::Promote { step, .. } => match &step.body {
            StepBody::Promote(promote) => Ok((&step.id, promote)),
            _ => Err(misplaced(node)),
        },
        _ => Err(misplaced(node)),
    }
}

/// What a candidate is made of.
pub(super) struct Parts<'i> {
    pub(super) model: &'i Outcome,
    pub(super) policy: &'i Outcome,
    pub(super) join: Option<&'i Outcome>,
}

impl<'i> Parts<'i> {
    pub(super) fn of(node: &Node, inputs: &'i Inputs) -> Result<Self, StepError> {
        let (_, promote) = promote(node)?;
        let Work::Promote { policy, .. } = &node.work else {
            return Err(misplaced(node));
        };
        Ok(Self {
            model: inputs.source(&policy.model)?,
            policy: inputs.step(&promote.policy)?,
            join: policy.join.as_ref().map(|join| inputs.step(join)).transpose()?,
        })
    }
}

/// A candidate before its tensors are there: its size is known to the byte.
pub(super) struct Draft<'i> {
    pub(super) tensors: Tensors<'i>,
    pub(super) table: Table,
    pub(super) layout: Layout,
}

/// A candidate's file, complete but without its name.
pub(super) struct Written {
    pub(super) temp: fs::TempFile,
    pub(super) assembly: Assembly,
    pub(super) tensors: Vec<IndexedTensor>,
}

impl<'i> Draft<'i> {
    pub(super) fn load(parts: &Parts<'i>, env: &Env<'_>) -> Result<Self, StepError> {
        let tensors = Tensors::load(parts.model, parts.join, env)?;
        let index = &tensors.index;
        let table: Table = decode(env, "policy", parts.policy.output("policy")?)?;
        let same = index.tensors.len() == table.choices.len()
            && index
                .tensors
                .iter()
                .zip(&table.choices)
                .all(|(tensor, choice)| tensor.name == choice.tensor && tensor.ty == choice.from);
        if !same {
            return Err(StepError::input("the policy was made for another model"));
        }
        let metadata = decode_metadata(&env.store.read(&parts.model.output("metadata")?, DOCUMENT_CAP)?)?;
        let said = parts.join.map(Said::of).transpose()?;
        let metadata = candidate_metadata(metadata, parts.policy.fact("file_type").parse().ok(), said.as_ref())?;
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
        let layout = Layout::new(&metadata, &specs, index.alignment)
            .map_err(|error| StepError::input(format!("the candidate cannot be laid out: {error}")))?;
        Ok(Self { tensors, table, layout })
    }

    pub(super) fn check_requantize(&self, step: &PromoteStep) -> Result<(), StepError> {
        let again: Vec<&str> = self
            .table
            .choices
            .iter()
            .filter(|choice| choice.from.is_quantized() && choice.from != choice.to)
            .map(|choice| choice.tensor.as_str())
            .collect();
        if again.is_empty() || step.allow_requantize {
            return Ok(());
        }
        Err(StepError::input_hint(
            format!(
                "{} {} quantized already",
                words::names(&again, 3),
                if again.len() == 1 { "is" } else { "are" }
            ),
            "start from an F32, F16 or BF16 model, or set `allow_requantize = true` and accept the loss",
        ))
    }

    /// Quantizes what is not in the store, and writes the file under a temporary name in the output folder.
    pub(super) fn write(&self, task: &Task<'_>) -> Result<Written, StepError> {
        let room = fs::free_space(&task.env.out)?;
        if room < self.layout.file_len() {
            return Err(StepError::NoRoom {
                path: task.env.out.clone(),
                needed: self.layout.file_len(),
                found: room,
            });
        }
        let digests = self.quantize(task)?;
        self.assemble(task, &digests)
    }

    /// Returns the digest of each tensor's bytes in the candidate.
    fn quantize(&self, task: &Task<'_>) -> Result<Vec<BlobDigest>, StepError> {
        let count = self.tensors.index.tensors.len();
        let changes = |index: usize| self.table.choices[index].from != self.table.choices[index].to;
        let bytes = |index: usize| self.tensors.index.tensors[index].bytes.len;
        let total: u64 = (0..count).filter(|&index| changes(index)).map(bytes).sum();
        // The largest first, so that the last ones to finish are small.
        let mut order: Vec<usize> = (0..count).filter(|&index| changes(index)).collect();
        order.sort_by_key(|&index| (std::cmp::Reverse(bytes(index)), index));
        let digests: Vec<OnceLock<BlobDigest>> = (0..count).map(|_| OnceLock::new()).collect();
        for index in (0..count).filter(|&index| !changes(index)) {
            let _ = digests[index].set(self.tensors.index.tensors[index].bytes);
        }
        let next = AtomicUsize::new(0);
        let failure = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE.min(order.len()) {
                scope.spawn(|| {
                    while let Some(&index) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let done = AtomicUsize::new(0);
                        let progress = |bytes: u64| {
                            done.fetch_add(bytes as usize, Ordering::Relaxed);
                            task.advance(Unit::BytesQuantized, bytes, total);
                        };
                        let (tensor, choice) = (&self.tensors.index.tensors[index], &self.table.choices[index]);
                        match self.tensors.quantize(task, tensor, choice.to, choice.bytes, &progress) {
                            Ok(digest) => {
                                let left = bytes(index).saturating_sub(done.load(Ordering::Relaxed) as u64);
                                task.advance(Unit::BytesQuantized, left, total);
                                task.advance(Unit::Tensors, 1, order.len() as u64);
                                let _ = digests[index].set(digest);
                            }
                            Err(error) => {
                                next.store(usize::MAX / 2, Ordering::Relaxed);
                                let mut failure = failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                                failure.get_or_insert(error);
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

    fn assemble(&self, task: &Task<'_>, digests: &[BlobDigest]) -> Result<Written, StepError> {
        let env = task.env;
        let mut temp = fs::TempFile::new_in(&env.out)?;
        let path = temp.path().to_owned();
        let mut failure = None;
        let total = self.layout.file_len();
        let result = write_hashed(&mut temp, |mut out| {
            self.layout.write(&mut out, &mut |index, out| {
                let tensor = &self.tensors.index.tensors[index];
                let copied = if self.table.choices[index].from == self.table.choices[index].to {
                    self.copy_from_source(tensor, out)
                } else {
                    env.store.copy_to(&digests[index], out).map_err(StepError::from)
                };
                task.advance(Unit::BytesWritten, digests[index].len, total);
                copied.and_then(|()| task.check_cancel()).map_err(|error| {
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
            let start = self.layout.data_offset() + place.offset;
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
                action: (choice.from != choice.to).then(|| self.tensors.action(source, choice.to).digest()),
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

    /// Copies a tensor that stays as it is, and checks that it is still what was hashed.
    fn copy_from_source(&self, tensor: &IndexedTensor, out: &mut dyn Write) -> Result<(), StepError> {
        let shard = self.tensors.shard(tensor)?;
        let file = shard.open()?;
        let mut out = DigestWriter::new(out);
        let mut piece = vec![0; PIECE.min(tensor.bytes.len) as usize];
        let mut at = 0;
        while at < tensor.bytes.len {
            let len = PIECE.min(tensor.bytes.len - at) as usize;
            fs::read_exact_at(&file, &mut piece[..len], tensor.start + at)
                .map_err(fs::PathError::on(&shard.path, "read"))?;
            out.write_all(&piece[..len])
                .map_err(fs::PathError::on(Path::new("the candidate"), "write"))?;
            at += len as u64;
        }
        if out.finish().1 == tensor.bytes {
            Ok(())
        } else {
            Err(StepError::SourceChanged {
                path: shard.path.clone(),
            })
        }
    }
}
