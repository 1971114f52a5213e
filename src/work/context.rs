//! What the work of an action has beside its document: the store, the engines, where files are, and who listens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use super::ActionOutputs;
use super::FailedActions;
use super::Located;
use super::Models;
use super::RepeatCheck;
use super::SourceFile;
use super::StepError;
use super::locked;
use super::tensor_locations::TensorLocations;
use super::variants::Variants;
use super::worker::Worker;
use super::worker::Workers;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;
use crate::engine::Cancel;
use crate::engine::Engine;
use crate::engine::Engines;
use crate::engine::Role;
use crate::fs;
use crate::fs::TempFile;
use crate::observer::Event;
use crate::observer::Observer;
use crate::observer::Phase;
use crate::observer::Time;
use crate::observer::Unit;
use crate::store::Store;
use crate::timing::Forecast;

/// What all work of a build shares. None of it is part of a key.
pub struct Machine<'a> {
    /// The store.
    pub store: &'a Store,
    /// Who listens.
    pub observer: &'a dyn Observer,
    /// Set when the work is to stop.
    pub cancel: Cancel,
    /// The engines.
    pub engines: &'a Engines,
    /// The worker processes of engines that load models in one; without it, models are loaded in this process.
    pub workers: Option<&'a Workers>,
    /// Models that this process has loaded.
    pub models: &'a Models,
    /// The repeatability check, if this is one.
    pub repeat: Option<Arc<RepeatCheck>>,
    /// Receives the actions that fail.
    pub failed: Option<&'a FailedActions>,
    /// What is expected of the time that is left.
    pub forecast: Option<&'a Forecast>,
    /// The bytes of memory that one computation may take beside its model; without it, half of what is free.
    pub memory: Option<u64>,
}

/// The memory of a computation if the system does not say how much is free.
const USUAL_MEMORY: u64 = 4 << 30;

impl Machine<'_> {
    /// Returns the bytes of memory that one computation may take beside its model.
    pub fn memory(&self) -> u64 {
        self.memory
            .unwrap_or_else(|| fs::free_memory().map_or(USUAL_MEMORY, |free| free / 2))
    }

    /// Returns the engine whose identity in a role has a fingerprint.
    ///
    /// # Errors
    ///
    /// [`StepError::NoEngine`].
    pub fn engine(&self, role: Role, fingerprint: &Fingerprint) -> Result<&dyn Engine, StepError> {
        let found = self.engines.by_fingerprint(role, fingerprint);
        found.ok_or(StepError::NoEngine {
            role,
            fingerprint: *fingerprint,
        })
    }
}

/// The work of a kind of action, as a function of its document.
pub trait Work: Sync {
    /// Returns the files that the work reads. They are compared with their digests before and after.
    ///
    /// # Errors
    ///
    /// [`StepError::NotLocated`].
    fn reads(&self, _context: &Context<'_>) -> Result<Vec<SourceFile>, StepError> {
        Ok(Vec::new())
    }

    /// Returns the evaluator that loads a model for this work, if it needs one.
    fn evaluator(&self) -> Option<Fingerprint> {
        None
    }

    /// Does the work.
    ///
    /// # Errors
    ///
    /// Why it cannot be done.
    fn run(&self, context: &Context<'_>) -> Result<ActionOutputs, StepError>;
}

/// How chunks count in the phases of a search.
#[derive(Debug, Clone, Copy)]
pub(super) struct ChunkWeight {
    /// The phase that they belong to.
    phase: Option<Phase>,
    /// The work of this phase so far.
    begun: f64,
    /// The share of the model that is computed for a chunk.
    share: f64,
}

impl Default for ChunkWeight {
    fn default() -> Self {
        Self {
            phase: None,
            begun: 0.0,
            share: 1.0,
        }
    }
}

/// How much of something is done.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Progress {
    pub(super) done: u64,
    pub(super) total: u64,
    pub(super) reported: Option<Instant>,
}

/// What the actions of one step run in.
pub struct Context<'a> {
    /// The step, as users read it.
    pub step: String,
    /// What all work shares.
    pub machine: &'a Machine<'a>,
    /// Where files are.
    located: Mutex<Arc<Located>>,
    /// Where a candidate's file is to be written, and the file once it is.
    pub(super) candidate: Mutex<CandidateFile>,
    pub(super) worker: Mutex<Option<Worker>>,
    pub(super) ran: AtomicU64,
    pub(super) hit: AtomicU64,
    pub(super) wrote: AtomicBool,
    pub(super) progress: Mutex<BTreeMap<u8, Progress>>,
    /// The imatrix that the importances of tensors come from, where they are not in the store.
    imatrix: Mutex<Option<BlobDigest>>,
    /// Where the bytes of tensors are.
    pub(super) tensor_locations: Mutex<TensorLocations>,
    /// Models that are measured without a file.
    pub(super) variants: Mutex<Variants>,
    /// What the engine logged.
    pub(super) log: Mutex<Vec<String>>,
    /// How the chunks that are computed count.
    pub(super) chunk_weight: Mutex<ChunkWeight>,
    /// Receives progress in place of the observer.
    advance: Option<&'a (dyn Fn(Unit, u64) + Sync)>,
}

/// Where a candidate's file is written.
#[derive(Debug, Default)]
pub enum CandidateFile {
    /// Nowhere: its bytes are digested only.
    #[default]
    Nowhere,
    /// In this folder, under a temporary name.
    In(std::path::PathBuf),
    /// It is complete, but for its name.
    Written(TempFile),
}

impl<'a> Context<'a> {
    /// Prepares the work of a step.
    pub fn new(step: impl Into<String>, machine: &'a Machine<'a>, located: Located) -> Self {
        Self {
            step: step.into(),
            machine,
            located: Mutex::new(Arc::new(located)),
            candidate: Mutex::default(),
            worker: Mutex::default(),
            ran: AtomicU64::new(0),
            hit: AtomicU64::new(0),
            wrote: AtomicBool::new(false),
            progress: Mutex::default(),
            imatrix: Mutex::default(),
            tensor_locations: Mutex::default(),
            variants: Mutex::default(),
            log: Mutex::default(),
            chunk_weight: Mutex::default(),
            advance: None,
        }
    }

    /// Returns the store.
    pub fn store(&self) -> &'a Store {
        self.machine.store
    }

    /// Returns the request to stop.
    pub fn cancel(&self) -> &Cancel {
        &self.machine.cancel
    }

    /// Returns where files are.
    pub fn located(&self) -> Arc<Located> {
        Arc::clone(&locked(&self.located))
    }

    /// Adds files to those that are known.
    pub fn locate(&self, add: impl FnOnce(&mut Located)) {
        add(Arc::make_mut(&mut locked(&self.located)));
    }

    /// Takes the importances of tensors from an imatrix, where they are not in the store.
    pub fn use_imatrix(&self, imatrix: Option<BlobDigest>) {
        *locked(&self.imatrix) = imatrix;
    }

    /// Returns the imatrix that the importances of tensors come from, if it is known.
    pub(super) fn imatrix(&self) -> Option<BlobDigest> {
        *locked(&self.imatrix)
    }

    /// Returns a file that holds a tensor with these bytes, and where it begins there.
    ///
    /// # Errors
    ///
    /// [`StepError::NotLocated`], and errors of reading the index of a model.
    pub(super) fn tensor_place(&self, tensor: &BlobDigest) -> Result<(SourceFile, u64), StepError> {
        locked(&self.tensor_locations).find(self.store(), &self.located(), tensor)
    }

    /// Has a candidate's file written in a folder, under a temporary name. Without this, its bytes are digested only.
    pub fn write_candidate_in(&self, folder: &std::path::Path) {
        *locked(&self.candidate) = CandidateFile::In(folder.to_owned());
    }

    /// Takes the candidate's file, if it was written.
    pub fn take_candidate(&self) -> Option<TempFile> {
        match std::mem::take(&mut *locked(&self.candidate)) {
            CandidateFile::Written(file) => Some(file),
            _ => None,
        }
    }

    /// Fails if the work is to stop.
    ///
    /// # Errors
    ///
    /// [`StepError::Stopped`].
    pub fn check_cancel(&self) -> Result<(), StepError> {
        if self.machine.cancel.is_cancelled() {
            Err(StepError::Stopped)
        } else {
            Ok(())
        }
    }

    /// Reports an event.
    pub fn report(&self, event: Event) {
        self.machine.observer.event(&event);
    }

    /// Reports something that is as it should be.
    pub fn note(&self, message: impl Into<String>) {
        self.report(Event::Note {
            step: self.step.clone(),
            message: message.into(),
        });
    }

    /// Reports something that a user should know.
    pub fn warn(&self, message: impl Into<String>) {
        self.report(Event::Warning {
            step: self.step.clone(),
            message: message.into(),
        });
    }

    /// Says how much of a unit the step has to do in all. Of several calls the last one counts.
    pub fn expect(&self, unit: Unit, total: u64) {
        locked(&self.progress).entry(unit as u8).or_default().total = total;
        // The phases of a search count their chunks themselves.
        if let (Some(forecast), Some(phase)) = (self.machine.forecast, self.phase_of(unit))
            && locked(&self.chunk_weight).phase != Some(phase)
        {
            forecast.phase(&self.step, phase, total as f64, true, Instant::now());
        }
    }

    /// Begins a phase of the step, or more work of the phase that it is in. `work` is how much that is: chunks, of which those count
    /// less that are computed only in part ([`Context::weigh_chunks`]), and `chunks` is their number. The work is final if no more can
    /// follow in this phase.
    pub fn begin_phase(&self, phase: Phase, what: impl Into<String>, (chunks, work): (u64, f64), is_final: bool) {
        let (total, is_new) = {
            let mut weight = locked(&self.chunk_weight);
            let is_new = weight.phase != Some(phase);
            if is_new {
                weight.phase = Some(phase);
                weight.begun = 0.0;
            }
            weight.begun += work;
            (weight.begun, is_new)
        };
        {
            let mut progress = locked(&self.progress);
            let entry = progress.entry(Unit::Chunks as u8).or_default();
            if is_new {
                *entry = Progress::default();
            }
            entry.total += chunks;
        }
        if let Some(forecast) = self.machine.forecast {
            forecast.phase(&self.step, phase, total, is_final, Instant::now());
        }
        self.report(Event::PhaseStarted {
            step: self.step.clone(),
            phase,
            what: what.into(),
            work: total,
            is_final,
        });
    }

    /// Sets how much a chunk counts that is computed from now on: the share of the model that is computed for it.
    pub fn weigh_chunks(&self, share: f64) {
        locked(&self.chunk_weight).share = share;
    }

    /// Returns the phase that a unit is progress of.
    fn phase_of(&self, unit: Unit) -> Option<Phase> {
        match unit {
            Unit::BytesHashed => Some(Phase::Hash),
            Unit::BytesQuantized => Some(Phase::Quantize),
            Unit::BytesRefined => Some(Phase::Codes),
            Unit::BytesCompared => Some(Phase::Compare),
            Unit::BytesWritten => Some(Phase::Write),
            Unit::ReferenceChunks => Some(Phase::Reference),
            Unit::Chunks => locked(&self.chunk_weight).phase.or_else(|| {
                let forecast = self.machine.forecast?;
                let phases = [Phase::Evaluate, Phase::Collect, Phase::Moments, Phase::Screen];
                phases
                    .into_iter()
                    .find(|phase| forecast.fraction(&self.step, *phase).is_some())
            }),
            Unit::Tensors => None,
        }
    }

    /// Adds to what is done of a unit. The observer hears of it at most ten times a second, and only of units that the step
    /// expects ([`Context::expect`]).
    pub fn advance(&self, unit: Unit, by: u64) {
        if let Some(advance) = self.advance {
            advance(unit, by);
            return;
        }
        let now = Instant::now();
        let phase = self.phase_of(unit);
        if let (Some(forecast), Some(phase)) = (self.machine.forecast, phase) {
            let share = if unit == Unit::Chunks {
                locked(&self.chunk_weight).share
            } else {
                1.0
            };
            forecast.advance(&self.step, phase, share * by as f64, now);
        }
        self.show(unit, by, now);
    }

    /// Reports progress, if it is due.
    fn show(&self, unit: Unit, by: u64, now: Instant) {
        let phase = self.phase_of(unit);
        // A repeatability check runs actions twice, but hashes sources once.
        let repeats = self
            .machine
            .repeat
            .as_ref()
            .is_some_and(|check| check.includes(&self.step));
        let times = u64::from(unit != Unit::BytesHashed && repeats) + 1;
        let due = {
            let mut progress = locked(&self.progress);
            let entry = progress.entry(unit as u8).or_default();
            entry.done += by;
            if entry.total == 0 {
                return;
            }
            let total = entry.total.saturating_mul(times).max(entry.done);
            let rested = entry
                .reported
                .is_none_or(|reported| now.duration_since(reported).as_millis() >= 100);
            let due = rested || entry.done >= total;
            if due {
                entry.reported = Some(now);
            }
            due.then_some((entry.done, total))
        };
        if let Some((done, total)) = due {
            self.report(Event::Progress {
                step: self.step.clone(),
                unit,
                done,
                total,
                phase,
                fraction: phase.and_then(|phase| self.machine.forecast?.fraction(&self.step, phase)),
                left_ms: self.left(now).map(|left| left.likely_ms),
                build_left_ms: self
                    .machine
                    .forecast
                    .map(|forecast| Time::from(forecast.left(now)).likely_ms),
            });
        }
    }

    /// Returns how long the step still takes.
    fn left(&self, now: Instant) -> Option<Time> {
        Some(self.machine.forecast?.left_of(&self.step, now)?.into())
    }

    /// Counts work of a unit as done whose result was there.
    pub fn advance_known(&self, unit: Unit, by: u64) {
        if let (Some(forecast), Some(phase)) = (self.machine.forecast, self.phase_of(unit)) {
            forecast.skip(&self.step, phase, by as f64);
        }
        self.show(unit, by, Instant::now());
    }

    /// Passes progress on, piece by piece, in place of reporting it.
    pub(super) fn pass_progress_on(&mut self, advance: &'a (dyn Fn(Unit, u64) + Sync)) {
        self.advance = Some(advance);
    }

    /// Adds lines to what the engine logged during this step.
    pub fn add_log(&self, lines: impl IntoIterator<Item = String>) {
        locked(&self.log).extend(lines);
    }

    /// Takes what the engine logged.
    pub fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut locked(&self.log))
    }
}
