//! A build that did nothing, remembered: when everything that it looked at is as it was, the next one has nothing to do
//! either, and needs neither to read the recipe nor to open a single result.
//!
//! The note holds every text of the recipe by digest, what every file pattern matched, and the stamp of every file that
//! decides: sources, outputs, manifests, the results of all steps and their blobs, the program itself. It is written
//! only by a build that found everything done, and only if all stamps are old enough to prove something
//! (`docs/design-notes.md`, "The stat cache"). One difference, and the build takes the long way, which finds out
//! what the difference means. So the note can save time, and can decide nothing.

use std::collections::BTreeMap;
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
        let quantizer = engine::quantizer().fingerprint().to_string();
        let devices = engine::has_devices().then(|| engine::evaluator().fingerprint().to_string());
        let parts = (
            absolute(&self.recipe)?,
            out,
            &self.steps,
            absolute(&self.program)?,
            (quantizer, devices),
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
    let store = Store::look(cache_dir).ok()?;
    let name = question.name()?;
    let text = store.fresh(&name)?;
    let mut cached = None;
    let mut matched: Option<(PathBuf, &str, Vec<PathBuf>)> = None;
    let mut folders: Vec<fs::Folder> = Vec::new();
    let mut files: Vec<(usize, &str)> = Vec::new();
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
            "in" => matched = Some((PathBuf::from(rest), "", Vec::new())),
            "pattern" => matched.as_mut()?.1 = rest,
            "match" => matched.as_mut()?.2.push(PathBuf::from(rest)),
            "matched" => {
                let (folder, pattern, files) = matched.take()?;
                if corpus::matches(pattern, &folder).ok()? != files {
                    return None;
                }
            }
            "folder" => folders.push(fs::Folder::open(Path::new(rest)).ok()?),
            "file" => files.push((folders.len().checked_sub(1)?, rest)),
            _ => return None,
        }
    }
    let unchanged = |(folder, record): &(usize, &str)| {
        let (stamp, path) = read_stamp(record)?;
        (folders[*folder].stamp(Path::new(path)).ok()?? == stamp).then_some(())
    };
    // Thousands of looks: worth the two threads that they save time with, not worth a pool.
    let (half, other) = files.split_at(files.len() / 2);
    let all = |files: &[(usize, &str)]| files.iter().all(|file| unchanged(file).is_some());
    let same = std::thread::scope(|scope| {
        let other = scope.spawn(|| all(other));
        all(half) && other.join().unwrap_or(false)
    });
    if same {
        // For the collector; a note that cannot be touched serves all the same.
        let _ = store.touch_fresh(&name);
        cached
    } else {
        None
    }
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

/// The note as it is written: what was asked and read first, then files, folder by folder.
#[derive(Default)]
struct Note {
    records: Vec<String>,
    /// Stamps by folder and by the path from there.
    files: BTreeMap<PathBuf, BTreeMap<PathBuf, Stamp>>,
}

impl Note {
    fn add(&mut self, kind: &str, what: &str) -> Option<()> {
        // A path with a tab or a line break in it would be read as something else.
        if what.contains(|character: char| character.is_control()) {
            return None;
        }
        self.records.push(format!("{kind} {what}"));
        Some(())
    }

    /// Adds a file by its stamp; `known` is the one that was believed, if one was.
    fn add_file(&mut self, store: &Store, path: &Path, known: Option<&Stamp>, now: SystemTime) -> Option<()> {
        let stamp = Stamp::of_plain_file(path).ok()??;
        if known.is_some_and(|known| *known != stamp) || !store.is_settled(&stamp, now) {
            return None;
        }
        let absolute = std::path::absolute(path).ok()?;
        let folder = if absolute.starts_with(store.root()) {
            store.root()
        } else {
            absolute.parent()?
        };
        let name = absolute.strip_prefix(folder).ok()?.to_owned();
        self.files.entry(folder.to_owned()).or_default().insert(name, stamp);
        Some(())
    }

    fn finish(mut self) -> Option<String> {
        for (folder, files) in std::mem::take(&mut self.files) {
            self.add("folder", folder.to_str()?)?;
            for (name, stamp) in files {
                let Stamp {
                    dev,
                    ino,
                    size,
                    mtime_ns,
                    ctime_ns,
                } = stamp;
                let name = name.to_str()?;
                self.add("file", &format!("{dev} {ino} {size} {mtime_ns} {ctime_ns} {name}"))?;
            }
        }
        Some(self.records.join("\t"))
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
                        note.add("in", folder.to_str()?)?;
                        note.add("pattern", &pattern.resolved)?;
                        for path in corpus::matches(&pattern.resolved, &folder).ok()? {
                            note.add("match", path.to_str()?)?;
                        }
                        note.add("matched", "all")?;
                    }
                }
                _ => {}
            }
        }
        Some((name, note.finish()?))
    }
}
