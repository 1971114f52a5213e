//! Finds files by what they hold: where the recipe says they are, next to the manifest, and below the folders that are to be
//! searched; by length first, then by digest.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Component;
use std::path::Path;
use std::path::PathBuf;

use super::Places;
use crate::digest::BlobDigest;
use crate::digest::Hash;
use crate::fs;
use crate::fs::Stamp;
use crate::graph::Graph;
use crate::manifest::Manifest;
use crate::step;
use crate::step::Watched;
use crate::step::pattern::anchored;
use crate::step::pattern::is_pattern;

/// How much of a file is read at once.
const PIECE: usize = 8 << 20;

/// A file that a candidate was made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The node that reads it.
    pub node: String,
    /// The name that it had.
    pub name: String,
    /// What it held.
    pub digest: BlobDigest,
}

/// What was found, in the manifest's order, and what was not, with a file of the same name that holds something else.
pub(super) struct Located {
    pub(super) found: Vec<(Wanted, PathBuf)>,
    pub(super) missing: Vec<(Wanted, Option<PathBuf>)>,
}

/// Returns the files that a manifest names, in its order: that of the parts of a model, and of the texts of a corpus.
pub(super) fn wanted(manifest: &Manifest) -> Result<Vec<Wanted>, String> {
    let mut all = Vec::new();
    let mut names = BTreeSet::new();
    for source in &manifest.predicate.build_definition.resolved_dependencies {
        let node = source.annotations.get("node").cloned().unwrap_or_default();
        let hash = source.digest.get("blake3").and_then(|hash| hash.parse::<Hash>().ok());
        let len = source.annotations.get("bytes").and_then(|len| len.parse().ok());
        let (Some(hash), Some(len)) = (hash, len) else {
            return Err(format!("source `{}` has no digest", source.name));
        };
        // The parts of a model lie side by side; texts may have the same name in different folders.
        if node.starts_with("source.") && !names.insert((node.clone(), source.name.clone())) {
            return Err(format!("`{node}` has two parts called `{}`", source.name));
        }
        all.push(Wanted {
            node,
            name: source.name.clone(),
            digest: BlobDigest { hash, len },
        });
    }
    Ok(all)
}

/// Hashes of files that were read, by device and number, so that none is read twice.
struct HashCache<'p> {
    hashes: BTreeMap<(u64, u64), Option<Hash>>,
    progress: &'p dyn Fn(u64),
}

impl HashCache<'_> {
    fn holds(&mut self, path: &Path, stamp: &Stamp, digest: &BlobDigest) -> bool {
        if stamp.size != digest.len {
            return false;
        }
        let progress = self.progress;
        let hash = self
            .hashes
            .entry((stamp.dev, stamp.ino))
            .or_insert_with(|| hash_of(path, stamp.size, progress));
        *hash == Some(digest.hash)
    }
}

/// Returns the hash of a file; nothing if it cannot be read. Read once more by the build, which is what decides.
fn hash_of(path: &Path, size: u64, progress: &dyn Fn(u64)) -> Option<Hash> {
    let file = fs::open(path).ok()?;
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; PIECE.min(usize::try_from(size).unwrap_or(PIECE))];
    let mut at = 0;
    while at < size {
        let len = PIECE.min(usize::try_from(size - at).unwrap_or(PIECE));
        fs::read_exact_at(&file, &mut piece[..len], at).ok()?;
        hasher.update_rayon(&piece[..len]);
        at += len as u64;
        progress(len as u64);
    }
    Some(Hash::from_bytes(*hasher.finalize().as_bytes()))
}

/// Looks for files: at the recipe's paths from every base, next to the manifest, then below the folders to search.
pub(super) fn locate(
    manifest: &Path,
    graph: &Graph,
    wanted: Vec<Wanted>,
    places: &Places,
    progress: &dyn Fn(u64),
) -> Located {
    let mut known = HashCache {
        hashes: BTreeMap::new(),
        progress,
    };
    let beside = manifest.parent().unwrap_or(Path::new(""));
    let mut paths: Vec<Option<PathBuf>> = vec![None; wanted.len()];
    let mut others: Vec<Option<PathBuf>> = vec![None; wanted.len()];
    for (at, wanted) in wanted.iter().enumerate() {
        let mut hints = vec![beside.join(&wanted.name)];
        for base in &places.bases {
            hints.extend(paths_of_recipe(graph, wanted, base));
        }
        for path in hints {
            let Ok(Some(stamp)) = Stamp::of_plain_file(&path) else {
                continue;
            };
            if known.holds(&path, &stamp, &wanted.digest) {
                paths[at] = Some(path);
                break;
            }
            if path.file_name().is_some_and(|name| *name == *wanted.name) {
                others[at].get_or_insert(path);
            }
        }
    }
    let mut by_size: BTreeMap<u64, Vec<(PathBuf, Stamp)>> = BTreeMap::new();
    for (wanted, path) in wanted.iter().zip(&paths) {
        if path.is_none() {
            by_size.insert(wanted.digest.len, Vec::new());
        }
    }
    if !by_size.is_empty() {
        for folder in &places.search {
            // A folder that does not exist contains nothing: the sources are then reported as missing.
            fs::plain_files(folder, &mut |path, stamp| {
                if let Some(files) = by_size.get_mut(&stamp.size) {
                    files.push((path, stamp));
                }
            })
            .ok();
        }
    }
    for (wanted, path) in wanted.iter().zip(&mut paths) {
        if path.is_none() {
            let files = by_size.get(&wanted.digest.len).into_iter().flatten();
            let mut holding = files.filter(|(path, stamp)| known.holds(path, stamp, &wanted.digest));
            *path = holding.next().map(|(path, _)| path.clone());
        }
    }
    let mut located = Located {
        found: Vec::new(),
        missing: Vec::new(),
    };
    for ((wanted, path), other) in wanted.into_iter().zip(paths).zip(others) {
        match path {
            Some(path) => located.found.push((wanted, path)),
            None => located.missing.push((wanted, other)),
        }
    }
    located
}

/// Returns where the recipe says that a file is, if its paths start from `base`. They are only looked at.
fn paths_of_recipe(graph: &Graph, wanted: &Wanted, base: &Path) -> Vec<PathBuf> {
    let node = graph.nodes().find(|node| node.id.to_string() == wanted.node);
    let watched = node.map(|node| step::kind_of(node).watches(node)).unwrap_or_default();
    let mut hints = Vec::new();
    for watched in watched {
        match watched {
            Watched::File(path) => {
                let path = base.join(path);
                hints.push(path.with_file_name(&wanted.name));
                hints.push(path);
            }
            Watched::Pattern(pattern) => hints.extend(matching(&pattern, wanted, base)),
        }
    }
    hints
}

/// Returns the files of the name that is wanted that a pattern may mean.
fn matching(pattern: &str, wanted: &Wanted, base: &Path) -> Vec<PathBuf> {
    let path = Path::new(pattern);
    let folder = path.parent().unwrap_or(Path::new(""));
    if folder.to_str().is_some_and(|folder| !is_pattern(folder)) {
        return vec![base.join(folder).join(&wanted.name)];
    }
    let mut parts = path.components();
    if !parts.all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Vec::new();
    }
    // Folders by a pattern: looked through only below the base, where the build itself would look.
    let found = glob::glob(&anchored(pattern, base)).into_iter().flatten().flatten();
    found
        .filter(|path| path.file_name().is_some_and(|name| *name == *wanted.name))
        .collect()
}
