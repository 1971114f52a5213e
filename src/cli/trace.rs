//! `forge build --trace FILE`: what happened when, in the form of Chrome's trace events (JSON object form), which Perfetto
//! and `chrome://tracing` open. The file is whole after every event, so it is valid JSON also when the build fails, is
//! stopped or is killed; a step that did not end then has a beginning only.
//!
//! Steps are shown under their pool, each in its own lane while it runs; actions under the thread that ran them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Instant;

use serde_json::Value;
use serde_json::json;

use crate::fs;
use crate::graph::Graph;
use crate::observer::Event;
use crate::observer::Observer;
use crate::step;
use crate::step::Pool;

/// The end of the file.
const END: &[u8] = b"\n]}\n";
/// The "process" of actions; pools have the numbers below.
const ACTIONS: u64 = 4;

thread_local! {
    /// The number of this thread in traces.
    static LANE: u64 = {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        NEXT.fetch_add(1, Ordering::Relaxed)
    };
}

/// Writes a trace.
pub(super) struct Trace {
    since: Instant,
    pools: BTreeMap<String, u64>,
    state: Mutex<State>,
}

struct State {
    file: fs::Ended,
    first: bool,
    /// The lane of each step that runs.
    lanes: BTreeMap<String, u64>,
}

impl Trace {
    pub(super) fn create(path: &Path, graph: &Graph) -> Result<Self, fs::PathError> {
        let pools = graph.nodes().map(|node| {
            let pool = match step::kind_of(node).pool(node) {
                Pool::Model => 1,
                Pool::Disk => 2,
                Pool::Light => 3,
            };
            (node.id.to_string(), pool)
        });
        let trace = Self {
            since: Instant::now(),
            pools: pools.collect(),
            state: Mutex::new(State {
                file: fs::Ended::create(path, b"{\"displayTimeUnit\":\"ms\",\"traceEvents\":[", END)?,
                first: true,
                lanes: BTreeMap::new(),
            }),
        };
        for (pid, name) in [
            (1, "steps: model"),
            (2, "steps: disk"),
            (3, "steps: light"),
            (ACTIONS, "actions"),
        ] {
            trace.write(&json!({ "ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": { "name": name } }));
        }
        Ok(trace)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn write(&self, event: &Value) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let comma = if state.first { "" } else { "," };
        state.first = false;
        // A trace that cannot be written is no reason to stop a build.
        let _ = state.file.add(format!("{comma}\n{event}").as_bytes());
    }

    /// Returns the pool of a step and the lane that it has there; a step that begins gets the first that is free.
    fn lane(&self, step: &str, begins: bool) -> Option<(u64, u64)> {
        let pool = self.pools.get(step).copied().unwrap_or(3);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !begins {
            return state.lanes.remove(step).map(|lane| (pool, lane));
        }
        let taken = |lane: u64| {
            let mut others = state.lanes.iter();
            others.any(|(other, &of)| of == lane && self.pools.get(other).copied().unwrap_or(3) == pool)
        };
        let lane = (1..=u64::from(u16::MAX)).find(|&lane| !taken(lane))?;
        state.lanes.insert(step.to_owned(), lane);
        Some((pool, lane))
    }

    fn instant(&self, name: &str, args: &Value) {
        let tid = LANE.with(|lane| *lane);
        self.write(&json!({
            "ph": "i", "s": "t", "cat": "event", "name": name, "ts": self.now(), "pid": ACTIONS, "tid": tid, "args": args,
        }));
    }
}

impl Observer for Trace {
    fn event(&self, event: &Event) {
        match event {
            Event::StepStarted { step, why, .. } => {
                if let Some((pid, tid)) = self.lane(step, true) {
                    self.write(&json!({
                        "ph": "B", "cat": "step", "name": step, "ts": self.now(), "pid": pid, "tid": tid,
                        "args": { "why": why },
                    }));
                }
            }
            Event::StepFinished {
                step,
                outcome,
                ran,
                hit,
                summary,
                ..
            } => {
                // Hits and steps that never started have no span.
                if let Some((pid, tid)) = self.lane(step, false) {
                    self.write(&json!({
                        "ph": "E", "cat": "step", "name": step, "ts": self.now(), "pid": pid, "tid": tid,
                        "args": { "outcome": outcome, "actions_ran": ran, "actions_hit": hit, "summary": summary },
                    }));
                }
            }
            Event::ActionFinished {
                step,
                kind,
                key,
                outcome,
                cost_ms,
                bytes,
            } => {
                let took = cost_ms.saturating_mul(1000);
                let tid = LANE.with(|lane| *lane);
                self.write(&json!({
                    "ph": "X", "cat": "action", "name": kind, "ts": self.now().saturating_sub(took), "dur": took,
                    "pid": ACTIONS, "tid": tid,
                    "args": { "step": step, "key": key.to_string(), "outcome": outcome, "bytes": bytes },
                }));
            }
            Event::Waiting { step, holder, .. } => {
                self.instant("waiting", &json!({ "step": step, "holder": holder }));
            }
            Event::Warning { step, message } => {
                self.instant("warning", &json!({ "step": step, "message": message }));
            }
            Event::OutputWritten { step, path, digest } => {
                self.instant("output", &json!({ "step": step, "path": path, "bytes": digest.len }));
            }
            Event::BuildFinished { outcome, .. } => self.instant("build finished", &json!({ "outcome": outcome })),
            _ => {}
        }
    }
}
