//! `[promote.NAME]`: a candidate. One action for each tensor, and one that assembles them; the file is written straight
//! from the tensors in the store, and is not stored a second time.

mod assembly;
pub(in crate::step) mod parts;
mod single;

use std::collections::BTreeMap;
use std::io;
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use crate::action;
use crate::action::Action;
use crate::digest::ActionDigest;
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
use crate::step::Estimate;
use crate::step::Inputs;
use crate::step::Key;
use crate::step::Kind;
use crate::step::Outcome;
use crate::step::Pool;
use crate::step::StepError;
use crate::step::Task;
use crate::step::hashed_file::write_hashed;
use crate::step::key_of;
use crate::step::metrics;
use crate::step::misplaced;
use crate::step::model::DOCUMENT_CAP;
use crate::step::model::INDEX;
use crate::step::model::IndexedTensor;
use crate::step::model::compute_of;
use crate::step::model::decode;
use crate::step::model::decode_metadata;
use crate::step::model::encode;
use crate::step::output;
use crate::step::source_file::SourceFile;
use crate::step::tensor::Tensors;

pub use assembly::AssembledTensor;
pub use assembly::Assembly;
pub use assembly::From;
pub use single::PlannedTensor;
pub use single::planned_tensors;

use parts::Said;
use parts::candidate_metadata;

/// The version of what is written around the tensors: raise it when a candidate's header changes.
const WRITER: u32 = 1;

/// Tensors that are worked on at once. Their rows are quantized by all threads; more of them only keep the disk busy.
const AT_ONCE: usize = 3;

/// How much of a tensor that stays as it is is copied at once.
const PIECE: u64 = 4 << 20;

/// A candidate.
pub struct Promote;

fn promote(node: &Node) -> Result<(&StepId, &PromoteStep), StepError> {
    match &node.work {
        Work::Promote { step, .. } => match &step.body {
            StepBody::Promote(promote) => Ok((&step.id, promote)),
            _ => Err(misplaced(node)),
        },
        _ => Err(misplaced(node)),
    }
}

/// What a candidate is made of.
struct Parts<'i> {
    model: &'i Outcome,
    policy: &'i Outcome,
    join: Option<&'i Outcome>,
}

impl Promote {
    fn parts<'i>(node: &Node, inputs: &'i Inputs) -> Result<Parts<'i>, StepError> {
        let (_, promote) = promote(node)?;
        let Work::Promote { policy, .. } = &node.work else {
            return Err(misplaced(node));
        };
        Ok(Parts {
            model: inputs.source(&policy.model)?,
            policy: inputs.step(&promote.policy)?,
            join: policy.join.as_ref().map(|join| inputs.step(join)).transpose()?,
        })
    }

    fn action(node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Action, StepError> {
        let (_, promote) = promote(node)?;
        let parts = Self::parts(node, inputs)?;
        let facts = parts.join.map(|join| {
            let fact = |name: &str| (name.to_owned(), join.fact(name).to_owned());
            BTreeMap::from([fact("dataset"), fact("entries"), fact("chunks")])
        });
        let mut said = facts.unwrap_or_default();
        said.insert("file_type".to_owned(), parts.policy.fact("file_type").to_owned());
        Ok(Action::Promote(action::Promote {
            model: parts.model.output("model")?,
            metadata: parts.model.output("metadata")?,
            policy: parts.policy.output("policy")?,
            slices: parts.join.map(|join| join.output("slices")).transpose()?,
            imatrix: said,
            allow_requantize: promote.allow_requantize,
            quantizer: env.quantizer.fingerprint(),
            writer: WRITER,
        }))
    }
}

fn file_name(id: &StepId) -> String {
    format!("{}.gguf", id.label())
}

/// Returns the file name of the manifest beside a candidate.
pub fn manifest_name(id: &StepId) -> String {
    format!("{}.manifest.json", file_name(id))
}

impl Kind for Promote {
    fn key(&self, node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Key, StepError> {
        Ok(key_of(Self::action(node, inputs, env)?))
    }

    fn intact(&self, node: &Node, outcome: &mut Outcome, _inputs: &Inputs, env: &Env<'_>) -> Result<bool, StepError> {
        let (id, _) = promote(node)?;
        let expected = file_digest(outcome)?;
        let path = output::path(env, &file_name(id))?;
        let found = output::intact(env, &path, &expected)?;
        if let Some(file) = &found
            && env.store.is_leased()
            && !env.store.is_lender(&path, &file.stamp, &expected)?
        {
            // It was moved, or touched, or is older than lending. Not if somebody is at the place: the next build will do.
            if let Some(_lock) = env.store.lock_output(&path, &mut |_| {}, &|| true)? {
                lend(outcome, file, env)?;
            }
        }
        outcome.files = found.into_iter().collect();
        Ok(!outcome.files.is_empty())
    }

    fn estimate(&self, node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Estimate, StepError> {
        let draft = Draft::load(node, inputs, env)?;
        let mut estimate = Estimate {
            unit: "tensor",
            writes: draft.layout.file_len(),
            outputs: draft.layout.file_len(),
            ..Estimate::default()
        };
        for (tensor, choice) in draft.tensors.index.tensors.iter().zip(&draft.table.choices) {
            if choice.from == choice.to {
                estimate.reads += tensor.bytes.len;
                continue;
            }
            estimate.parts += 1;
            if env
                .store
                .lookup(&draft.tensors.action(tensor, choice.to).digest())?
                .is_none()
            {
                estimate.missing += 1;
                estimate.reads += tensor.bytes.len;
                estimate.writes += choice.bytes;
                estimate.passing += choice.bytes;
            }
        }
        Ok(estimate)
    }

    fn pool(&self, _node: &Node) -> Pool {
        Pool::Disk
    }

    fn run(&self, node: &Node, inputs: &Inputs, task: &Task<'_>) -> Result<Outcome, StepError> {
        let (id, step) = promote(node)?;
        let env = task.env;
        let action = Self::action(node, inputs, env)?;
        let draft = Draft::load(node, inputs, env)?;
        draft.check_requantize(step)?;
        let path = output::path(env, &file_name(id))?;
        fs::create_dir_all(&env.out)?;
        // Before the action's own lock: whoever waits here finds the file when it gets on.
        let _lock = output::lock(task, &path, action.digest())?;
        let mut pending = None;
        let performed = task.perform(&action, &draft.tensors.model.files, |made| {
            let written = draft.write(task)?;
            let store = env.store;
            made.output("header", store.put(draft.layout.header())?);
            let hyperparameters = draft.tensors.model.output("hyperparameters")?;
            made.output(
                "compute",
                store.put(&encode(&compute_of(hyperparameters, &written.tensors))?)?,
            );
            made.output("assembly", store.put(&encode(&written.assembly)?)?);
            made.output("hyperparameters", hyperparameters);
            made.output("tokenizer", draft.tensors.model.output("tokenizer")?);
            made.fact("file", written.assembly.file);
            made.fact("sha256", &written.assembly.sha256);
            made.fact("elements", draft.tensors.model.fact("elements"));
            made.fact("tensors", draft.table.choices.len());
            if let Some(probed) = draft.table.probed_loss.as_ref().and_then(metrics::probed) {
                made.fact("probed", probed);
            }
            made.fact(
                "quantized",
                draft
                    .table
                    .choices
                    .iter()
                    .filter(|choice| choice.from != choice.to)
                    .count(),
            );
            pending = Some(written);
            Ok(())
        })?;
        let mut outcome = Outcome::of(performed, Vec::new());
        let expected = file_digest(&outcome)?;
        let file = match (pending, output::intact(env, &path, &expected)?) {
            (None, Some(file)) => {
                if !env.store.is_lender(&path, &file.stamp, &expected)? {
                    lend(&outcome, &file, env)?;
                }
                file
            }
            (pending, _) => {
                // The result was known, but the file is not there: assemble it again.
                let written = pending.map_or_else(|| draft.write(task), Ok)?;
                if written.assembly.file != expected {
                    return Err(StepError::Document {
                        what: "record of this candidate",
                        problem: format!("it says {expected}, but its tensors make {}", written.assembly.file),
                    });
                }
                for file in &draft.tensors.model.files {
                    file.check_unchanged()?;
                }
                let loans = written.assembly.loans();
                let unnamed = fs::Stamp::of_file(written.temp.file(), written.temp.path())?;
                env.store.promise_loans(&path, &unnamed, &expected, &loans)?;
                let reclaimed = env.store.reclaim(&path, &loans)?;
                written.temp.persist(&path, fs::Durability::Synced)?;
                drop(reclaimed);
                task.count_ran();
                let file = output::written(task, &path, &expected)?;
                env.store.lend(&path, &file.stamp, &expected, &loans)?;
                file
            }
        };
        outcome.files = vec![file];
        outcome.ran |= task.counts().0 > 0;
        Ok(outcome)
    }

    fn summary(&self, outcome: &Outcome) -> String {
        match (file_digest(outcome), outcome.number("elements")) {
            (Ok(file), Ok(elements)) if elements > 0 => {
                format!(
                    "{}, {:.3} bpw",
                    words::bytes(file.len),
                    file.len as f64 * 8.0 / elements as f64
                )
            }
            _ => String::new(),
        }
    }
}

/// Returns the actions that quantize the tensors of a candidate, by key.
pub fn tensor_actions(
    node: &Node,
    inputs: &Inputs,
    env: &Env<'_>,
) -> Result<BTreeMap<ActionDigest, Action>, StepError> {
    let draft = Draft::load(node, inputs, env)?;
    let changed = draft
        .tensors
        .index
        .tensors
        .iter()
        .zip(&draft.table.choices)
        .filter(|(_, choice)| choice.from != choice.to);
    Ok(changed
        .map(|(tensor, choice)| draft.tensors.action(tensor, choice.to))
        .map(|action| (action.digest(), action))
        .collect())
}

/// Lets a candidate's file lend its tensors to the store, which need not keep them then.
fn lend(outcome: &Outcome, file: &SourceFile, env: &Env<'_>) -> Result<(), StepError> {
    let assembly: Assembly = decode(env, "assembly", outcome.output("assembly")?)?;
    env.store
        .lend(&file.path, &file.stamp, &file.digest, &assembly.loans())?;
    Ok(())
}

/// Returns the digest of a candidate's file.
pub fn file_digest(outcome: &Outcome) -> Result<BlobDigest, StepError> {
    let fact = outcome.fact("file");
    fact.parse().map_err(|_| StepError::Document {
        what: "action result",
        problem: format!("`{fact}` is no digest"),
    })
}

/// A candidate before its tensors are there: its size is known to the byte.
struct Draft<'i> {
    tensors: Tensors<'i>,
    table: Table,
    layout: Layout,
}

/// A candidate's file, complete but without its name.
struct Written {
    temp: fs::TempFile,
    assembly: Assembly,
    tensors: Vec<IndexedTensor>,
}

impl<'i> Draft<'i> {
    fn load(node: &Node, inputs: &'i Inputs, env: &Env<'_>) -> Result<Self, StepError> {
        let parts = Promote::parts(node, inputs)?;
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

    fn check_requantize(&self, step: &PromoteStep) -> Result<(), StepError> {
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
    fn write(&self, task: &Task<'_>) -> Result<Written, StepError> {
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
        let file = fs::open(&shard.path)?;
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
