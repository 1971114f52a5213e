//! `[source.NAME]`: a file that the user owns. Hashed, never copied.

use crate::action::Action;
use crate::action::ImatrixImport;
use crate::graph::Node;
use crate::graph::Work;
use crate::recipe::model::SourceDef;
use crate::recipe::model::SourceKind;
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
use crate::step::imatrix;
use crate::step::misplaced;
use crate::step::model;
use crate::step::source_file::SourceFile;

/// A source.
pub struct Source;

fn source(node: &Node) -> Result<&SourceDef, StepError> {
    match &node.work {
        Work::Source(source) => Ok(source),
        _ => Err(misplaced(node)),
    }
}

impl Kind for Source {
    fn key(&self, node: &Node, _inputs: &Inputs, env: &Env<'_>) -> Result<Key, StepError> {
        let source = source(node)?;
        let path = env.source_path(source);
        match source.kind {
            SourceKind::Model => model::key(env, &path),
            SourceKind::Imatrix => super::key_of_files(env, vec![path], |files| {
                Action::ImatrixImport(ImatrixImport { file: files[0] })
            }),
        }
    }

    fn estimate(&self, node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Estimate, StepError> {
        Ok(match self.key(node, inputs, env)? {
            Key::Unread { paths, bytes } => Estimate::of_reading(paths.len(), bytes),
            Key::Action { .. } => Estimate::default(),
        })
    }

    fn pool(&self, _node: &Node) -> Pool {
        Pool::Disk
    }

    fn run(&self, node: &Node, _inputs: &Inputs, task: &Task<'_>) -> Result<Outcome, StepError> {
        let source = source(node)?;
        let path = task.env.source_path(source);
        match source.kind {
            SourceKind::Model => model::run(task, &path),
            SourceKind::Imatrix => {
                let file = SourceFile::read(task.env, &path, &|_| {})?;
                imatrix::import(task, &file)
            }
        }
    }

    fn summary(&self, outcome: &Outcome) -> String {
        let bytes = outcome.files.iter().map(|file| file.digest.len).sum();
        match outcome.result.facts.get("tensors") {
            Some(tensors) => format!(
                "{}, {tensors} tensors, {}",
                outcome.fact("architecture"),
                words::bytes(bytes)
            ),
            None => words::bytes(bytes),
        }
    }
}
