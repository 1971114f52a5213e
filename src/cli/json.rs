//! One JSON object per line (`cache-schema/message.v2.json`). Readers must skip reasons and keys that they do not know.

use serde::Serialize;
use serde_json::Value;
use serde_json::json;

use crate::cli::terminal::Terminal;
use crate::engine::Identity;
use crate::observer::Event;
use crate::observer::Observer;
use crate::plan::Entry;
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

/// Returns the line of a plan's entry.
pub(super) fn plan_line(entry: &Entry) -> String {
    let mut line = json!({ "schema": SCHEMA, "reason": "plan-step", "step": entry.node });
    let facts = match &entry.status {
        Status::Hit { key } => json!({ "status": "hit", "key": key.to_string() }),
        Status::Miss { key, reason, estimate } => json!({
            "status": "miss",
            "key": key.map(|key| key.to_string()),
            "why": scheduler::sentence(reason),
            "reads_bytes": estimate.reads,
            "writes_bytes": estimate.writes,
            "parts": estimate.parts,
            "parts_missing": estimate.missing,
        }),
        Status::Unknown { waits_for, expected } => json!({
            "status": "unknown",
            "waits_for": waits_for,
            "expected": expected.as_ref().map(|most| json!({ "parts": most.parts, "writes_bytes": most.writes })),
        }),
        Status::Failed { error } => json!({ "status": "error", "message": error.to_string() }),
    };
    if let (Value::Object(line), Value::Object(facts)) = (&mut line, facts) {
        line.extend(facts);
    }
    format!("{line}\n")
}
