//! The note of a build with nothing to do. If nothing has changed since then, the next build has nothing to do either, and reads
//! neither the recipe nor any result.
//!
//! The note has the digest of every text of the recipe, the matches of every file pattern, and the stamps of all files that the
//! build depends on: sources, outputs, manifests, the program, and in the store the results of all steps and their blobs. The
//! files of a folder are inspected one by one only if the folder has changed. A build writes the note only if it had nothing to do
//! and all stamps are old enough to prove that (`docs/design-notes.md`, "The stat cache" and "A build with nothing to do"). If
//! anything differs, the build runs as usual. So the note saves time, and never changes a result.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

use super::Session;
use super::record;
use super::tables;
use crate::digest::BlobDigest;
use crate::digest::Hash;
use crate::engine::Engines;
use crate::fs;
use crate::fs::Stamp;
use crate::manifest;
use crate::observer::Silent;
use crate::report::metrics::Metrics;
use crate::scheduler::Report;
use crate::step;
use crate::step::Watched;
use crate::step::pattern;
use crate::step::promote;
use crate::store::Store;

/// The maximum length of a recipe.
const TEXT_CAP: u64 = 4 << 20;

/// What a build is asked for. Each request has its own note.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    /// The recipe.
    pub recipe: PathBuf,
    /// Where outputs go, if the user said.
    pub out: Option<PathBuf>,
    /// The steps that the user asked for.
    pub steps: Vec<String>,
    /// This program: another version may decide otherwise.
    pub program: PathBuf,
    /// The engines.
    pub engines: Engines,
}

impl BuildRequest {
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

/// What a build that has nothing to do shows.
#[derive(Debug, Clone, PartialEq)]
pub struct NothingToDo {
    /// The number of steps that are done.
    pub steps: usize,
    /// The output folder, if any of its files is an output.
    pub out: Option<PathBuf>,
    /// The tables of candidates, in the recipe's order.
    pub tables: Vec<Metrics>,
}

/// Returns what a build shows if all steps are done and nothing that decides it has changed since that was found out. `None`
/// says only that it is not known.
pub fn nothing_to_do(cache_dir: &Path, request: &BuildRequest) -> Option<NothingToDo> {
    let store = Store::open_read_only(cache_dir).ok()?;
    let name = request.name()?;
    let (steps, out, tables) = store.fresh(&name, still_holds)?;
    let tables = tables.iter().map(|table| tables::read(&store, table));
    let tables = tables.collect::<Option<_>>()?;
    // For the collector; a note that cannot be touched serves all the same.
    let _ = store.touch_fresh(&name);
    Some(NothingToDo { steps, out, tables })
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

    /// Stats files by their names in a folder; `None` if one is missing.
    fn of_files(folder: &fs::Folder, names: &[Name<'_>]) -> Option<Self> {
        let mut stamps = Self::default();
        for Name(name) in names {
            stamps.add(&folder.stamp(&CString::new(name.as_ref()).ok()?).ok()??);
        }
        Some(stamps)
    }

    fn digest(&self) -> Hash {
        Hash::of(&self.0)
    }
}

/// The note as it is stored, version 5: JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Note<'n> {
    /// The number of steps that are done.
    steps: usize,
    /// The output folder, if any of its files is an output.
    out: Option<PathBuf>,
    /// The tables of candidates, as output `json` of `metrics`. Their blobs are among the files below.
    tables: Vec<BlobDigest>,
    /// The files that the recipe is read from.
    #[serde(borrow)]
    texts: Vec<Text<'n>>,
    /// The file patterns of the recipe.
    patterns: Vec<Pattern<'n>>,
    /// All files whose stamps matter.
    folders: Vec<Folder<'n>>,
}

/// A name of a file, borrowed from the note where nothing in it is escaped. In a list or a pair, serde would copy each [`Cow`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
struct Name<'n>(#[serde(borrow)] Cow<'n, str>);

/// A file that is read and compared with its digest.
#[derive(Debug, Serialize, Deserialize)]
struct Text<'n> {
    #[serde(borrow)]
    path: Cow<'n, str>,
    digest: BlobDigest,
}

/// A file pattern and the files that it matches.
#[derive(Debug, Serialize, Deserialize)]
struct Pattern<'n> {
    #[serde(borrow)]
    folder: Cow<'n, str>,
    #[serde(borrow)]
    glob: Cow<'n, str>,
    files: Vec<PathBuf>,
}

/// A folder that names of files start from.
#[derive(Debug, Serialize, Deserialize)]
struct Folder<'n> {
    #[serde(borrow)]
    path: Cow<'n, str>,
    groups: Vec<Group<'n>>,
}

/// Files whose stamps are compared together.
#[derive(Debug, Serialize, Deserialize)]
struct Group<'n> {
    /// The folder of the store that holds all of them, and the digest of its stamp. While it has that stamp, none of the files was
    /// removed or replaced: files of the store are not written to once they have their names.
    #[serde(borrow)]
    within: Option<(Name<'n>, Hash)>,
    /// The digest of the stamps of the files, in order.
    stamps: Hash,
    files: Vec<Name<'n>>,
}

/// Returns the number of steps that a note says are done, the output folder and the tables, if everything that it depends on is unchanged.
fn still_holds(note: &str) -> Option<(usize, Option<PathBuf>, Vec<BlobDigest>)> {
    let note: Note<'_> = serde_json::from_str(note).ok()?;
    for text in &note.texts {
        let bytes = fs::read_small(Path::new(text.path.as_ref()), TEXT_CAP).ok()?;
        if BlobDigest::of(&bytes) != text.digest {
            return None;
        }
    }
    for pattern in &note.patterns {
        if pattern::matches(&pattern.glob, Path::new(pattern.folder.as_ref())).ok()? != pattern.files {
            return None;
        }
    }
    for folder in &note.folders {
        let opened = fs::Folder::open(Path::new(folder.path.as_ref())).ok()?;
        for group in &folder.groups {
            if !is_untouched(&opened, group)? && Stamps::of_files(&opened, &group.files)?.digest() != group.stamps {
                return None;
            }
        }
    }
    Some((note.steps, note.out, note.tables))
}

/// Returns whether no file of a group was made, removed or replaced, as far as the stamp of its folder proves that.
fn is_untouched(folder: &fs::Folder, group: &Group<'_>) -> Option<bool> {
    let Some((Name(name), digest)) = &group.within else {
        return Some(false);
    };
    let stamp = folder.stamp_of_folder(&CString::new(name.as_ref()).ok()?).ok()?;
    Some(stamp.is_some_and(|stamp| Stamps::of(&stamp).digest() == *digest))
}

/// Where files are that are compared together.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// The folder that their names start from.
    base: PathBuf,
    /// The folder below it that holds all of them, if it is one of the store's.
    within: Option<PathBuf>,
}

/// Returns a path as the note has it; `None` if it is not UTF-8.
fn text(path: &Path) -> Option<Cow<'static, str>> {
    Some(Cow::Owned(path.to_str()?.to_owned()))
}

/// Files that are compared together, while a note is made.
struct StampedGroup {
    /// The stamp of the folder of the store that holds them, taken before theirs, if it is settled.
    folder: Option<Stamp>,
    /// Their stamps, by their names.
    files: BTreeMap<PathBuf, Stamp>,
}

impl StampedGroup {
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

/// The files of a note, while it is made.
#[derive(Default)]
struct Files(BTreeMap<Place, StampedGroup>);

impl Files {
    /// Adds a file by its stamp; `known` is the stamp that the build relied on, if it did.
    fn add(&mut self, path: &Path, known: Option<&Stamp>, now: &fs::Moment) -> Option<()> {
        let absolute = std::path::absolute(path).ok()?;
        let parent = absolute.parent()?;
        let place = Place {
            base: parent.to_owned(),
            within: None,
        };
        self.add_to(place, &absolute, known, now)
    }

    /// Adds a file of the store.
    fn add_store_file(&mut self, store: &Store, path: &Path, now: &fs::Moment) -> Option<()> {
        let place = Place {
            base: store.root().to_owned(),
            within: Some(path.parent()?.strip_prefix(store.root()).ok()?.to_owned()),
        };
        self.add_to(place, path, None, now)
    }

    fn add_to(&mut self, place: Place, path: &Path, known: Option<&Stamp>, now: &fs::Moment) -> Option<()> {
        let name = path.strip_prefix(&place.base).ok()?.to_owned();
        let group = self
            .0
            .entry(place)
            .or_insert_with_key(|place| StampedGroup::new(place, now));
        let stamp = Stamp::of_plain_file(path).ok()??;
        if known.is_some_and(|known| *known != stamp) || !stamp.is_settled(now) {
            return None;
        }
        group.files.insert(name, stamp);
        Some(())
    }

    /// Returns the files by folder; `None` if a path is not UTF-8.
    fn finish(self) -> Option<Vec<Folder<'static>>> {
        let mut folders: Vec<(PathBuf, Folder<'static>)> = Vec::new();
        for (place, group) in self.0 {
            let within = match (group.folder, &place.within) {
                (Some(stamp), Some(within)) => Some((Name(text(within)?), Stamps::of(&stamp).digest())),
                _ => None,
            };
            let mut stamps = Stamps::default();
            group.files.values().for_each(|stamp| stamps.add(stamp));
            let group = Group {
                within,
                stamps: stamps.digest(),
                files: group
                    .files
                    .keys()
                    .map(|name| text(name).map(Name))
                    .collect::<Option<_>>()?,
            };
            match folders.last_mut() {
                Some((base, folder)) if *base == place.base => folder.groups.push(group),
                _ => {
                    let folder = Folder {
                        path: text(&place.base)?,
                        groups: vec![group],
                    };
                    folders.push((place.base, folder));
                }
            }
        }
        Some(folders.into_iter().map(|(_, folder)| folder).collect())
    }
}

impl Session {
    /// Notes that a build found everything done, if it did and that can be proved again. `texts` are the files that the
    /// recipe was read from; without them nothing is noted. Says whether it was noted; no result depends on it.
    pub fn note_fresh(&self, request: &BuildRequest, texts: &[(PathBuf, BlobDigest)], report: &Report) -> bool {
        let done = report.failures.is_empty() && !report.stopped && report.ran + report.wrote + report.skipped == 0;
        // Each build names stale files.
        done && report.stale.is_empty()
            && self
                .fresh_note(request, texts, report)
                .and_then(|(name, text)| self.store.note_fresh(&name, &text).ok())
                .is_some()
    }

    fn fresh_note(
        &self,
        request: &BuildRequest,
        texts: &[(PathBuf, BlobDigest)],
        report: &Report,
    ) -> Option<(Hash, String)> {
        let name = (!texts.is_empty()).then(|| request.name())??;
        let (store, now) = (&self.store, &fs::Moment::now());
        let env = self.env(&Silent);
        let events = store.events().ok()?;
        let (mut files, mut patterns) = (Files::default(), Vec::new());
        files.add(&request.program, None, now)?;
        // The name of the current folder is empty.
        let folder = std::path::absolute(Path::new(".").join(&self.settings.folder)).ok()?;
        for node in self.graph.nodes() {
            let outcome = report.outcomes.get(&node.id)?;
            for file in &outcome.files {
                files.add(&file.path, Some(&file.stamp), now)?;
            }
            for path in store.files_of(&outcome.key, &outcome.result) {
                files.add_store_file(store, &path, now)?;
            }
            if let Some(candidate) = promote::candidate(node) {
                let manifest = record::current_manifest(self, &env, candidate, outcome, &events).ok()??;
                files.add(&manifest.path, Some(&manifest.stamp), now)?;
            }
            for watched in step::kind_of(node).watches(node) {
                let Watched::Pattern(glob) = watched else { continue };
                patterns.push(Pattern {
                    folder: text(&folder)?,
                    files: pattern::matches(&glob, &folder).ok()?,
                    glob: Cow::Owned(glob),
                });
            }
        }
        // Another recipe of this name may add candidates that this one does not make.
        let out = std::path::absolute(Path::new(".").join(&self.settings.out)).ok()?;
        if fs::exists(&out).ok()? {
            let glob = format!("*{}", manifest::SUFFIX);
            patterns.push(Pattern {
                folder: text(&out)?,
                files: pattern::matches(&glob, &out).ok()?,
                glob: Cow::Owned(glob),
            });
        }
        let texts = texts.iter().map(|(path, digest)| {
            Some(Text {
                path: text(&std::path::absolute(path).ok()?)?,
                digest: *digest,
            })
        });
        let note = Note {
            steps: report.hit,
            out: if self.outputs(report).is_empty() {
                None
            } else {
                Some(std::path::absolute(&self.settings.out).ok()?)
            },
            tables: tables::digests(&self.recipe, report).map(|(_, table)| table).collect(),
            texts: texts.collect::<Option<_>>()?,
            patterns,
            folders: files.finish()?,
        };
        Some((name, serde_json::to_string(&note).ok()?))
    }
}
