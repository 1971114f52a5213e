//! How long nodes take: the phases of their work, from what is known before they run, and this machine's speeds.
//!
//! A plan shows it, a build orders its steps by it and says how much time is left.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use crate::digest::Fingerprint;
use crate::engine::Role;
use crate::fs;
use crate::graph::Node;
use crate::graph::NodeId;
use crate::observer::Event;
use crate::observer::Phase;
use crate::observer::PhaseTime;
use crate::observer::StepTime;
use crate::recipe::model::SourceName;
use crate::recipe::model::StepId;
use crate::step::Env;
use crate::step::Inputs;
use crate::step::Pool;
use crate::step::kind_of;
use crate::step::space::Comparison;
use crate::step::space::Corpora;
use crate::step::space::Headers;
use crate::step::space::MissingBlock;
use crate::step::space::missing_reference_blocks;
use crate::tensor_type::TensorType;
use crate::timing::Amounts;
use crate::timing::Expected;
use crate::timing::Forward;
use crate::timing::Operation;
use crate::timing::PhaseWork;
use crate::timing::Purpose;
use crate::timing::TimeRange;
use crate::timing::Timing;
use crate::timing::Took;
use crate::timing::speeds::seconds_of_tables;
use crate::work::BlockOptions;
use crate::work::ChunkSample;
use crate::work::HELD_OUT_FACTOR;
use crate::work::MeasureSpeeds;

/// Bytes of text in a token, on average. A small vocabulary has shorter tokens.
const BYTES_PER_TOKEN: (u64, u64) = (3, 4);
/// The smallest vocabulary of usual size.
const USUAL_VOCABULARY: u64 = 16_000;

/// The speed of the machine is measured if a build is expected to take longer than this, in milliseconds.
const WORTH_MEASURING_MS: f64 = 5000.0;

/// The time of a node that does no more than small documents need, in milliseconds.
const SMALL_MS: f64 = 5.0;

/// What is known of the time that work takes on this machine. Read from the store when it is first asked for.
#[derive(Debug, Default)]
pub struct KnownTiming(Mutex<Option<Arc<Timing>>>);

impl KnownTiming {
    fn lock(&self) -> MutexGuard<'_, Option<Arc<Timing>>> {
        // It is replaced as a whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Env<'_> {
    /// Returns what identifies this machine and the recipe's engine, its evaluator and its quantizer; `None` if there is no such engine.
    fn machine_name(&self) -> Option<(Fingerprint, Fingerprint, Fingerprint)> {
        let of = |role: Role| self.machine.engines.fingerprint(&self.engine.name, role);
        let (evaluator, quantizer) = (of(Role::Evaluator)?, of(Role::Quantizer)?);
        let threads = rayon::current_num_threads();
        let processor = fs::processor().unwrap_or_default();
        let name = format!("{processor}\n{threads} threads\n{evaluator}\n{quantizer}");
        Some((Fingerprint::of(name.as_bytes()), evaluator, quantizer))
    }

    /// Returns what is known of the time that work takes on this machine: what the store has of it, or what is assumed.
    pub fn timing(&self) -> Arc<Timing> {
        let mut known = self.timing.lock();
        let read = || {
            let threads = rayon::current_num_threads();
            let document = self.machine_name().and_then(|(name, ..)| self.store.machine(&name));
            let timing = document.and_then(|document| Timing::parse(&document, threads));
            Arc::new(timing.unwrap_or_else(|| Timing::assumed(threads)))
        };
        Arc::clone(known.get_or_insert_with(read))
    }

    /// Measures the speed of this machine if that is not known and the work is worth it. A machine that cannot be measured keeps the
    /// speeds that are assumed.
    pub fn measure_speeds_for<'w>(&self, work: impl Iterator<Item = &'w NodeWork> + Clone) {
        let timing = self.timing();
        let time: TimeRange = work.clone().map(|work| work.duration(&timing)).sum();
        let operations = work
            .flat_map(|work| &work.phases)
            .flat_map(|phase| phase.amounts.iter());
        let operations: BTreeSet<Operation> = operations.map(|(operation, _)| operation).collect();
        let missing = operations
            .iter()
            .filter(|operation| !timing.speeds.is_measured(**operation));
        let types: BTreeSet<TensorType> = missing.filter_map(|operation| operation.tensor_type()).collect();
        if types.is_empty() || time.likely_ms < WORTH_MEASURING_MS || self.machine.cancel.is_cancelled() {
            return;
        }
        let Some((_, evaluator, quantizer)) = self.machine_name() else {
            return;
        };
        let measure = MeasureSpeeds {
            evaluator,
            quantizer,
            types: types.iter().map(ToString::to_string).collect(),
            has_rest: timing.speeds.is_measured(Operation::Node),
        };
        self.machine.observer.event(&Event::MeasuringSpeeds);
        let Ok(measured) = measure.measure(&self.machine) else {
            return;
        };
        let mut timing = Timing::clone(&timing);
        timing.speeds.add(&measured);
        // What cannot be measured, as a type that the engine does not write, is not tried again.
        for operation in operations {
            timing.speeds.set(operation, timing.speeds.seconds(operation));
        }
        self.keep_timing(timing);
    }

    /// Remembers what the phases of a build took.
    pub fn remember(&self, took: &[Took]) {
        if took.is_empty() {
            return;
        }
        let mut timing = Timing::clone(&self.timing());
        for took in took {
            timing.add(took);
        }
        self.keep_timing(timing);
    }

    fn keep_timing(&self, timing: Timing) {
        if let Some((name, ..)) = self.machine_name() {
            // It only informs: a store that cannot be written is measured again.
            let _ = self.store.note_machine(&name, &timing.document());
        }
        *self.timing.lock() = Some(Arc::new(timing));
    }
}

/// The phases of a node's work.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeWork {
    /// The phases, in order.
    pub phases: Vec<PhaseWork>,
    /// What identifies the model whose size determines the work; empty if there is none.
    pub model: String,
    /// The memory that it needs, in bytes: the model and what is computed with it.
    pub memory: u64,
    /// The bytes that it adds to the store and the output folder.
    pub stays: u64,
    /// The bytes that are in the store until the output is finished.
    pub temporary: u64,
}

impl NodeWork {
    /// Returns how long each phase is expected to take.
    pub fn expected<'t>(&'t self, timing: &'t Timing) -> impl Iterator<Item = Expected> + 't {
        self.phases.iter().map(|phase| timing.expected(&self.model, phase))
    }

    /// Returns how long all of it is expected to take.
    pub fn duration(&self, timing: &Timing) -> TimeRange {
        let phases: TimeRange = self.expected(timing).map(|phase| phase.range()).sum();
        phases + TimeRange::exact(SMALL_MS)
    }
}

impl NodeWork {
    /// Returns how long a step is expected to take, phase by phase.
    pub fn step_time(&self, step: String, timing: &Timing) -> StepTime {
        let phases = self.expected(timing).map(|expected| PhaseTime {
            phase: expected.phase,
            work: expected.total,
            time: expected.range().into(),
        });
        StepTime {
            step,
            time: self.duration(timing).into(),
            phases: phases.collect(),
        }
    }
}

/// Determines the work of nodes, one after the other in the graph's order: what several need is counted for the first of them.
pub struct WorkOfNodes<'e, 'n> {
    env: &'e Env<'e>,
    graph: &'n crate::graph::Graph,
    headers: Headers<'n>,
    corpora: Corpora<'n>,
    counted: BTreeSet<String>,
    /// For which node the tables of a type are counted, by what it needs of them.
    tables: BTreeMap<&'static str, NodeId>,
}

impl<'e, 'n> WorkOfNodes<'e, 'n> {
    /// Begins with nothing counted.
    pub fn new(env: &'e Env<'e>, graph: &'n crate::graph::Graph) -> Self {
        Self {
            env,
            graph,
            headers: Headers::new(graph),
            corpora: Corpora::new(),
            counted: BTreeSet::new(),
            tables: BTreeMap::new(),
        }
    }

    /// Forgets what was counted and read of the store: the build has gone on.
    pub fn forget(&mut self) {
        self.counted.clear();
        self.corpora.clear();
    }

    /// Returns the work of a node that must run. `known` are the results of the nodes before it, as far as there are any. If the store
    /// `has_result` of the node, only its files are to be written.
    pub fn of(&mut self, node: &'n Node, known: &Inputs, has_result: bool) -> NodeWork {
        let kind = kind_of(node);
        if has_result && kind.pool(node) != Pool::Disk {
            return NodeWork::default();
        }
        let mut phases = kind.phases(node, known, self.env, &mut self.headers);
        let comparison = kind.comparison(node, known, self.env);
        phases.extend(comparison.and_then(|comparison| self.reference(&comparison, known)));
        phases.retain(|phase| phase.total > 0.0);
        for phase in phases.iter_mut().filter(|work| work.phase == Phase::Quantize) {
            self.add_tables(node, phase);
        }
        phases.sort_by_key(|phase| phase.phase);
        let of_operation = |phase: Phase, operation: Operation| {
            let phases = phases.iter().filter(|work| work.phase == phase);
            let amounts = phases.flat_map(|work| work.amounts.iter());
            let found = amounts
                .filter(|(found, _)| *found == operation)
                .map(|(_, amount)| amount);
            found.sum::<f64>() as u64
        };
        let tensors = of_operation(Phase::Quantize, Operation::Hash);
        let is_candidate = kind.pool(node) == Pool::Disk;
        let encoded = 2 * of_operation(Phase::Reference, Operation::Encode);
        let written = of_operation(Phase::Write, Operation::Write);
        let memory = kind.texts(node).into_iter().filter_map(|text| {
            let forward = self.headers.forward(text.model, self.env)?;
            Some(forward.memory(text.context))
        });
        let memory = memory.max().unwrap_or_default();
        let memory = memory.saturating_add(kind.memory(node, known, self.env, &mut self.headers));
        let model = kind.model(node);
        let model = model
            .and_then(|model| self.headers.of(model, self.env))
            .map(|header| header.shape.clone());
        NodeWork {
            model: model.unwrap_or_default(),
            memory,
            stays: encoded + written + if is_candidate { 0 } else { tensors },
            temporary: if is_candidate { tensors } else { 0 },
            phases,
        }
    }

    /// Adds the tables that quantizing to types needs, which a build makes once.
    fn add_tables(&mut self, node: &Node, work: &mut PhaseWork) {
        let types: Vec<TensorType> = work
            .amounts
            .iter()
            .filter_map(|(operation, _)| match operation {
                Operation::Quantize(ty) if seconds_of_tables(ty) > 0.0 => Some(ty),
                _ => None,
            })
            .collect();
        for ty in types {
            // Both types have the same tables.
            let name = if ty == TensorType::IQ1_M { TensorType::IQ1_S } else { ty }.name();
            if *self.tables.entry(name).or_insert_with(|| node.id.clone()) == node.id {
                work.amounts.add(Operation::Tables(ty), 1_u64);
            }
        }
    }

    /// Returns the work of a reference's log-probabilities that the store does not have.
    fn reference(&mut self, comparison: &Comparison<'n>, known: &Inputs) -> Option<PhaseWork> {
        let forward = self.headers.forward(comparison.reference, self.env)?;
        let corpus = self.graph.node(&NodeId::Step(comparison.corpus.clone()))?;
        let vocabulary = forward.vocabulary();
        let missing =
            missing_reference_blocks(comparison, known, self.env, vocabulary, corpus, &mut self.corpora).ok()?;
        let mut chunks = 0.0;
        for MissingBlock {
            name,
            chunks: of_block,
            is_least,
            ..
        } in missing
        {
            if self.counted.insert(name) {
                chunks += match of_block {
                    _ if is_least => chunks_of(
                        comparison.corpus,
                        comparison.reference,
                        comparison.cut,
                        self.env,
                        &mut self.headers,
                    ),
                    of_block => of_block as f64,
                };
            }
        }
        let chunk = forward.chunk(None, comparison.cut.context, Purpose::Reference);
        let amounts = forward.load(None).and(&chunk.times(chunks));
        (chunks > 0.0).then(|| PhaseWork::new(Phase::Reference, chunks, amounts))
    }
}

/// Returns the estimated number of chunks of a text.
pub(super) fn chunks_of(
    corpus: &StepId,
    model: &SourceName,
    cut: BlockOptions,
    env: &Env<'_>,
    headers: &mut Headers<'_>,
) -> f64 {
    let bytes = headers.file_bytes(&NodeId::Step(corpus.clone()), env);
    let vocabulary = headers
        .of(model, env)
        .and_then(|header| header.vocabulary)
        .unwrap_or(USUAL_VOCABULARY);
    let per_token = if vocabulary < USUAL_VOCABULARY {
        BYTES_PER_TOKEN.0
    } else {
        BYTES_PER_TOKEN.1
    };
    let all = bytes / per_token / u64::from(cut.context.max(1));
    let taken = cut.chunks.map_or(all, |most| most.min(all)).max(1);
    let left = all.saturating_sub(taken);
    let held_out = match cut.sample {
        ChunkSample::SpreadAndHeldOut if 2 * left >= taken => left.min(taken * HELD_OUT_FACTOR as u64),
        _ => 0,
    };
    (taken + held_out) as f64
}

/// Returns the work of reading a file and hashing it.
pub(super) fn hashing(bytes: u64) -> PhaseWork {
    PhaseWork::new(Phase::Hash, bytes as f64, Amounts::of(Operation::Hash, bytes))
}

/// Returns the work of loading a model and computing so many chunks of it. `types` are those of its tensors; its own if `None`.
pub(super) fn computing(
    phase: Phase,
    (forward, types): (&Forward, Option<&[TensorType]>),
    chunks: f64,
    cut: BlockOptions,
    purpose: Purpose,
) -> PhaseWork {
    let chunk = forward.chunk(types, cut.context, purpose);
    let amounts = forward
        .load(types)
        .and(&chunk.times(chunks))
        .and(&actions(chunks, cut.block));
    PhaseWork::new(phase, chunks, amounts)
}

/// Returns the number of actions of so many chunks.
pub(super) fn actions(chunks: f64, block: u32) -> Amounts {
    Amounts::of(Operation::Commit, (chunks / f64::from(block.max(1))).ceil())
}
