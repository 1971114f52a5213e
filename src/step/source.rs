//! `[source.NAME]`: a file that the user owns. Hashed, never copied.

use std::path::Path;

use crate::action::Action;
use crate::action::ImatrixImport;
use crate::action::InspectModel;
use crate::content::Content;
use crate::digest::BlobDigest;
use crate::gguf;
use crate::graph::Node;
use crate::graph::Work;
use crate::prose;
use crate::recipe::model::SourceDef;
use crate::recipe::model::SourceKind;
use crate::step::Env;
use crate::step::Estimate;
use crate::step::Inputs;
use crate::step::Key;
use crate::step::Kind;
use crate::step::Outcome;
use crate::step::Pool;
use crate::step::SourceFile;
use crate::step::StepError;
use crate::step::misplaced;
use crate::step::model;
use crate::work::Context;
use crate::work::INDEX;
use crate::work::hash_model;

/// A source.
pub struct Source;

fn source(node: &Node) -> Result<&SourceDef, StepError> {
    match &node.work {
        Work::Source(source) => Ok(source),
        _ => Err(misplaced(node)),
    }
}

fn inspect_model(files: Vec<BlobDigest>) -> Action {
    Action::InspectModel(InspectModel { files, index: INDEX })
}

/// Checks that a file has the content that a recipe uses it for.
///
/// # Errors
///
/// What the file is instead, or why it cannot be read.
pub fn check_content(path: &Path, kind: SourceKind) -> Result<(), StepError> {
    let content = Content::of(path)?;
    let (found, wanted, hint) = match (kind, content) {
        (SourceKind::Model, Content::Model) | (SourceKind::Imatrix, Content::Imatrix | Content::OldImatrix) => {
            return Ok(());
        }
        (_, Content::Damaged(error)) => return Err(error.into()),
        (SourceKind::Model, content @ (Content::Imatrix | Content::OldImatrix)) => (
            content,
            "a model",
            "an imatrix is used with `[imatrix.NAME]` and `source = \"...\"`",
        ),
        (SourceKind::Model, content @ Content::Safetensors) => (
            content,
            "a model",
            "convert it to GGUF first, with `convert_hf_to_gguf.py` of llama.cpp",
        ),
        // The reader of GGUF says best what is wrong.
        (SourceKind::Model, _) => return Ok(gguf::Model::open(path).map(|_| ())?),
        (SourceKind::Imatrix, content @ (Content::Model | Content::Safetensors)) => {
            (content, "an imatrix", "forge reads imatrix files of `llama-imatrix`")
        }
        // The reader of imatrix files says best what is wrong.
        (SourceKind::Imatrix, _) => return Ok(()),
    };
    let found = found.as_str();
    Err(StepError::input_hint(
        format!("`{}` is {found}, and the recipe uses it as {wanted}", path.display()),
        hint,
    ))
}

impl Kind for Source {
    fn key(&self, node: &Node, _inputs: &Inputs, env: &Env<'_>) -> Result<Key, StepError> {
        let source = source(node)?;
        let path = env.source_path(source);
        match source.kind {
            SourceKind::Model => super::key_of_files(env, model::shard_paths(&path), inspect_model),
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

    fn run(&self, node: &Node, _inputs: &Inputs, env: &Env<'_>, work: &Context<'_>) -> Result<Outcome, StepError> {
        let source = source(node)?;
        let path = env.source_path(source);
        check_content(&path, source.kind)?;
        let (action, files) = match source.kind {
            SourceKind::Model => {
                let files = hash_model(work, &model::shard_paths(&path))?;
                (inspect_model(files.iter().map(|file| file.digest).collect()), files)
            }
            SourceKind::Imatrix => {
                let file = SourceFile::read(env.store, &path, &|_| {})?;
                work.locate(|located| located.add_file(file.clone()));
                (Action::ImatrixImport(ImatrixImport { file: file.digest }), vec![file])
            }
        };
        let performed = work.perform(&action)?;
        Ok(Outcome::of(performed, files))
    }

    fn summary(&self, outcome: &Outcome) -> String {
        let bytes = outcome.files.iter().map(|file| file.digest.len).sum();
        match outcome.fact(InspectModel::TENSORS) {
            Ok(tensors) => format!(
                "{}, {tensors} tensors, {}",
                outcome.shown(InspectModel::ARCHITECTURE),
                prose::bytes(bytes)
            ),
            Err(_) => prose::bytes(bytes),
        }
    }
}
