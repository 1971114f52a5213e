//! The façade: what the command line, a test or another program calls. Opens a recipe with a store, plans, builds, and
//! writes what stands next to outputs.

mod chart;
pub mod clean;
pub mod engines;
mod evaluations;
mod fresh;
mod frozen;
mod lock;
pub mod names;
mod outputs;
pub mod overlap;
mod preflight;
mod record;
mod repeat;
pub mod reproduce;
mod run;
pub mod signing;
mod space;
mod tables;
mod times;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Instant;
use std::time::SystemTime;

use crate::digest::ActionDigest;
use crate::digest::Fingerprint;
use crate::engine::Cancel;
use crate::engine::EngineError;
use crate::engine::Engines;
use crate::engine::Identity;
use crate::engine::Role;
use crate::fs;
use crate::graph::Graph;
use crate::graph::GraphError;
use crate::graph::NodeId;
use crate::manifest;
use crate::observer::Event;
use crate::observer::Observer;
use crate::observer::Silent;
use crate::plan;
use crate::plan::Plan;
use crate::plan::Status;
use crate::recipe::Recipe;
use crate::recipe::StepId;
use crate::report::table::Table;
use crate::scheduler;
use crate::scheduler::Report;
use crate::step;
use crate::step::Env;
use crate::step::StepError;
use crate::step::metrics;
use crate::step::promote;
use crate::step::space::Headers;
use crate::step::timing::KnownTiming;
use crate::store::Store;
use crate::store::StoreError;
use crate::timing::Forecast;
use crate::vocab::verdict::StepOutcome;
use crate::why::Answer;
use crate::why::Overview;
use crate::why::ReadFiles;
use crate::why::TensorError;
use crate::why::Why;
use crate::work::FailedActions;
use crate::work::Machine;
use crate::work::Models;
use crate::work::Workers;

pub use chart::ChartError;
pub use chart::chart;
pub use engines::EngineProblem;
pub use fresh::BuildRequest;
pub use fresh::NothingToDo;
pub use fresh::nothing_to_do;
pub use lock::Lock;
pub use lock::LockDifference;
pub use lock::LockError;
pub use lock::LockedEngine;
pub use lock::LockedFile;
pub use preflight::Findings;
pub use preflight::Problem;
pub use repeat::RepeatReport;
pub use space::Need;
pub use space::NoSpace;
pub use tables::TableError;
pub use tables::last_tables;
pub use tables::table_of_file;

/// What runs the actions of a session.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// The engines.
    pub engines: Engines,
    /// Threads of one computation.
    pub threads: usize,
    /// The bytes of memory that one computation may take beside its model; without it, half of what is free.
    pub memory: Option<u64>,
    /// The program, a `forge`, to start worker processes from; without it, engines load models in this process.
    pub worker: Option<PathBuf>,
}

/// What a session is opened with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The folder of the recipe.
    pub folder: PathBuf,
    /// Where outputs go.
    pub out: PathBuf,
    /// Where the store is.
    pub cache_dir: PathBuf,
    /// What runs actions.
    pub runtime: Runtime,
    /// The command line, for manifests.
    pub command: Vec<String>,
    /// Whether the store borrows tensors from outputs.
    pub borrow: bool,
    /// The commands that repeat a failed step from any folder; without them, nothing is kept of failed steps.
    pub repeat: Option<Commands>,
}

/// Command lines, word by word, that repeat a part of a build with the same program, store and number of threads.
#[derive(Debug, Clone)]
pub struct Commands {
    /// Builds the same recipe into the same folder. The name of a step may follow.
    pub build: Vec<String>,
    /// Runs an action (`forge exec`). The action and its files follow.
    pub exec: Vec<String>,
}

/// Why a session cannot be opened or used.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Engines that do not exist, or cannot do what steps ask of them.
    #[error("{} engines cannot be used as the recipe says", .0.len())]
    Engines(Vec<EngineProblem>),
    /// The graph.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// A step.
    #[error(transparent)]
    Step(#[from] StepError),
    /// What is to be built does not fit on the disk.
    #[error(transparent)]
    NoSpace(space::NoSpace),
    /// A step that the recipe does not have.
    #[error("the recipe has no step `{wanted}`")]
    NoSuchStep {
        /// What was asked for.
        wanted: String,
        /// What there is.
        known: Vec<String>,
    },
    /// A tensor that a candidate does not have.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// What would make steps fail, and evaluations on text of the calibration, found before anything ran.
    #[error("{} problems of the recipe or its files", .0.len())]
    Refused(Findings),
}

/// What [`Session::why`] found out.
#[derive(Debug, Clone)]
pub enum Reasons {
    /// Of the whole recipe.
    Overview(Overview),
    /// Of the steps that were asked for.
    Steps(Vec<Answer>),
}

/// A recipe, its graph, and the machine.
pub struct Session {
    recipe: Recipe,
    graph: Graph,
    store: Store,
    settings: Settings,
    cancel: Cancel,
    workers: Option<Workers>,
    models: Models,
    failed: FailedActions,
    timing: KnownTiming,
    file_overrides: BTreeMap<NodeId, Vec<PathBuf>>,
    /// What is known of overlaps of texts that are not here.
    known_overlaps: Vec<manifest::Overlap>,
}

impl Session {
    /// Opens a recipe. With `wanted`, only those steps and what they need.
    pub fn open(recipe: Recipe, settings: Settings, wanted: &[String], cancel: Cancel) -> Result<Self, SessionError> {
        let whole = Graph::of(&recipe)?;
        let graph = if wanted.is_empty() {
            whole
        } else {
            whole.only(&find(&recipe, &whole, wanted)?)
        };
        engines::check(&recipe, &graph, &settings.runtime.engines).map_err(SessionError::Engines)?;
        for name in engines::used(&graph) {
            if let Some(engine) = settings.runtime.engines.get(&name) {
                engine.check()?;
            }
        }
        let store = Store::open(&settings.cache_dir)?;
        store.set_borrowing(settings.borrow);
        let runtime = &settings.runtime;
        let workers = runtime.worker.as_ref();
        let workers =
            workers.map(|program| Workers::new(program, &settings.cache_dir, runtime.threads, runtime.memory));
        Ok(Self {
            recipe,
            graph,
            store,
            settings,
            cancel,
            workers,
            models: Models::default(),
            failed: FailedActions::default(),
            timing: KnownTiming::default(),
            file_overrides: BTreeMap::new(),
            known_overlaps: Vec::new(),
        })
    }

    /// Uses other files than those that the recipe names: by node (a source, a corpus), in order; of a split model all
    /// parts.
    pub fn with_files(mut self, file_overrides: BTreeMap<NodeId, Vec<PathBuf>>) -> Self {
        self.file_overrides = file_overrides;
        self
    }

    /// Repeats these overlaps in manifests if the texts are not here, as those of evaluations when a candidate is reproduced.
    pub fn with_overlaps(mut self, known: Vec<manifest::Overlap>) -> Self {
        self.known_overlaps = known;
        self
    }

    /// Returns the recipe.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Returns the graph.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Returns the store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Returns the folder where outputs go.
    pub fn out(&self) -> &Path {
        &self.settings.out
    }

    /// Plans a build. Reads nothing of sources but headers, writes nothing.
    pub fn plan(&self, observer: &dyn Observer) -> Plan {
        let env = self.env(observer);
        let (mut plan, outcomes) = plan::survey(&self.graph, &env);
        // They only explain.
        let events = self.store.events().unwrap_or_default();
        let mut headers = Headers::new(&self.graph);
        for (node, entry) in self.graph.nodes().zip(&mut plan.entries) {
            match &mut entry.status {
                Status::Unknown { expected, .. } => {
                    *expected = step::kind_of(node).preliminary_estimate(node, &env, &mut headers);
                }
                Status::Hit { key } => {
                    let (key, outcome) = (*key, outcomes.of(&node.id));
                    let is_good = outcome.and_then(|outcome| record::is_recorded(self, &env, node, outcome, &events));
                    entry.status = match is_good {
                        Ok(true) => continue,
                        Ok(false) => Status::Write {
                            key,
                            reason: plan::Reason::ManifestGone,
                            files: promote::candidate(node)
                                .map(promote::manifest_name)
                                .into_iter()
                                .collect(),
                            estimate: step::Estimate::default(),
                        },
                        Err(error) => Status::Failed { error: Arc::new(error) },
                    };
                }
                Status::Write { .. } | Status::Miss { .. } | Status::Failed { .. } => {}
            }
        }
        self.add_times(&mut plan, &outcomes, &env);
        plan
    }

    /// Returns the key of a policy's action and the size of the files of its candidates, if it has a result as the recipe defines it.
    pub fn policy(&self, id: &StepId) -> Option<(ActionDigest, u64)> {
        let env = self.env(&Silent);
        let (_, known) = plan::survey(&self.graph, &env);
        let node = self.graph.node(&NodeId::Step(id.clone()))?;
        let outcome = known.step(id).ok()?;
        Some((outcome.key, step::policy::file_bytes(node, outcome, &known, &env).ok()?))
    }

    /// Says why steps run, or when and why they ran last. Reads the user's files whose digest is not known, as a build would
    /// first of all, unless `read` forbids it; nothing else is done.
    ///
    /// # Errors
    ///
    /// [`SessionError::NoSuchStep`], [`SessionError::Tensor`], and [`SessionError::Step`] if the user stopped it.
    pub fn why(
        &self,
        wanted: &[String],
        tensor: Option<&str>,
        read: ReadFiles,
        observer: &dyn Observer,
    ) -> Result<Reasons, SessionError> {
        let env = self.env(observer);
        let nodes = find(&self.recipe, &self.graph, wanted)?;
        let _lease = self.store.lease()?;
        let why = Why::new(&self.graph, &env, &nodes, read)?;
        if nodes.is_empty() {
            return Ok(Reasons::Overview(why.overview()));
        }
        let answers = nodes.iter().map(|node| match tensor {
            Some(tensor) => why.tensor(node, tensor).map_err(SessionError::from),
            None => Ok(why.step(node)),
        });
        Ok(Reasons::Steps(answers.collect::<Result<_, _>>()?))
    }

    /// Builds what is stale.
    pub fn build(&self, options: scheduler::Options, observer: &dyn Observer) -> Result<Report, SessionError> {
        let _lease = self.store.lease()?;
        let started = SystemTime::now();
        let run = run::Run::start(&self.store, &self.settings, self.identities(&self.graph), started);
        let observer = run::Tee { run: &run, observer };
        let forecast = Forecast::default();
        let mut env = self.env(&observer);
        env.machine.forecast = Some(&forecast);
        // What killed builds left half-written next to the outputs. That it cannot be removed is only untidy.
        if fs::exists(&self.settings.out).unwrap_or(false) {
            fs::remove_stale_temps(&self.settings.out).ok();
        }
        observer.event(&self.started());
        let guard = overlap::Guard::new(self);
        let space = space::Check::new(self, &env);
        let findings = OnceLock::new();
        let may_run = || {
            if !space.fits() {
                return false;
            }
            // The user who asks for all that can be built gets it: what is wrong fails its own steps.
            let findings = findings.get_or_init(|| {
                if options.keep_going {
                    Findings::default()
                } else {
                    self.problems(&env)
                }
            });
            findings.is_empty() && guard.passes()
        };
        let mut manifests = BTreeSet::new();
        let mut report = scheduler::build(&self.graph, &env, options, &may_run, &mut |report| {
            let (written, failures) = record::write_manifests(self, &env, &run, started, report);
            manifests.extend(written);
            failures
        });
        if !env.is_repeatability_check() {
            env.remember(&forecast.took(Instant::now()));
        }
        for step in report.count_written(&manifests) {
            let candidate = self.graph.node(step).and_then(promote::candidate);
            observer.event(&Event::StepFinished {
                step: step.to_string(),
                outcome: StepOutcome::Wrote,
                ran: 0,
                hit: 1,
                elapsed_ms: 0,
                summary: candidate.map(promote::manifest_name).unwrap_or_default(),
            });
        }
        if let Some(findings) = findings.into_inner().filter(|findings| !findings.is_empty()) {
            return Err(SessionError::Refused(findings));
        }
        if let Some(overlaps) = guard.refused() {
            return Err(SessionError::Refused(Findings {
                problems: Vec::new(),
                overlaps,
            }));
        }
        if let Some(no_space) = space.refused() {
            return Err(SessionError::NoSpace(no_space));
        }
        if let Some(commands) = &self.settings.repeat {
            report.kept = run.keep_failed(commands, &report.failures, &self.failed);
        }
        for (node, path) in &report.kept {
            observer.event(&Event::StepKept {
                step: node.to_string(),
                path: path.display().to_string(),
            });
        }
        observer.event(&Event::Outputs {
            folder: self.settings.out.display().to_string(),
            files: self.outputs(&report),
        });
        for (step, table) in self.tables_by_step(&report) {
            observer.event(&Event::Table {
                step: step.to_string(),
                table: Table::of(&[table]).document(),
            });
        }
        report.stale = self.report_stale(&observer);
        observer.event(&finished(&report));
        Ok(report)
    }

    /// Returns the identities of the engines that a graph uses, in every role.
    fn identities(&self, graph: &Graph) -> Vec<&Identity> {
        let used = engines::used(graph);
        used.iter()
            .flat_map(|name| Role::ALL.map(|role| self.settings.runtime.engines.identity(name, role)))
            .flatten()
            .collect()
    }

    /// Returns the fingerprint of the recipe's own evaluator.
    fn evaluator(&self) -> Fingerprint {
        let found = self
            .settings
            .runtime
            .engines
            .fingerprint(&self.recipe.engine.name, Role::Evaluator);
        found.unwrap_or_else(|| Fingerprint::of(b""))
    }

    /// Returns the event with which a build begins.
    fn started(&self) -> Event {
        Event::BuildStarted {
            recipe: self.recipe.name.clone(),
            steps: self.graph.steps(),
            engine: self.evaluator().to_string(),
        }
    }

    fn env<'e>(&'e self, observer: &'e dyn Observer) -> Env<'e> {
        Env {
            store: &self.store,
            machine: Machine {
                store: &self.store,
                observer,
                cancel: self.cancel.clone(),
                engines: &self.settings.runtime.engines,
                workers: self.workers.as_ref(),
                models: &self.models,
                repeat: None,
                failed: Some(&self.failed),
                forecast: None,
                memory: self.settings.runtime.memory,
            },
            timing: &self.timing,
            engine: &self.recipe.engine,
            recipe: self.recipe.name.clone(),
            only_table: metrics::tables(&self.recipe).count() < 2,
            folder: self.settings.folder.clone(),
            out: self.settings.out.clone(),
            file_overrides: self.file_overrides.clone(),
        }
    }
}

/// Returns the event with which a build ends.
fn finished(report: &Report) -> Event {
    Event::BuildFinished {
        ran: report.ran,
        wrote: report.wrote,
        hit: report.hit,
        failed: report.failures.len(),
        skipped: report.skipped,
        elapsed_ms: report.elapsed_ms,
        outcome: report.outcome(),
    }
}

/// Returns the nodes that names mean.
fn find(recipe: &Recipe, graph: &Graph, wanted: &[String]) -> Result<Vec<NodeId>, SessionError> {
    let mut found = Vec::new();
    for name in wanted {
        let mut nodes: Vec<NodeId> = graph
            .nodes()
            .filter(|node| node.id.to_string() == *name)
            .map(|node| node.id.clone())
            .collect();
        if nodes.is_empty() {
            for step in recipe.find(name) {
                nodes.extend(
                    graph
                        .nodes()
                        .filter(|node| belongs_to(&node.id, &step.id))
                        .map(|node| node.id.clone()),
                );
            }
        }
        if nodes.is_empty() {
            let known: BTreeSet<String> = graph.nodes().map(|node| node.id.to_string()).collect();
            return Err(SessionError::NoSuchStep {
                wanted: name.clone(),
                known: known.into_iter().collect(),
            });
        }
        found.extend(nodes);
    }
    Ok(found)
}

fn belongs_to(node: &NodeId, step: &crate::recipe::StepId) -> bool {
    match node {
        NodeId::Step(id) => id == step,
        NodeId::Eval { eval, .. } => eval == step,
        NodeId::Source(_) => false,
    }
}
