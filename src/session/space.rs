//! Whether what a build would write fits on the disk, known from its plan before the first hour of work: when something is
//! to run first, and again whenever more of the plan is known.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Instant;

use super::Session;
use crate::fs;
use crate::fs::Stamp;
use crate::graph::Node;
use crate::graph::NodeId;
use crate::plan;
use crate::plan::Status;
use crate::prose;
use crate::step;
use crate::step::Env;
use crate::step::Inputs;
use crate::step::space;
use crate::step::space::Headers;

/// The space that must stay free in addition, for results, records and manifests, which are small.
const RESERVE: u64 = 1 << 20;

/// What a step would write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// The step.
    pub step: String,
    /// Bytes that stay in the store.
    pub store: u64,
    /// Bytes of outputs.
    pub out: u64,
    /// Bytes that are in the store until the output is finished, which holds them then.
    pub temporary: u64,
}

/// A file system that has too little space for a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoSpace {
    /// A folder on it: the store's, or that of the outputs.
    pub path: PathBuf,
    /// Whether the store is on it.
    pub has_store: bool,
    /// How many bytes are needed at least.
    pub needed: u64,
    /// How many are free.
    pub found: u64,
    /// Which steps need how many bytes there.
    pub steps: Vec<(String, u64)>,
    /// For how many steps this is not known yet.
    pub unknown: usize,
}

impl fmt::Display for NoSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let more = if self.unknown > 0 { " or more" } else { "" };
        write!(
            f,
            "the build does not fit: it would write {}{more} to the file system of `{}`, which has {} free",
            prose::bytes(self.needed),
            self.path.display(),
            prose::bytes(self.found)
        )
    }
}

impl std::error::Error for NoSpace {}

/// Checks during a build whether the rest of it fits.
pub(super) struct Check<'s> {
    session: &'s Session,
    env: &'s Env<'s>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// For how many steps this was unknown at the last check; `None` before the first one.
    unknown: Option<usize>,
    /// Not before this: the plan of a large recipe takes its time, and is not to take a part of the build's that counts.
    next: Option<Instant>,
    refused: Option<NoSpace>,
}

impl<'s> Check<'s> {
    pub(super) fn new(session: &'s Session, env: &'s Env<'s>) -> Self {
        Self {
            session,
            env,
            state: Mutex::default(),
        }
    }

    /// Returns whether the build may go on. Asked when the first step is about to run, and before every later one; once
    /// the whole plan is known it is not looked at again.
    pub(super) fn fits(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.refused.is_some() {
            return false;
        }
        let started = Instant::now();
        if state.unknown == Some(0) || state.next.is_some_and(|next| started < next) {
            return true;
        }
        let (needs, unknown) = self.session.needs(self.env);
        state.next = Some(Instant::now() + 20 * started.elapsed());
        if state.unknown != Some(unknown) {
            state.refused = no_space(&needs, unknown, self.env);
        }
        state.unknown = Some(unknown);
        state.refused.is_none()
    }

    /// Returns why the build was stopped, if it was.
    pub(super) fn refused(&self) -> Option<NoSpace> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.refused.clone()
    }
}

impl Session {
    /// Returns what every step would write, as far as it is known, and for how many steps it is not known yet.
    fn needs(&self, env: &Env<'_>) -> (Vec<Need>, usize) {
        let (plan, known) = plan::survey(&self.graph, env);
        let mut needs = Vec::new();
        let mut unknown = 0;
        let mut headers = Headers::new(&self.graph);
        let mut references = References::default();
        for (node, entry) in self.graph.nodes().zip(plan.entries) {
            match entry.status {
                Status::Hit { .. } => {}
                Status::Write { estimate, .. } => {
                    if estimate.outputs > 0 {
                        needs.push(Need {
                            step: entry.node,
                            store: 0,
                            out: estimate.outputs,
                            temporary: 0,
                        });
                    }
                }
                Status::Miss { estimate, key, .. } => {
                    unknown += usize::from(key.is_none());
                    // If nothing is borrowed, the store keeps everything.
                    let temporary = if self.settings.borrow { estimate.temporary } else { 0 };
                    let need = Need {
                        step: entry.node,
                        store: estimate.writes.saturating_sub(estimate.outputs + temporary),
                        out: estimate.outputs,
                        temporary,
                    };
                    if need.store + need.out + need.temporary > 0 {
                        needs.push(need);
                    }
                    needs.extend(self.reference(node, &known, env, &mut headers, &mut references));
                }
                Status::Unknown { .. } => {
                    unknown += 1;
                    let least = step::kind_of(node).minimum_output_bytes(node, env, &mut headers);
                    needs.extend(least.map(|out| Need {
                        step: entry.node,
                        store: 0,
                        out,
                        temporary: 0,
                    }));
                    needs.extend(self.reference(node, &known, env, &mut headers, &mut references));
                }
                Status::Failed { .. } => unknown += 1,
            }
        }
        (needs, unknown)
    }
}

/// What is known of references while the steps are gone through.
#[derive(Default)]
struct References<'n> {
    corpora: space::Corpora<'n>,
    /// Blocks that a step before this one adds.
    counted: BTreeSet<String>,
}

impl Session {
    /// Returns what a step would add to the log-probabilities of a reference in the store.
    fn reference<'n>(
        &self,
        node: &'n Node,
        known: &Inputs,
        env: &Env<'_>,
        headers: &mut Headers<'_>,
        references: &mut References<'n>,
    ) -> Option<Need> {
        let comparison = step::kind_of(node).comparison(node, known, env)?;
        let vocabulary = headers.of(comparison.reference, env)?.vocabulary?;
        let corpus = self.graph.node(&NodeId::Step(comparison.corpus.clone()))?;
        let References { corpora, counted } = references;
        let blocks = space::missing_reference_blocks(&comparison, known, env, vocabulary, corpus, corpora).ok()?;
        let new = blocks.into_iter().filter(|block| counted.insert(block.name.clone()));
        let bytes: u64 = new.map(|block| block.bytes).sum();
        (bytes > 0).then(|| Need {
            step: node.id.to_string(),
            store: bytes,
            out: 0,
            temporary: 0,
        })
    }
}

/// Returns the first file system that has too little space for the needs.
fn no_space(needs: &[Need], unknown: usize, env: &Env<'_>) -> Option<NoSpace> {
    // Outputs may be on another disk than the store.
    let (store, out) = (env.store.root(), env.out.as_path());
    // The output folder is made when the first output is written.
    let device = |path: &Path| Stamp::of(fs::nearest_existing(path)).map(|stamp| stamp.dev).ok();
    let mut disks: BTreeMap<Option<u64>, (PathBuf, BTreeMap<String, u64>)> = BTreeMap::new();
    let mut add = |path: &Path, step: &str, bytes: u64| {
        let (_, steps) = disks
            .entry(device(path))
            .or_insert_with(|| (path.to_owned(), BTreeMap::new()));
        *steps.entry(step.to_owned()).or_default() += bytes;
    };
    // What goes again when an output is finished is there for as many at once as are written at once; one at least.
    let temporary = needs.iter().max_by_key(|need| need.temporary);
    for need in needs {
        add(out, &need.step, need.out);
        let held = temporary
            .filter(|most| most.step == need.step)
            .map_or(0, |most| most.temporary);
        add(store, &need.step, need.store + held);
    }
    disks.into_values().find_map(|(path, steps)| {
        let needed: u64 = steps.values().sum();
        // What is being written now is part of what its step needs, and takes its space already.
        let unfinished = if device(&path) == device(store) {
            env.store.unfinished()
        } else {
            0
        };
        let found = fs::free_space(fs::nearest_existing(&path))
            .ok()?
            .saturating_add(unfinished);
        let mut steps: Vec<(String, u64)> = steps.into_iter().filter(|(_, bytes)| *bytes > 0).collect();
        steps.sort_by(|a, b| (b.1, &a.0).cmp(&(a.1, &b.0)));
        (needed > 0 && found < needed.saturating_add(RESERVE)).then_some(NoSpace {
            has_store: device(&path) == device(store),
            path,
            needed,
            found,
            steps,
            unknown,
        })
    })
}
