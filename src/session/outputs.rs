//! What lies in the output folder after a build.

use super::Session;
use crate::action;
use crate::fs;
use crate::observer::OutputFile;
use crate::observer::Silent;
use crate::scheduler::Report;
use crate::step;
use crate::step::output;
use crate::step::promote;

impl Session {
    /// Returns the files of the steps of a build that have a result: the candidates first, then all others.
    pub fn outputs(&self, report: &Report) -> Vec<OutputFile> {
        let env = self.env(&Silent);
        let (mut candidates, mut others) = (Vec::new(), Vec::new());
        for node in self.graph.nodes() {
            let Some(outcome) = report.outcomes.get(&node.id) else {
                continue;
            };
            let candidate = promote::candidate(node);
            let names = step::kind_of(node).output_names(node, Some(outcome), env.only_table);
            for path in names.iter().filter_map(|name| output::path(&env, name).ok()) {
                let Some(file) = outcome.files.iter().find(|file| file.path == path) else {
                    continue;
                };
                let manifest = candidate
                    .and_then(|id| output::path(&env, &promote::manifest_name(id)).ok())
                    .filter(|path| fs::exists(path).unwrap_or(false));
                let listed = OutputFile {
                    step: node.id.to_string(),
                    path: path.display().to_string(),
                    bytes: file.digest.len,
                    weights: candidate.and_then(|_| outcome.fact(action::Promote::ELEMENTS).ok()),
                    manifest: manifest.map(|path| path.display().to_string()),
                };
                if candidate.is_some() {
                    candidates.push(listed);
                } else {
                    others.push(listed);
                }
            }
        }
        candidates.append(&mut others);
        candidates
    }
}
