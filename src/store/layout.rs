//! The directories and files of a store.

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

/// All directories of a store.
pub(super) const DIRECTORIES: [&str; 12] = [
    CAS, ACTIONS, MANIFESTS, RUNS, STAT, EVENTS, TOMBSTONES, BORROWED, TMP, LOCKS, LEASES, QUARANTINE,
];
/// The directories with subdirectories named by the first two digits.
pub(super) const SHARDED: [&str; 4] = [CAS, ACTIONS, STAT, TOMBSTONES];
pub(super) const LAYOUT_FILE: &str = "layout";
/// The directory with the identities of engines.
pub(super) const RUNS_ENGINES: &str = "runs-v1/engines";
/// The folders in the directory of runs.
pub(super) const RUN_FOLDERS: [&str; 6] = ["last", "earlier", "fresh", "engines", "failed", "machines"];
pub(super) const TAG_FILE: &str = "CACHEDIR.TAG";
