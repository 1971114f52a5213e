//! One JSON object per line (`cache-schema/message.v3.json`). Readers must skip reasons and keys that they do not know.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;
use serde_json::json;

use crate::cli::terminal::Terminal;
use crate::engine::Identity;
use crate::observer::Event;
use crate::observer::Observer;
use crate::plan::Entry;
use crate::plan::Plan;
use crate::plan::Status;
use crate::scheduler;

/// The version of the lines.
pub(super) const SCHEMA: u32 = crate::cli::diagnostic::SCHEMA;

/// Prints every event as a line.
pub(super) struct Lines<'a>(pub(super) &'a Terminal);

impl Observer for Lines<'_> {
    fn event(&self, event: &Event) {
        #[derive(Serialize)]
        struct Line<'e> {
            schema: u32,
            #[serde(flatten)]
            event: &'e Event,
        }
        if let Ok(line) = serde_json::to_string(&Line { schema: SCHEMA, event }) {
            self.0.data(&format!("{line}\n"));
        }
    }
}

/// Returns the line of an engine's identity.
pub(super) fn engine_line(identity: &Identity) -> String {
    let line = json!({
        "schema": SCHEMA,
        "reason": "engine",
        "role": identity.role,
        "fingerprint": identity.fingerprint().to_string(),
        "facts": identity.facts,
    });
    format!("{line}\n")
}

/// Returns the last line of a plan: how many steps have each status.
pub(super) fn plan_end(plan: &Plan, out: &Path) -> String {
    let counts = plan.counts();
    let mut line = json!({
        "schema": SCHEMA,
        "reason": "plan-finished",
        "steps": counts.steps(),
        "sources_to_read": plan.sources_to_read(),
        "out": out.display().to_string(),
        "time": plan.time,
        "memory_bytes": plan.memory,
        "disk_bytes": plan.disk,
    });
    if let Value::Object(line) = &mut line {
        line.extend(counts.all().map(|(word, steps)| (word.to_owned(), json!(steps))));
    }
    format!("{line}\n")
}

/// Returns the line of a plan's entry.
pub(super) fn plan_line(entry: &Entry) -> String {
    let mut line =
        json!({ "schema": SCHEMA, "reason": "plan-step", "step": entry.node, "status": entry.status.verdict() });
    let facts = match &entry.status {
        Status::Hit { key } => json!({ "key": key.to_string() }),
        Status::Write {
            key,
            reason,
            files,
            estimate,
        } => json!({
            "key": key.to_string(),
            "why": scheduler::sentence(reason),
            "files": files,
            "writes_bytes": estimate.outputs,
        }),
        Status::Miss { key, reason, estimate } => json!({
            "key": key.map(|key| key.to_string()),
            "why": scheduler::sentence(reason),
            "reads_bytes": estimate.reads,
            "writes_bytes": estimate.kept(),
            "parts": estimate.parts,
            "parts_missing": estimate.missing,
        }),
        Status::Unknown { waits_for, expected } => json!({
            "waits_for": waits_for,
            "expected": expected.as_ref().map(|most| json!({ "parts": most.parts, "writes_bytes": most.kept() })),
        }),
        Status::Failed { error } => json!({ "message": error.to_string() }),
    };
    if let (Value::Object(line), Value::Object(facts)) = (&mut line, facts) {
        line.extend(facts);
        if let Some(time) = &entry.time {
            line.insert("time".to_owned(), json!(time));
        }
    }
    format!("{line}\n")
}
