//! A build that did nothing, remembered: when everything that it looked at is as it was, the next one has nothing to do
//! either, and needs neither to read the recipe nor to open a single result.
//!
//! The note holds every text of the recipe by digest, what every file pattern matched, and the stamp of every file that
//! decides: sources, outputs, manifests, the results of all steps and their blobs, the program itself. It is written
//! only by a build that found everything done, and only if all stamps are old enough to prove something
//! (`docs/design-notes.md`, "The stat cache"). One difference, and the build takes the long way, which finds out
//! what the difference means. So the note can save time, and can decide nothing.

use std::path::Path;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::SystemTime;

use super::Session;
use crate::digest::BlobDigest;
use crate::digest::Hash;
use crate::engine;
use crate::fs;
use crate::fs::Stamp;
use crate::graph::NodeId;
use crate::graph::Work;
use crate::recipe::StepBody;
use crate::scheduler::Report;
use crate::step::corpus;
use crate::step::promote;
use crate::store::Store;

/// No recipe is longer.
const TEXT_CAP: u64 = 4 << 20;

/// What a build is asked: all that tells one note from another.
#[derive(Debug, Clone)]
pub struct Question {
    /// The recipe.
    pub recipe: PathBuf,
    /// Where outputs go, if the user said.
    pub out: Option<PathBuf>,
    /// The steps that the user asked for.
    pub steps: Vec<String>,
    /// This program: another one may know better.
    pub program: PathBuf,
}

impl Question {
    /// Returns the note's name.
    fn name(&self) -> Option<Hash> {
        let absolute = |path: &Path| std::path::absolute(path).ok()?.to_str().map(str::to_owned);
        let out = match &self.out {
            Some(out) => Some(absolute(out)?),
            None => None,
        };
        // What it runs on may have changed, too: another GPU is another engine.
        let engines = [engine::quantizer(), engine::evaluator()].map(|identity| identity.fingerprint().to_string());
        let parts = (
            absolute(&self.recipe)?,
            out,
            &self.steps,
            absolute(&self.program)?,
            engines,
        );
        Some(Hash::of(&serde_json::to_vec(&parts).ok()?))
    }
}

/// Returns how many steps are done, if all are and nothing that decides it has changed since that was found out. `None`
/// says only that it is not known.
pub fn nothing_to_do(cache_dir: &Path, question: &Question) -> Option<usize> {
    if !fs::exists(cache_dir).ok()? {
        return None;
    }
    let store = Store::open(cache_dir).ok()?;
    let text = store.fresh(&question.name()?)?;
    let mut cached = None;
    let mut matches: Option<(PathBuf, &str, Vec<PathBuf>)> = None;
    for record in text.split('\t') {
        let (kind, rest) = record.split_once(' ')?;
        match kind {
            "steps" => cached = Some(rest.parse().ok()?),
            "text" => {
                let (digest, path) = rest.split_once(' ')?;
                let bytes = fs::read_small(Path::new(path), TEXT_CAP).ok()?;
                if BlobDigest::of(&bytes) != BlobDigest::from_str(digest).ok()? {
                    return None;
                }
            }
            "in" => matches = Some((PathBuf::from(rest), "", Vec::new())),
            "pattern" => matches.as_mut()?.1 = rest,
            "match" => matches.as_mut()?.2.push(PathBuf::from(rest)),
            "matched" => {
                let (folder, pattern, files) = matches.take()?;
                if corpus::matches(pattern, &folder).ok()? != files {
                    return None;
                }
            }
            "file" => check(rest, Path::new(""))?,
            "store" => check(rest, store.root())?,
            _ => return None,
        }
    }
    cached
}

/// Compares a stamp with the file's of now.
fn check(record: &str, folder: &Path) -> Option<()> {
    let (stamp, path) = read_stamp(record)?;
    (Stamp::of_plain_file(&folder.join(path)).ok()?? == stamp).then_some(())
}

fn read_stamp(record: &str) -> Option<(Stamp, &str)> {
    let mut fields = record.splitn(6, ' ');
    let stamp = Stamp {
        dev: fields.next()?.parse().ok()?,
        ino: fields.next()?.parse().ok()?,
        size: fields.next()?.parse().ok()?,
        mtime_ns: fields.next()?.parse().ok()?,
        ctime_ns: fields.next()?.parse().ok()?,
    };
    Some((stamp, fields.next()?))
}

/// The note as it is written.
#[derive(Default)]
struct Note {
    text: String,
}

impl Note {
    fn add(&mut self, kind: &str, what: &str) -> Option<()> {
        // A path with a tab or a line break in it would be read as something else.
        if what.contains(|character: char| character.is_control()) {
            return None;
        }
        if !self.text.is_empty() {
            self.text.push('\t');
        }
        self.text.push_str(kind);
        self.text.push(' ');
        self.text.push_str(what);
        Some(())
    }

    fn add_path(&mut self, kind: &str, path: &Path) -> Option<()> {
        self.add(kind, std::path::absolute(path).ok()?.to_str()?)
    }

    /// Adds a file by its stamp; `known` is the one that was believed, if one was.
    fn add_file(&mut self, store: &Store, path: &Path, known: Option<&Stamp>, now: SystemTime) -> Option<()> {
        let stamp = Stamp::of_plain_file(path).ok()??;
        if known.is_some_and(|known| *known != stamp) || !store.is_settled(&stamp, now) {
            return None;
        }
        let absolute = std::path::absolute(path).ok()?;
        let (kind, path) = match absolute.strip_prefix(store.root()) {
            Ok(inside) => ("store", inside),
            Err(_) => ("file", absolute.as_path()),
        };
        let path = path.to_str()?;
        let Stamp {
            dev,
            ino,
            size,
            mtime_ns,
            ctime_ns,
        } = stamp;
        self.add(kind, &format!("{dev} {ino} {size} {mtime_ns} {ctime_ns} {path}"))
    }
}

impl Session {
    /// Notes that a build found everything done, if it did and that can be proved again. `texts` are the files that the
    /// recipe was read from; without them nothing is noted. Says whether it was noted; nothing rests on it.
    pub fn note_fresh(&self, question: &Question, texts: &[(PathBuf, BlobDigest)], report: &Report) -> bool {
        let done = report.failures.is_empty() && !report.stopped && report.ran == 0 && report.skipped == 0;
        done && self
            .fresh_note(question, texts, report)
            .and_then(|(name, text)| self.store.note_fresh(&name, &text).ok())
            .is_some()
    }

    fn fresh_note(
        &self,
        question: &Question,
        texts: &[(PathBuf, BlobDigest)],
        report: &Report,
    ) -> Option<(Hash, String)> {
        let name = (!texts.is_empty()).then(|| question.name())??;
        let (store, now) = (&self.store, SystemTime::now());
        let mut note = Note::default();
        note.add("steps", &report.cached.to_string())?;
        for (path, digest) in texts {
            let path = std::path::absolute(path).ok()?;
            note.add("text", &format!("{digest} {}", path.to_str()?))?;
        }
        note.add_file(store, &question.program, None, now)?;
        for node in self.graph.nodes() {
            let outcome = report.outcomes.get(&node.id)?;
            for file in &outcome.files {
                note.add_file(store, &file.path, Some(&file.stamp), now)?;
            }
            for path in store.files_of(&outcome.key, &outcome.result) {
                note.add_file(store, &path, None, now)?;
            }
            match (&node.work, &node.id) {
                (Work::Promote { .. }, NodeId::Step(step)) => {
                    let manifest = self.settings.out.join(promote::manifest_name(step));
                    note.add_file(store, &manifest, None, now)?;
                }
                (Work::Step(step), _) => {
                    let StepBody::Corpus(corpus) = &step.body else { continue };
                    // The current folder's name is empty.
                    let folder = std::path::absolute(Path::new(".").join(&self.settings.folder)).ok()?;
                    for pattern in corpus.files.iter().filter(|file| corpus::is_pattern(&file.resolved)) {
                        note.add_path("in", &folder)?;
                        note.add("pattern", &pattern.resolved)?;
                        for path in corpus::matches(&pattern.resolved, &folder).ok()? {
                            note.add_path("match", &path)?;
                        }
                        note.add("matched", "all")?;
                    }
                }
                _ => {}
            }
        }
        // Shared blobs stand in many results.
        let mut seen = std::collections::HashSet::new();
        let records: Vec<&str> = note.text.split('\t').collect();
        let text: Vec<&str> = records
            .into_iter()
            .filter(|record| !record.starts_with("store ") || seen.insert(*record))
            .collect();
        Some((name, text.join("\t")))
    }
}
