//! Creates a store, or checks the version of one.

use std::ffi::OsStr;
use std::io;
use std::io::Write as _;
use std::path::Path;

use crate::digest::Hash;
use crate::fs;
use crate::fs::FileKind;
use crate::store::StoreError;
use crate::store::layout::ACTIONS;
use crate::store::layout::CAS;
use crate::store::layout::DIRECTORIES;
use crate::store::layout::LAYOUT;
use crate::store::layout::LAYOUT_FILE;
use crate::store::layout::LEASES;
use crate::store::layout::LOCKS;
use crate::store::layout::QUARANTINE;
use crate::store::layout::RUN_FOLDERS;
use crate::store::layout::RUNS;
use crate::store::layout::SHARDED;
use crate::store::layout::TAG_FILE;
use crate::store::layout::TMP;
use crate::store::quarantine;
use crate::store::quarantine::Quarantined;

const LAYOUT_WORD: &str = "forge-store";
const LAYOUT_CAP: u64 = 256;
const TAG_CAP: u64 = 4096;
const TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55
# This directory is a cache of forge. Everything in it can be made again.
# For information about cache directory tags see https://bford.info/cachedir/
";

/// Creates the directories of a store, or checks that the existing store has a version that this program knows. Anything that
/// has the name of a file or directory of the store and is not one is quarantined. A damaged `layout` is written again.
/// Returns what was quarantined.
pub(super) fn prepare(root: &Path) -> Result<Vec<Quarantined>, StoreError> {
    let layout = root.join(LAYOUT_FILE);
    let found = read_layout(&layout)?;
    match &found {
        Layout::Known => {}
        Layout::Newer(found) => {
            return Err(StoreError::Newer {
                path: layout,
                found: *found,
                supported: LAYOUT,
            });
        }
        Layout::Absent | Layout::Damaged(_) if has_parts(root) => {}
        Layout::Absent => refuse_foreign(root)?,
        Layout::Damaged(text) => {
            return Err(StoreError::NotAStore {
                path: root.to_owned(),
                found: format!("{LAYOUT_FILE}: {}", text.trim().chars().take(40).collect::<String>()),
            });
        }
    }
    let mut moved = Vec::new();
    // Quick if everything exists, and repairs a store in which a directory was deleted. The quarantine comes first: everything
    // else is moved there.
    refuse_link(&root.join(QUARANTINE))?;
    moved.extend(free_quarantine(root)?);
    for directory in DIRECTORIES {
        let path = root.join(directory);
        refuse_link(&path)?;
        moved.extend(quarantine::quarantine_unless_directory(root, &path)?);
        fs::create_dir_all(&path)?;
    }
    moved.extend(heal_within(root)?);
    if !matches!(found, Layout::Known) {
        create_shards(root)?;
    }
    let tag = root.join(TAG_FILE);
    moved.extend(quarantine::quarantine_unless_file(root, &tag)?);
    if !is_tag(&tag) {
        write(root, TAG_FILE, TAG)?;
    }
    if !matches!(found, Layout::Known) {
        // Last: a store that has this file is complete.
        moved.extend(quarantine::quarantine_unless_file(root, &layout)?);
        write(root, LAYOUT_FILE, &layout_text())?;
    }
    Ok(moved)
}

/// The content of the `layout` file.
enum Layout {
    Known,
    Newer(u64),
    Absent,
    /// Something else, or not a file, with the text that could be read.
    Damaged(String),
}

fn layout_text() -> String {
    format!("{LAYOUT_WORD} {LAYOUT}\n")
}

fn read_layout(path: &Path) -> Result<Layout, StoreError> {
    let text = match quarantine::read_own(path, LAYOUT_CAP) {
        Ok((text, _)) => text,
        Err(error) if error.is_not_found() => return Ok(Layout::Absent),
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::FileTooLarge) => {
            return Ok(Layout::Damaged(error.source.to_string()));
        }
        Err(error) => return Err(error.into()),
    };
    let known = layout_text();
    if text == known.as_bytes() {
        return Ok(Layout::Known);
    }
    let words = String::from_utf8_lossy(&text).into_owned();
    let version = words
        .strip_prefix(LAYOUT_WORD)
        .and_then(|rest| rest.trim().parse::<u64>().ok());
    match version {
        // A single flipped bit makes `3`, `5` or `9` of `1`. So later layouts do not use these numbers alone
        // (`cache-schema/README.md`).
        Some(found) if found > LAYOUT && !is_one_bit_from(&text, known.as_bytes()) => Ok(Layout::Newer(found)),
        _ => Ok(Layout::Damaged(words)),
    }
}

fn is_one_bit_from(text: &[u8], other: &[u8]) -> bool {
    let bits = text.iter().zip(other).map(|(a, b)| (a ^ b).count_ones());
    text.len() == other.len() && bits.sum::<u32>() == 1
}

/// Returns whether a directory is a store, without its `layout` file: it contains the directories of blobs and of results, and
/// either `CACHEDIR.TAG` or nothing that does not belong to a store.
fn has_parts(root: &Path) -> bool {
    let is_there = |name: &str| {
        let found = fs::facts(&root.join(name)).ok().flatten();
        found.is_some_and(|found| found.kind == FileKind::Directory)
    };
    is_there(CAS) && is_there(ACTIONS) && (is_tag(&root.join(TAG_FILE)) || refuse_foreign(root).is_ok())
}

/// Returns whether a file begins with the signature of `CACHEDIR.TAG`.
fn is_tag(path: &Path) -> bool {
    let signature = TAG.lines().next().unwrap_or_default();
    let read = quarantine::read_own(path, TAG_CAP);
    read.is_ok_and(|(text, _)| text.starts_with(signature.as_bytes()))
}

/// Creates the quarantine if something else has its name, and moves that into it.
fn free_quarantine(root: &Path) -> Result<Option<Quarantined>, StoreError> {
    let path = root.join(QUARANTINE);
    if fs::facts(&path)?.is_none_or(|found| found.kind == FileKind::Directory) {
        return Ok(None);
    }
    let what = fs::what_is(&path).unwrap_or("something else");
    let made = root.join(fs::unique_name());
    fs::create_dir(&made)?;
    let name = format!("{}-0.odd", Hash::of(QUARANTINE.as_bytes()));
    fs::rename(&path, &made.join(&name))?;
    fs::rename(&made, &path)?;
    Ok(Some(Quarantined {
        to: path.join(name),
        path,
        what,
    }))
}

/// Quarantines wrong entries in the directories that every process needs: a file in place of a directory, and anything that is
/// not a file in place of a lock. Refuses links to directories: they lead out of the store.
fn heal_within(root: &Path) -> Result<Vec<Quarantined>, StoreError> {
    let mut moved = Vec::new();
    for directory in SHARDED {
        let directory = root.join(directory);
        for entry in fs::list(&directory)? {
            if !entry.is_dir {
                let path = directory.join(&entry.name);
                refuse_link(&path)?;
                if is_shard(&entry.name) {
                    moved.extend(quarantine::quarantine_unless_directory(root, &path)?);
                    fs::create_dir_all(&path)?;
                }
            }
        }
    }
    for folder in RUN_FOLDERS {
        let path = root.join(RUNS).join(folder);
        refuse_link(&path)?;
        if let Some(odd) = quarantine::quarantine_unless_directory(root, &path)? {
            fs::create_dir_all(&path)?;
            moved.push(odd);
        }
    }
    for directory in [LOCKS, LEASES, TMP] {
        let path = root.join(directory);
        for entry in fs::list(&path)? {
            let is_lock = directory != TMP || Path::new(&entry.name).extension().is_some_and(|it| it == "lock");
            if !entry.is_file && (is_lock || !entry.is_dir) {
                moved.extend(quarantine::quarantine_unless_file(root, &path.join(&entry.name))?);
            }
        }
    }
    Ok(moved)
}

fn is_shard(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.len() == 2 && name.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Refuses a link in place of a directory. A store from an archive could contain one, and files outside the store would then be
/// written or removed. The root of the store may be a link.
fn refuse_link(path: &Path) -> Result<(), StoreError> {
    match fs::facts(path)? {
        Some(facts) if facts.kind == FileKind::Link => Err(StoreError::LeadsOut { path: path.to_owned() }),
        _ => Ok(()),
    }
}

/// Refuses a directory that contains anything that does not belong to a store.
fn refuse_foreign(root: &Path) -> Result<(), StoreError> {
    if !fs::exists(root)? {
        return Ok(());
    }
    for entry in fs::list(root)? {
        let name = entry.name.to_string_lossy();
        let ours = DIRECTORIES.contains(&&*name) || name == TAG_FILE || name == LAYOUT_FILE || name == "lost+found";
        // A process that was killed while it created the store leaves these.
        if !ours && !name.starts_with(".forge-") {
            return Err(StoreError::NotAStore {
                path: root.to_owned(),
                found: name.into_owned(),
            });
        }
    }
    Ok(())
}

/// Creates and syncs all subdirectories for blobs and results when the store is created, so that no process finds one that is
/// not synced.
fn create_shards(root: &Path) -> Result<(), StoreError> {
    for directory in [CAS, ACTIONS] {
        let directory = root.join(directory);
        for first in 0..=u8::MAX {
            fs::create_dir(&directory.join(format!("{first:02x}")))?;
        }
        fs::sync_dir(&directory)?;
    }
    Ok(())
}

/// Writes a file in the root directory of the store.
fn write(root: &Path, name: &str, text: &str) -> Result<(), StoreError> {
    let path = root.join(name);
    let mut temp = fs::TempFile::own_in(root)?;
    temp.write_all(text.as_bytes())
        .map_err(fs::PathError::on(&path, "write"))?;
    temp.persist(&path, fs::Durability::Synced)?;
    Ok(())
}
