//! What lies where, and which version of it.

use std::path::Path;

use crate::fs;
use crate::store::StoreError;

/// The newest layout that this program knows.
pub(super) const LAYOUT: u64 = 1;

pub(super) const CAS: &str = "cas-v1";
pub(super) const ACTIONS: &str = "actions-v1";
pub(super) const MANIFESTS: &str = "manifests-v1";
pub(super) const RUNS: &str = "runs-v1";
pub(super) const STAT: &str = "stat-v1";
pub(super) const EVENTS: &str = "events-v1";
pub(super) const TOMBSTONES: &str = "tombstones-v1";
pub(super) const BORROWED: &str = "borrowed-v1";
pub(super) const LEASES: &str = "leases";
pub(super) const TMP: &str = "tmp";
pub(super) const LOCKS: &str = "locks";
pub(super) const QUARANTINE: &str = "quarantine";

/// Everything that a store has, by name.
pub(super) const DIRECTORIES: [&str; 12] = [
    CAS, ACTIONS, MANIFESTS, RUNS, STAT, EVENTS, TOMBSTONES, BORROWED, TMP, LOCKS, LEASES, QUARANTINE,
];
/// Those whose files lie in directories named by the first two digits.
pub(super) const SHARDED: [&str; 4] = [CAS, ACTIONS, STAT, TOMBSTONES];
pub(super) const LAYOUT_FILE: &str = "layout";
const LAYOUT_WORD: &str = "forge-store";
/// The folders within that of the runs.
pub(super) const RUN_FOLDERS: [&str; 5] = ["last", "earlier", "fresh", "engines", "failed"];
pub(super) const TAG_FILE: &str = "CACHEDIR.TAG";
const TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55
# This directory is a cache of forge. Everything in it can be made again.
# For information about cache directory tags see https://bford.info/cachedir/
";

/// Makes the directories of a store, or checks that those that are there are of a version that this program knows.
pub(super) fn prepare(root: &Path) -> Result<(), StoreError> {
    let layout = root.join(LAYOUT_FILE);
    match fs::read_small(&layout, 256) {
        Ok(text) => check_version(root, &layout, &text)?,
        Err(error) if error.is_not_found() => {
            refuse_foreign(root)?;
            create(root)?;
        }
        Err(error) => return Err(error.into()),
    }
    // Cheap when all is there; mends a store from which somebody removed a directory by hand.
    for directory in DIRECTORIES {
        let path = root.join(directory);
        refuse_link(&path)?;
        fs::create_dir_all(&path)?;
    }
    refuse_links_within(root)
}

/// Refuses a store that leads out of itself, as one that came in an archive from elsewhere could: what is written to it or
/// removed from it would be somebody else's. The store's own root may be a link.
fn refuse_links_within(root: &Path) -> Result<(), StoreError> {
    for directory in SHARDED {
        let directory = root.join(directory);
        for entry in fs::list(&directory)? {
            if !entry.is_dir {
                refuse_link(&directory.join(&entry.name))?;
            }
        }
    }
    for folder in RUN_FOLDERS {
        refuse_link(&root.join(RUNS).join(folder))?;
    }
    Ok(())
}

fn refuse_link(path: &Path) -> Result<(), StoreError> {
    match fs::facts(path)? {
        Some(facts) if facts.kind == fs::FileKind::Other => Err(StoreError::LeadsOut { path: path.to_owned() }),
        _ => Ok(()),
    }
}

fn check_version(root: &Path, layout: &Path, text: &[u8]) -> Result<(), StoreError> {
    let text = String::from_utf8_lossy(text);
    let version = text
        .strip_prefix(LAYOUT_WORD)
        .and_then(|rest| rest.trim().parse::<u64>().ok());
    match version {
        Some(LAYOUT) => Ok(()),
        Some(found) if found > LAYOUT => Err(StoreError::Newer {
            path: layout.to_owned(),
            found,
            supported: LAYOUT,
        }),
        _ => Err(StoreError::NotAStore {
            path: root.to_owned(),
            found: format!("{LAYOUT_FILE}: {}", text.trim().chars().take(40).collect::<String>()),
        }),
    }
}

/// Refuses a directory that holds anything that a store does not.
fn refuse_foreign(root: &Path) -> Result<(), StoreError> {
    if !fs::exists(root)? {
        return Ok(());
    }
    for entry in fs::list(root)? {
        let name = entry.name.to_string_lossy();
        let ours = DIRECTORIES.contains(&&*name) || name == TAG_FILE || name == LAYOUT_FILE || name == "lost+found";
        // A process killed while it made the store leaves these.
        if !ours && !name.starts_with(".forge-") {
            return Err(StoreError::NotAStore {
                path: root.to_owned(),
                found: name.into_owned(),
            });
        }
    }
    Ok(())
}

fn create(root: &Path) -> Result<(), StoreError> {
    for directory in DIRECTORIES {
        fs::create_dir_all(&root.join(directory))?;
    }
    // All of them now, and durably: a process that finds one need not wonder whether the one that made it had synced it.
    for directory in [CAS, ACTIONS] {
        let directory = root.join(directory);
        for first in 0..=u8::MAX {
            fs::create_dir(&directory.join(format!("{first:02x}")))?;
        }
        fs::sync_dir(&directory)?;
    }
    fs::write_atomic(&root.join(TAG_FILE), TAG.as_bytes(), fs::Durability::Synced)?;
    // Last: a store that has this has all the rest.
    let text = format!("{LAYOUT_WORD} {LAYOUT}\n");
    fs::write_atomic(&root.join(LAYOUT_FILE), text.as_bytes(), fs::Durability::Synced)?;
    Ok(())
}
