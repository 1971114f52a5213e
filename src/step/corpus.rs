//! `[corpus.NAME]`: finds, checks and sorts the texts of a corpus. The files are not copied.

use std::path::Path;
use std::path::PathBuf;

use crate::action;
use crate::action::Action;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;
use crate::fs;
use crate::graph::Node;
use crate::graph::Work;
use crate::prose;
use crate::recipe::model::CorpusStep;
use crate::recipe::model::StepBody;
use crate::step::Env;
use crate::step::Estimate;
use crate::step::Inputs;
use crate::step::Key;
use crate::step::Kind;
use crate::step::Outcome;
use crate::step::SourceFile;
use crate::step::StepError;
use crate::step::Watched;
use crate::step::pattern::Unmatched;
use crate::step::pattern::anchored;
use crate::step::pattern::is_pattern;
use crate::step::pattern::matches;
use crate::step::space::Headers;
use crate::step::timing;
use crate::step::wrong_kind;
use crate::timing::PhaseWork;
use crate::work::Context;
use crate::work::TokenCount;
use crate::work::check_text;

/// A corpus.
pub struct Corpus;

fn corpus(node: &Node) -> Result<&CorpusStep, StepError> {
    match &node.work {
        Work::Step(step) => match &step.body {
            StepBody::Corpus(corpus) => Ok(corpus),
            _ => Err(wrong_kind(node)),
        },
        _ => Err(wrong_kind(node)),
    }
}

fn action_of(corpus: &CorpusStep, texts: Vec<BlobDigest>) -> Action {
    Action::Corpus(action::Corpus {
        texts,
        chunking: corpus.chunking,
        parse_special: corpus.parse_special,
    })
}

/// Returns the files of a corpus: pattern by pattern, within a pattern by name; a file that two patterns match once.
///
/// # Errors
///
/// [`StepError::Input`] for a pattern that matches nothing or a folder that cannot be read.
pub fn find(corpus: &CorpusStep, folder: &Path) -> Result<Vec<PathBuf>, StepError> {
    let mut found: Vec<PathBuf> = Vec::new();
    for pattern in &corpus.files {
        let place = || {
            let (line, _) = pattern.origin.source.line_column(pattern.origin.span.start);
            format!("{}:{line}", pattern.origin.source.name())
        };
        let files = matches(&pattern.resolved, folder).map_err(|unmatched| match unmatched {
            Unmatched::Pattern(why) => StepError::input(format!(
                "{}: `{}` is not a file pattern: {why}",
                place(),
                pattern.written
            )),
            Unmatched::Folder(error) => StepError::input(format!(
                "{}: cannot read the folder `{}`: {}",
                place(),
                error.path().display(),
                error.error()
            )),
            Unmatched::File(error) => error.into(),
            Unmatched::NotUtf8(path) => StepError::input_hint(
                format!(
                    "{}: the name of `{}` is not UTF-8, and manifests can only contain UTF-8 text",
                    place(),
                    path.display()
                ),
                format!("rename it, or change the pattern `{}`", pattern.written),
            ),
        })?;
        if files.is_empty() {
            // A name without wildcards may be something other than a file.
            if !is_pattern(&pattern.resolved)
                && let Err(error) = fs::open(&folder.join(&pattern.resolved))
                && !error.is_not_found()
            {
                return Err(StepError::input(format!("{}: {error}", place())));
            }
            return Err(StepError::input_hint(
                format!("{}: no file matches `{}`", place(), pattern.written),
                format!(
                    "patterns are relative to the recipe that contains them; looked for `{}`",
                    anchored(&pattern.resolved, folder)
                ),
            ));
        }
        let new: Vec<PathBuf> = files.into_iter().filter(|file| !found.contains(file)).collect();
        found.extend(new);
    }
    Ok(found)
}

/// Returns the request for the number of chunks of a corpus in the tokens of a model, counted up to `enough`.
///
/// # Errors
///
/// The files of the corpus cannot be found.
pub fn count_of(
    node: &Node,
    env: &Env<'_>,
    engine: Fingerprint,
    model: &[PathBuf],
    (context, enough): (u32, u64),
) -> Result<TokenCount, StepError> {
    let corpus = corpus(node)?;
    let texts = Corpus.files(node, env)?;
    let (chunking, special) = (corpus.chunking, corpus.parse_special);
    Ok(TokenCount::new(
        engine,
        model,
        &texts,
        chunking,
        special,
        (context, enough),
    ))
}

impl Kind for Corpus {
    fn key(&self, node: &Node, _inputs: &Inputs, env: &Env<'_>) -> Result<Key, StepError> {
        let corpus = corpus(node)?;
        super::key_of_files(env, self.files(node, env)?, |texts| action_of(corpus, texts))
    }

    fn watches(&self, node: &Node) -> Vec<Watched> {
        let files = corpus(node).map(|corpus| corpus.files.as_slice()).unwrap_or_default();
        let watched = files.iter().map(|file| {
            if is_pattern(&file.resolved) {
                Watched::Pattern(file.resolved.clone())
            } else {
                Watched::File(PathBuf::from(&file.resolved))
            }
        });
        watched.collect()
    }

    fn files(&self, node: &Node, env: &Env<'_>) -> Result<Vec<PathBuf>, StepError> {
        match env.file_overrides.get(&node.id) {
            Some(files) => Ok(files.clone()),
            None => find(corpus(node)?, &env.folder),
        }
    }

    /// A text with a known digest is not read.
    fn check(&self, node: &Node, env: &Env<'_>, _headers: &mut Headers<'_>) -> Result<(), StepError> {
        let mut total = 0;
        for path in self.files(node, env)? {
            let file = fs::open(&path)?;
            let stamp = fs::Stamp::of_file(&file, &path)?;
            total += stamp.size;
            if env.store.known(&stamp).is_none() {
                check_text(file, &path)?;
            }
        }
        if total == 0 {
            return Err(StepError::input("all texts of the corpus are empty"));
        }
        Ok(())
    }

    fn estimate(&self, node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Estimate, StepError> {
        Ok(match self.key(node, inputs, env)? {
            Key::Unread { paths, bytes } => Estimate::of_reading(paths.len(), bytes),
            Key::Action { files, .. } => Estimate {
                reads: files.iter().map(|file| file.digest.len).sum(),
                ..Default::default()
            },
        })
    }

    fn phases(&self, node: &Node, _known: &Inputs, env: &Env<'_>, headers: &mut Headers<'_>) -> Vec<PhaseWork> {
        vec![timing::hashing(headers.file_bytes(&node.id, env))]
    }

    fn run(&self, node: &Node, _inputs: &Inputs, env: &Env<'_>, work: &Context<'_>) -> Result<Outcome, StepError> {
        let corpus = corpus(node)?;
        let paths = self.files(node, env)?;
        let mut files = Vec::with_capacity(paths.len());
        for path in &paths {
            files.push(SourceFile::read(env.store, path, &|_| {})?);
        }
        for file in &files {
            work.locate(|located| located.add_file(file.clone()));
        }
        let performed = work.perform(&action_of(corpus, files.iter().map(|file| file.digest).collect()))?;
        Ok(Outcome::of(performed, files))
    }

    fn summary(&self, outcome: &Outcome) -> String {
        let texts = outcome.fact(action::Corpus::TEXTS).unwrap_or_default();
        format!(
            "{}, {}",
            prose::count(texts, "text"),
            prose::bytes(outcome.fact(action::Corpus::BYTES).unwrap_or_default())
        )
    }
}
