//! `[source.NAME]`: a file that the user owns. Hashed, never copied.

use std::path::Path;
use std::path::PathBuf;

use crate::action::Action;
use crate::action::ImatrixImport;
use crate::action::InspectModel;
use crate::container;
use crate::content::Content;
use crate::digest::BlobDigest;
use crate::fs::Stamp;
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
use crate::step::Watched;
use crate::step::at;
use crate::step::space::Headers;
use crate::step::timing;
use crate::step::wrong_kind;
use crate::timing::PhaseWork;
use crate::work::Context;
use crate::work::INDEX;
use crate::work::hash_model;

/// A source.
pub struct Source;

fn source(node: &Node) -> Result<&SourceDef, StepError> {
    match &node.work {
        Work::Source(source) => Ok(source),
        _ => Err(wrong_kind(node)),
    }
}

/// Returns where the source is: the first of its files.
fn path_of(node: &Node, env: &Env<'_>) -> Result<PathBuf, StepError> {
    match env.file_overrides.get(&node.id).and_then(|files| files.first()) {
        Some(path) => Ok(path.clone()),
        None => Ok(env.path(&source(node)?.path.resolved)),
    }
}

/// Returns the files of a source from the first one: all parts of a split model.
fn parts_of(path: PathBuf, kind: SourceKind) -> Vec<PathBuf> {
    match kind {
        SourceKind::Model => container::parts(&path),
        SourceKind::Imatrix => vec![path],
    }
}

fn inspect_model(files: Vec<BlobDigest>) -> Action {
    Action::InspectModel(InspectModel { files, index: INDEX })
}

/// Checks that a file has the kind of content that the recipe uses it as.
///
/// # Errors
///
/// The file has other content, or cannot be read.
fn check_content(path: &Path, kind: SourceKind) -> Result<(), StepError> {
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
        // The GGUF reader has the best error message.
        (SourceKind::Model, _) => return Ok(container::open(path).map(|_| ())?),
        (SourceKind::Imatrix, content @ (Content::Model | Content::Safetensors)) => {
            (content, "an imatrix", "forge reads imatrix files of `llama-imatrix`")
        }
        // The reader of imatrix files has the best error message.
        (SourceKind::Imatrix, _) => return Ok(()),
    };
    let found = found.as_str();
    Err(StepError::input_hint(
        format!("`{}` is {found}, but the recipe uses it as {wanted}", path.display()),
        hint,
    ))
}

impl Kind for Source {
    fn key(&self, node: &Node, _inputs: &Inputs, env: &Env<'_>) -> Result<Key, StepError> {
        let kind = source(node)?.kind;
        super::key_of_files(env, self.files(node, env)?, |files| match kind {
            SourceKind::Model => inspect_model(files),
            SourceKind::Imatrix => Action::ImatrixImport(ImatrixImport { file: files[0] }),
        })
    }

    fn watches(&self, node: &Node) -> Vec<Watched> {
        let Ok(source) = source(node) else { return Vec::new() };
        let parts = parts_of(PathBuf::from(&source.path.resolved), source.kind);
        parts.into_iter().map(Watched::File).collect()
    }

    fn files(&self, node: &Node, env: &Env<'_>) -> Result<Vec<PathBuf>, StepError> {
        Ok(parts_of(path_of(node, env)?, source(node)?.kind))
    }

    /// A source with a known digest is not read.
    fn check(&self, node: &Node, env: &Env<'_>, _headers: &mut Headers<'_>) -> Result<(), StepError> {
        let source = source(node)?;
        let checked = || {
            let mut known = true;
            for path in self.files(node, env)? {
                known &= env.store.known(&Stamp::of(&path)?).is_some();
            }
            if known {
                Ok(())
            } else {
                check_content(&path_of(node, env)?, source.kind)
            }
        };
        checked().map_err(|error| at(&source.path.origin, &error))
    }

    fn estimate(&self, node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Estimate, StepError> {
        Ok(match self.key(node, inputs, env)? {
            Key::Unread { paths, bytes } => Estimate::of_reading(paths.len(), bytes),
            Key::Action { .. } => Estimate::default(),
        })
    }

    fn phases(&self, node: &Node, known: &Inputs, env: &Env<'_>, _headers: &mut Headers<'_>) -> Vec<PhaseWork> {
        match self.key(node, known, env) {
            Ok(Key::Unread { bytes, .. }) => vec![timing::hashing(bytes)],
            Ok(Key::Action { .. }) | Err(_) => Vec::new(),
        }
    }

    fn pool(&self, _node: &Node) -> Pool {
        Pool::Disk
    }

    fn run(&self, node: &Node, _inputs: &Inputs, env: &Env<'_>, work: &Context<'_>) -> Result<Outcome, StepError> {
        let kind = source(node)?.kind;
        let path = path_of(node, env)?;
        check_content(&path, kind)?;
        let (action, files) = match kind {
            SourceKind::Model => {
                let files = hash_model(work, &self.files(node, env)?)?;
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
