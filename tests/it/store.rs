//! What the store promises, and attempts to break it.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod blobs;
mod crash;
mod results;
mod stat;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

use forge::action::result::ActionResult;
use forge::digest::ActionDigest;
use forge::digest::BlobDigest;
use forge::store::Store;

/// A directory with a store in it and space for other files beside it.
struct Place {
    dir: tempfile::TempDir,
    store: Store,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        Self { dir, store }
    }

    /// A path beside the store.
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn blob_path(&self, digest: &BlobDigest) -> PathBuf {
        shard(&self.store.root().join("cas-v1"), &digest.hash.to_string())
    }

    fn result_path(&self, key: &ActionDigest) -> PathBuf {
        shard(&self.store.root().join("actions-v1"), &key.to_string())
    }
}

fn shard(directory: &Path, hex: &str) -> PathBuf {
    directory.join(&hex[..2]).join(&hex[2..])
}

fn key(name: &str) -> ActionDigest {
    ActionDigest::of(name.as_bytes())
}

/// Stores `bytes` as the one output of an action, and returns the result (not committed).
fn result_of(store: &Store, name: &str, bytes: &[u8]) -> ActionResult {
    ActionResult {
        schema: 1,
        action: store.put(name.as_bytes()).unwrap(),
        outputs: BTreeMap::from([("out".to_owned(), store.put(bytes).unwrap())]),
        cost_ms: 7,
        facts: BTreeMap::from([("tensors".to_owned(), "3".to_owned())]),
    }
}

/// Changes bytes of a file in place, past its read-only mode, as a failing disk would.
fn corrupt(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    make_writable(path);
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(path)
        .unwrap();
    file.write_all(&bytes).unwrap();
}

fn make_writable(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
}

/// All plain files under a directory.
fn files_under(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_under(&path));
        } else {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// Asserts that every blob in a store has the bytes that its name promises.
fn assert_all_blobs_whole(root: &Path) -> usize {
    let cas = root.join("cas-v1");
    let files = files_under(&cas);
    for path in &files {
        let name: String = path.strip_prefix(&cas).unwrap().to_string_lossy().replace('/', "");
        assert_eq!(BlobDigest::of(&std::fs::read(path).unwrap()).hash.to_string(), name);
    }
    files.len()
}

/// Says loudly that this machine cannot show something.
fn skip(why: &str) {
    eprintln!("SKIPPED: {why}");
}
