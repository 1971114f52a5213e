//! A build that did nothing, remembered: when everything that it looked at is as it was, the next one has nothing to do
//! either, and needs neither to read the recipe nor to open a single result.
//!
//! The note holds every text of the recipe by digest, what every file pattern matched, and the stamp of every file that
//! decides: sources, outputs, manifests, the program itself, and of the store the results of all steps and their blobs,
//! which are looked at one by one only where the folder that they lie in has changed. It is written only by a build
//! that found everything done, and only if all stamps are old enough to prove something (`docs/design-notes.md`, "The
//! stat cache" and "A build with nothing to do"). One difference, and the build takes the long way, which finds out what
//! the difference means. So the note can save time, and can decide nothing.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::path::Path;
use std::path::PathBuf;
use std::str::FromStr;

use super::Session;
use super::record;
use crate::digest::BlobDigest;
use crate::digest::Hash;
use crate::engine::Engines;
use crate::fs;
use crate::fs::Stamp;
use crate::graph::NodeId;
use crate::graph::Work;
use crate::observer::Silent;
use crate::recipe::StepBody;
use crate::scheduler::Report;
use crate::step::corpus;
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
    /// The engines.
    pub engines: Engines,
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
        let engines = self.engines.quick_identity();
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
    let store = Store::look(cache_dir).ok()?;
    let name = question.name()?;
    let cached = store.fresh(&name, |note| still_holds(note.as_bytes()))?;
    // For the collector; a note that cannot be touched serves all the same.
    let _ = store.touch_fresh(&name);
    Some(cached)
}

/// Takes what stands before the next NUL.
fn next<'n>(rest: &mut &'n [u8]) -> Option<&'n CStr> {
    let record = CStr::from_bytes_until_nul(rest).ok()?;
    *rest = &rest[record.count_bytes() + 1..];
    Some(record)
}

/// Takes so many bytes.
fn take<'n>(rest: &mut &'n [u8], len: &str) -> Option<&'n [u8]> {
    let (taken, after) = rest.split_at_checked(len.parse().ok()?)?;
    *rest = after;
    Some(taken)
}

/// The stamps of some files, in order, for their digest.
#[derive(Default)]
struct Stamps(Vec<u8>);

impl Stamps {
    fn add(&mut self, stamp: &Stamp) {
        let Stamp {
            dev,
            ino,
            size,
            mtime_ns,
            ctime_ns,
        } = stamp;
        for number in [dev, ino, size] {
            self.0.extend(number.to_le_bytes());
        }
        for time in [mtime_ns, ctime_ns] {
            self.0.extend(time.to_le_bytes());
        }
    }

    fn of(stamp: &Stamp) -> Self {
        let mut stamps = Self::default();
        stamps.add(stamp);
        stamps
    }

    /// Looks at files, whose names have a NUL behind each; `None` if one is not there.
    fn of_files(folder: &fs::Folder, mut names: &[u8]) -> Option<Self> {
        let mut stamps = Self::default();
        while let Some(name) = next(&mut names) {
            stamps.add(&folder.stamp(name).ok()??);
        }
        Some(stamps)
    }

    fn digest(&self) -> Hash {
        Hash::of(&self.0)
    }
}

/// Returns how many steps a note says are done, if all that it rests on is as it was.
fn still_holds(note: &[u8]) -> Option<usize> {
    let mut cached = None;
    let mut matched: Option<(PathBuf, &str, Vec<PathBuf>)> = None;
    let mut folder: Option<fs::Folder> = None;
    // Whether no name in the folder whose files come next was made, removed or replaced.
    let mut untouched = false;
    let mut rest = note;
    while let Some(record) = next(&mut rest) {
        let (kind, what) = record.to_str().ok()?.split_once(' ')?;
        match kind {
            "steps" => cached = Some(what.parse().ok()?),
            "text" => {
                let (digest, path) = what.split_once(' ')?;
                let bytes = fs::read_small(Path::new(path), TEXT_CAP).ok()?;
                if BlobDigest::of(&bytes) != BlobDigest::from_str(digest).ok()? {
                    return None;
                }
            }
            "in" => matched = Some((PathBuf::from(what), "", Vec::new())),
            "pattern" => matched.as_mut()?.1 = what,
            "match" => matched.as_mut()?.2.push(PathBuf::from(what)),
            "matched" => {
                let (folder, pattern, files) = matched.take()?;
                if corpus::matches(pattern, &folder).ok()? != files {
                    return None;
                }
            }
            "folder" => folder = Some(fs::Folder::open(Path::new(what)).ok()?),
            "within" => {
                let (digest, len) = what.split_once(' ')?;
                let mut name = take(&mut rest, len)?;
                let stamp = folder.as_ref()?.stamp_of_folder(next(&mut name)?).ok()?;
                untouched = stamp.is_some_and(|stamp| Some(Stamps::of(&stamp).digest()) == digest.parse().ok());
            }
            "files" => {
                let (digest, len) = what.split_once(' ')?;
                let names = take(&mut rest, len)?;
                if !untouched && Stamps::of_files(folder.as_ref()?, names)?.digest() != digest.parse().ok()? {
                    return None;
                }
                untouched = false;
            }
            _ => return None,
        }
    }
    cached
}

/// The note as it is written: what was asked and read first, then files, folder by folder.
#[derive(Default)]
struct Note {
    text: String,
    files: BTreeMap<Place, Group>,
}

/// Where files lie that are looked at together.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// The folder from which their names start.
    base: PathBuf,
    /// The folder below it that holds all of them, if it is one of the store's.
    within: Option<PathBuf>,
}

/// Files that are looked at together.
struct Group {
    /// The stamp of the folder that holds them, looked at before they were, if whoever finds the same stamp later knows that
    /// they are all there: none was removed or replaced. So it is for folders of the store, where files are never
    /// written to once they have their names.
    folder: Option<Stamp>,
    /// Their stamps, by their names.
    files: BTreeMap<PathBuf, Stamp>,
}

impl Group {
    fn new(place: &Place, now: &fs::Moment) -> Self {
        let folder = place
            .within
            .as_ref()
            .and_then(|within| Stamp::of(&place.base.join(within)).ok());
        Self {
            folder: folder.filter(|stamp| stamp.is_settled(now)),
            files: BTreeMap::new(),
        }
    }
}

impl Note {
    fn add(&mut self, kind: &str, what: &str) -> Option<()> {
        self.push(&format!("{kind} {what}"))
    }

    fn push(&mut self, record: &str) -> Option<()> {
        // A path with a NUL or a line break in it would be read as something else.
        if record.contains(|character: char| character.is_control()) {
            return None;
        }
        self.text.push_str(record);
        self.text.push('\0');
        Some(())
    }

    /// Adds a file by its stamp; `known` is the one that was believed, if one was.
    fn add_file(&mut self, path: &Path, known: Option<&Stamp>, now: &fs::Moment) -> Option<()> {
        let absolute = std::path::absolute(path).ok()?;
        let parent = absolute.parent()?;
        let place = Place {
            base: parent.to_owned(),
            within: None,
        };
        self.add_to(place, &absolute, known, now)
    }

    /// Adds a file of the store.
    fn add_own(&mut self, store: &Store, path: &Path, now: &fs::Moment) -> Option<()> {
        let place = Place {
            base: store.root().to_owned(),
            within: Some(path.parent()?.strip_prefix(store.root()).ok()?.to_owned()),
        };
        self.add_to(place, path, None, now)
    }

    fn add_to(&mut self, place: Place, path: &Path, known: Option<&Stamp>, now: &fs::Moment) -> Option<()> {
        let name = path.strip_prefix(&place.base).ok()?.to_owned();
        let group = self
            .files
            .entry(place)
            .or_insert_with_key(|place| Group::new(place, now));
        let stamp = Stamp::of_plain_file(path).ok()??;
        if known.is_some_and(|known| *known != stamp) || !stamp.is_settled(now) {
            return None;
        }
        group.files.insert(name, stamp);
        Some(())
    }

    fn finish(mut self) -> Option<String> {
        let mut base = None;
        for (place, group) in std::mem::take(&mut self.files) {
            if base.as_ref() != Some(&place.base) {
                self.add("folder", place.base.to_str()?)?;
                base = Some(place.base);
            }
            if let (Some(stamp), Some(within)) = (group.folder, place.within) {
                let digest = Stamps::of(&stamp).digest();
                self.add("within", &format!("{digest} {}", within.as_os_str().len() + 1))?;
                self.push(within.to_str()?)?;
            }
            let mut stamps = Stamps::default();
            group.files.values().for_each(|stamp| stamps.add(stamp));
            let names: usize = group.files.keys().map(|name| name.as_os_str().len() + 1).sum();
            self.add("files", &format!("{} {names}", stamps.digest()))?;
            for name in group.files.keys() {
                self.push(name.to_str()?)?;
            }
        }
        Some(self.text)
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
        let (store, now) = (&self.store, &fs::Moment::now());
        let env = self.env(&Silent);
        let events = store.events().ok()?;
        let mut note = Note::default();
        note.add("steps", &report.cached.to_string())?;
        for (path, digest) in texts {
            let path = std::path::absolute(path).ok()?;
            note.add("text", &format!("{digest} {}", path.to_str()?))?;
        }
        note.add_file(&question.program, None, now)?;
        for node in self.graph.nodes() {
            let outcome = report.outcomes.get(&node.id)?;
            for file in &outcome.files {
                note.add_file(&file.path, Some(&file.stamp), now)?;
            }
            for path in store.files_of(&outcome.key, &outcome.result) {
                note.add_own(store, &path, now)?;
            }
            match (&node.work, &node.id) {
                (Work::Promote { .. }, NodeId::Step(step)) => {
                    let manifest = record::current_manifest(&env, step, outcome, &events).ok()??;
                    note.add_file(&manifest.path, Some(&manifest.stamp), now)?;
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
