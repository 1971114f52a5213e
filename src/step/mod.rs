//! The kinds of nodes: their inputs, outputs and actions. One file per kind, one line in [`kind_of`].
//!
//! A kind has three main functions. `key` returns the action of a node, without reading a source. `intact` checks that its files in
//! the output folder are there and unchanged. `run` runs it. A plan uses the first two, a build all three, so a plan cannot differ
//! from a build. Other functions return the files that a node reads and the disk space that it needs. All but `key` and `run` have
//! defaults.

pub mod corpus;
pub mod eval;
pub mod gate;
pub mod imatrix;
pub mod join;
mod likely_types;
pub mod metrics;
pub mod moments;
pub mod output;
pub mod overlap;
pub mod pattern;
pub mod policy;
pub mod promote;
mod refining;
pub mod source;
pub mod space;
pub mod timing;

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use crate::action::Action;
use crate::action::ActionResult;
use crate::action::Fact;
use crate::action::Output;
use crate::digest::ActionDigest;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;
use crate::engine::Capability;
use crate::engine::Role;
use crate::graph::FiguresOf;
use crate::graph::Node;
use crate::graph::NodeId;
use crate::graph::Work;
use crate::observer::ActionOutcome;
use crate::observer::Event;
use crate::recipe::model::EngineRef;
use crate::recipe::model::Place;
use crate::recipe::model::SourceName;
use crate::recipe::model::StepBody;
use crate::recipe::model::StepId;
use crate::report::gate::Check;
use crate::report::metrics::Metrics as Table;
use crate::step::space::Comparison;
use crate::step::space::Headers;
use crate::store::ReadFile;
use crate::store::Store;
use crate::timing::PhaseWork;
use crate::work::Context;
use crate::work::Located;
use crate::work::Machine;
use crate::work::Performed;
use crate::work::fact_of;
use crate::work::output_of;

pub use crate::work::Class;
pub use crate::work::RepeatCheck;
pub use crate::work::RepeatDifference;
pub use crate::work::SourceFile;
pub use crate::work::StepError;

/// What the steps of a build share. None of it is part of a key.
pub struct Env<'a> {
    /// The store.
    pub store: &'a Store,
    /// What the work of actions needs.
    pub machine: Machine<'a>,
    /// What is known of the time that work takes on this machine.
    pub timing: &'a timing::KnownTiming,
    /// The recipe's own engine.
    pub engine: &'a EngineRef,
    /// The recipe's name.
    pub recipe: String,
    /// Whether the recipe has one table of candidates.
    pub only_table: bool,
    /// The folder of the recipe: its paths start there.
    pub folder: PathBuf,
    /// Where outputs go.
    pub out: PathBuf,
    /// Files to use instead of those that the recipe names, by node, in order.
    pub file_overrides: BTreeMap<NodeId, Vec<PathBuf>>,
}

/// What is known of a node's action before it runs.
#[derive(Debug, Clone)]
pub enum Key {
    /// The action, and the files that it reads.
    Action {
        /// The action.
        action: Box<Action>,
        /// The sources whose digests stand in it.
        files: Vec<SourceFile>,
    },
    /// The digests of these files are not known: they must be read first.
    Unread {
        /// The files.
        paths: Vec<PathBuf>,
        /// Their total size.
        bytes: u64,
    },
}

/// The result of a node.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Its action.
    pub key: ActionDigest,
    /// The action's result.
    pub result: ActionResult,
    /// Whether it ran in this build.
    pub ran: bool,
    /// Whether files of it were written to the output folder in this build.
    pub wrote: bool,
    /// The files of a source, or the output files.
    pub files: Vec<SourceFile>,
}

impl Outcome {
    /// Returns the outcome of an action that was performed.
    pub fn of(performed: Performed, files: Vec<SourceFile>) -> Self {
        let ran = performed.outcome == ActionOutcome::Ran;
        Self {
            key: performed.key,
            result: performed.result,
            ran,
            wrote: false,
            files,
        }
    }

    /// Returns an output.
    ///
    /// # Errors
    ///
    /// [`StepError::Document`] if the result has no such output.
    pub fn output(&self, output: Output) -> Result<BlobDigest, StepError> {
        output_of(&self.result, output)
    }

    /// Returns a fact.
    ///
    /// # Errors
    ///
    /// [`StepError::Document`] if the result has no such fact.
    pub fn fact<T: FromStr>(&self, fact: Fact<T>) -> Result<T, StepError> {
        fact_of(&self.result, fact)
    }

    /// Returns a fact as text; empty if there is none.
    pub fn shown<T>(&self, fact: Fact<T>) -> &str {
        self.result.facts.get(fact.as_str()).map_or("", String::as_str)
    }
}

/// The results of the nodes that a node depends on.
#[derive(Debug, Clone, Default)]
pub struct Inputs(BTreeMap<NodeId, Arc<Outcome>>);

impl Inputs {
    /// Adds the result of a node.
    pub fn insert(&mut self, id: NodeId, outcome: Arc<Outcome>) {
        self.0.insert(id, outcome);
    }

    /// Returns the action of every node, by its name.
    pub fn keys(&self) -> BTreeMap<String, ActionDigest> {
        self.0
            .iter()
            .map(|(id, outcome)| (id.to_string(), outcome.key))
            .collect()
    }

    /// Returns the result of a node.
    pub fn of(&self, id: &NodeId) -> Result<&Outcome, StepError> {
        self.0.get(id).map(Arc::as_ref).ok_or_else(|| StepError::Document {
            what: "graph",
            problem: format!("`{id}` is needed before it has run"),
        })
    }

    /// Returns the result of a step.
    pub fn step(&self, id: &StepId) -> Result<&Outcome, StepError> {
        self.of(&NodeId::Step(id.clone()))
    }

    /// Returns the result of a source.
    pub fn source(&self, name: &SourceName) -> Result<&Outcome, StepError> {
        self.of(&NodeId::Source(name.as_str().to_owned()))
    }
}

/// What a node would do, for a plan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Bytes of sources that are read.
    pub reads: u64,
    /// Bytes that are written to the store and the output folder.
    pub writes: u64,
    /// The part of `writes` that goes to the output folder.
    pub outputs: u64,
    /// The part of `writes` that is in the store only until the output file is finished.
    pub temporary: u64,
    /// Parts without a result in the store; all parts, if the store was not searched.
    pub missing: u64,
    /// Parts in all.
    pub parts: u64,
    /// What a part is.
    pub unit: &'static str,
}

impl Estimate {
    /// Returns the bytes that are written and stay.
    pub fn kept(&self) -> u64 {
        self.writes.saturating_sub(self.temporary)
    }

    /// Returns the estimate of writing files of the store to the output folder.
    fn of_writing(bytes: u64) -> Self {
        Self {
            writes: bytes,
            outputs: bytes,
            ..Self::default()
        }
    }

    /// Returns the estimate of reading whole files.
    fn of_reading(files: usize, bytes: u64) -> Self {
        Self {
            reads: bytes,
            missing: files as u64,
            parts: files as u64,
            unit: "file",
            ..Self::default()
        }
    }
}

/// The resource that a node needs while it runs. Each limits how many nodes run at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pool {
    /// A model in memory, and all threads: two would only take turns.
    Model,
    /// Much reading and writing.
    Disk,
    /// Little.
    Light,
}

/// What a recipe says of files that a node reads. Paths start in the recipe's folder, unless they are absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Watched {
    /// A file.
    File(PathBuf),
    /// All files that match a pattern ([`pattern`]).
    Pattern(String),
}

/// A text that a node reads in the tokens of a model.
#[derive(Debug, Clone, Copy)]
pub struct TextUse<'n> {
    /// The text, a `corpus` step.
    pub corpus: &'n StepId,
    /// The model whose vocabulary is used.
    pub model: &'n SourceName,
    /// Tokens in a chunk.
    pub context: u32,
    /// The minimum number of chunks that the node can work with.
    pub minimum: u64,
}

/// A kind of node.
pub trait Kind: Sync {
    /// Returns the node's action, as far as it is known without reading a source.
    fn key(&self, node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Key, StepError>;

    /// Returns which of the user's files it reads, as the recipe names them. Nothing for a node that reads only what other
    /// nodes have made.
    fn watches(&self, _node: &Node) -> Vec<Watched> {
        Vec::new()
    }

    /// Returns the paths of these files, in order.
    fn files(&self, _node: &Node, _env: &Env<'_>) -> Result<Vec<PathBuf>, StepError> {
        Ok(Vec::new())
    }

    /// Checks, before the first step of a build runs, what its files and the headers of models determine.
    ///
    /// # Errors
    ///
    /// What would make it fail later.
    fn check(&self, node: &Node, env: &Env<'_>, _headers: &mut Headers<'_>) -> Result<(), StepError> {
        self.files(node, env).map(|_| ())
    }

    /// Returns the texts that it reads in the tokens of a model.
    fn texts<'n>(&self, _node: &'n Node) -> Vec<TextUse<'n>> {
        Vec::new()
    }

    /// Returns whether the outputs that a user sees are there and unchanged.
    fn intact(
        &self,
        _node: &Node,
        _outcome: &mut Outcome,
        _inputs: &Inputs,
        _env: &Env<'_>,
    ) -> Result<bool, StepError> {
        Ok(true)
    }

    /// Returns the requirements that the stored result says are not met.
    fn unmet(&self, _outcome: &Outcome, _env: &Env<'_>) -> Result<Vec<Check>, StepError> {
        Ok(Vec::new())
    }

    /// Returns the names of the files of a result in the output folder; without a result, of those that it may have. `only_table` says
    /// whether the recipe has one table of candidates.
    fn output_names(&self, _node: &Node, _outcome: Option<&Outcome>, _only_table: bool) -> Vec<String> {
        Vec::new()
    }

    /// Estimates what it takes to write its files again, if the store has its result. No part is missing if nothing has to be
    /// computed for that.
    fn estimate_writing(
        &self,
        _node: &Node,
        _outcome: &Outcome,
        _inputs: &Inputs,
        _env: &Env<'_>,
    ) -> Result<Estimate, StepError> {
        Ok(Estimate::default())
    }

    /// Estimates what it would read and write.
    fn estimate(&self, _node: &Node, _inputs: &Inputs, _env: &Env<'_>) -> Result<Estimate, StepError> {
        Ok(Estimate::default())
    }

    /// Estimates the first part of its work from the recipe and the headers of models, if nodes that it depends on have not run.
    fn preliminary_estimate(&self, _node: &Node, _env: &Env<'_>, _headers: &mut Headers<'_>) -> Option<Estimate> {
        None
    }

    /// Returns a lower bound of the bytes that it would write to the output folder, if nodes that it depends on have not run.
    fn minimum_output_bytes(&self, _node: &Node, _env: &Env<'_>, _headers: &mut Headers<'_>) -> Option<u64> {
        None
    }

    /// Returns what it compares with a reference's log-probabilities, which the store keeps. `known` are the results of the nodes that
    /// it depends on, as far as they are known.
    fn comparison<'n>(&self, _node: &'n Node, _known: &Inputs, _env: &Env<'_>) -> Option<Comparison<'n>> {
        None
    }

    /// Returns the phases of its work, without the log-probabilities of a reference ([`Kind::comparison`]). `known` are the results of
    /// the nodes that it depends on, as far as they are known. Reads the headers and sizes of files, and the store.
    fn phases(&self, _node: &Node, _known: &Inputs, _env: &Env<'_>, _headers: &mut Headers<'_>) -> Vec<PhaseWork> {
        Vec::new()
    }

    /// Returns the memory that its work takes beside models and their contexts, in bytes, as far as headers tell.
    fn memory(&self, _node: &Node, _known: &Inputs, _env: &Env<'_>, _headers: &mut Headers<'_>) -> u64 {
        0
    }

    /// Returns the model whose size determines how long it takes.
    fn model<'n>(&self, _node: &'n Node) -> Option<&'n SourceName> {
        None
    }

    /// Returns whether users wait for its result, and not only for what other steps make of it.
    fn is_wanted(&self) -> bool {
        false
    }

    /// Returns the rows of a table of candidates; none of anything else.
    fn rows<'n>(&self, _node: &'n Node) -> &'n [FiguresOf] {
        &[]
    }

    /// Returns a table of candidates with only the rows whose results are among `known`. Nothing is stored.
    ///
    /// # Errors
    ///
    /// A row cannot be read, or the node is not a table.
    fn table_so_far(&self, node: &Node, _known: &Inputs, _env: &Env<'_>) -> Result<Table, StepError> {
        Err(wrong_kind(node))
    }

    /// Returns what it needs while it runs.
    fn pool(&self, _node: &Node) -> Pool {
        Pool::Light
    }

    /// Returns what the node needs an engine for.
    fn needs(&self, _node: &Node) -> Vec<Capability> {
        Vec::new()
    }

    /// Runs the node.
    fn run(&self, node: &Node, inputs: &Inputs, env: &Env<'_>, work: &Context<'_>) -> Result<Outcome, StepError>;

    /// Returns a short summary of the result.
    fn summary(&self, _outcome: &Outcome) -> String {
        String::new()
    }
}

/// Returns the kind of a node.
pub fn kind_of(node: &Node) -> &'static dyn Kind {
    match &node.work {
        Work::Source(_) => &source::Source,
        Work::Eval { .. } => &eval::Eval,
        Work::Step(step) | Work::Promote { step, .. } | Work::Figures { step, .. } => match &step.body {
            StepBody::Corpus(_) => &corpus::Corpus,
            StepBody::Moments(_) => &moments::Moments,
            StepBody::Imatrix(_) => &imatrix::Imatrix,
            StepBody::Join(_) => &join::Join,
            StepBody::Policy(_) => &policy::Policy,
            StepBody::Promote(_) => &promote::Promote,
            StepBody::Eval(_) => &eval::Eval,
            StepBody::Metrics(_) => &metrics::Metrics,
            StepBody::Gate(_) => &gate::Gate,
        },
    }
}

/// Returns whether a node reads files of the user. Others read only what nodes before them have made.
pub fn reads_files(node: &Node) -> bool {
    !kind_of(node).watches(node).is_empty()
}

/// Returns what a node needs an engine for.
pub fn needs(node: &Node) -> Vec<Capability> {
    kind_of(node).needs(node)
}

/// Runs a node and stores what the engine logs.
///
/// # Errors
///
/// Why the node failed.
pub fn carry_out(node: &Node, inputs: &Inputs, env: &Env<'_>, work: &Context<'_>) -> Result<Outcome, StepError> {
    // A step that repairs the store runs more than once in a build.
    if let Some(failed) = env.machine.failed {
        failed.take(&work.step);
    }
    let result = kind_of(node).run(node, inputs, env, work);
    work.release();
    let lines = work.take_log();
    // The log only explains: a step does not fail because its log cannot be stored.
    if !lines.is_empty()
        && let Ok(log) = env.store.put(format!("{}\n", lines.join("\n")).as_bytes())
    {
        work.report(Event::StepLog {
            step: work.step.clone(),
            log,
            lines: lines.len() as u64,
        });
    }
    result
}

/// Adds to an error where the recipe says what it is about.
pub(crate) fn at(place: &Place, error: &StepError) -> StepError {
    let (line, _) = place.source.line_column(place.span.start);
    let what = format!("{}:{line}: {error}", place.source.name());
    match error.hint() {
        Some(hint) => StepError::input_hint(what, hint),
        None => StepError::input(what),
    }
}

/// Returns where the recipe has a node: the path of a source, the section of a step.
pub(crate) fn place_of(node: &Node) -> &Place {
    match &node.work {
        Work::Source(source) => &source.path.origin,
        Work::Step(step) | Work::Promote { step, .. } | Work::Eval { step, .. } | Work::Figures { step, .. } => {
            &step.origin
        }
    }
}

/// Returns the error for a node that does not have the data of its kind: a bug in the graph.
pub(crate) fn wrong_kind(node: &Node) -> StepError {
    StepError::Document {
        what: "graph",
        problem: format!("the node `{}` does not match its kind", node.id),
    }
}

/// Returns the key of an action over files, if the digest of each is known.
pub(crate) fn key_of_files(
    env: &Env<'_>,
    paths: Vec<PathBuf>,
    action: impl FnOnce(Vec<BlobDigest>) -> Action,
) -> Result<Key, StepError> {
    let mut files = Vec::with_capacity(paths.len());
    let mut unread = Vec::new();
    let mut bytes = 0;
    for path in &paths {
        if let Some(file) = SourceFile::known(env.store, path)? {
            files.push(file);
        } else {
            bytes += crate::fs::Stamp::of(path)?.size;
            unread.push(path.clone());
        }
    }
    if unread.is_empty() {
        let action = Box::new(action(files.iter().map(|file| file.digest).collect()));
        Ok(Key::Action { action, files })
    } else {
        Ok(Key::Unread { paths: unread, bytes })
    }
}

/// Returns the key of an action that reads no file.
pub(crate) fn key_of(action: Action) -> Key {
    Key::Action {
        action: Box::new(action),
        files: Vec::new(),
    }
}

impl Inputs {
    /// Returns the paths of the files that the nodes have read or written.
    pub fn located(&self) -> Located {
        let mut located = Located::default();
        for outcome in self.0.values() {
            located.add(&outcome.result, &outcome.files);
        }
        located
    }
}

impl<'a> Env<'a> {
    /// Returns what the actions of a node run in.
    pub fn context(&'a self, node: &NodeId, inputs: &Inputs) -> Context<'a> {
        Context::new(node.to_string(), &self.machine, inputs.located())
    }

    /// Returns the fingerprint of an engine in a role.
    ///
    /// # Errors
    ///
    /// [`StepError::UnknownEngine`].
    pub fn fingerprint(&self, engine: &EngineRef, role: Role) -> Result<Fingerprint, StepError> {
        let found = self.machine.engines.fingerprint(&engine.name, role);
        found.ok_or_else(|| StepError::UnknownEngine {
            name: engine.name.clone(),
        })
    }
}

impl Env<'_> {
    /// Returns where a path of the recipe is.
    pub fn path(&self, resolved: &str) -> PathBuf {
        self.folder.join(Path::new(resolved))
    }

    /// Returns files as the record of a step names them: relative to the recipe's folder where they lie below it.
    pub fn named(&self, files: &[SourceFile]) -> Vec<ReadFile> {
        let named = files.iter().map(|file| ReadFile {
            path: file
                .path
                .strip_prefix(&self.folder)
                .unwrap_or(&file.path)
                .display()
                .to_string(),
            digest: file.digest,
        });
        named.collect()
    }

    /// Returns true if this build is a repeatability check.
    pub fn is_repeatability_check(&self) -> bool {
        self.machine.repeat.is_some()
    }

    /// Returns true if a repeatability check repeats the actions of a step.
    pub fn is_repeated(&self, step: &str) -> bool {
        self.machine.repeat.as_ref().is_some_and(|check| check.includes(step))
    }
}
