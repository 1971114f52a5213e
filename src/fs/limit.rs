//! The limit on the size of files that this process writes.

use rustix::process::Resource;

/// Returns the maximum size in bytes of a file that this process writes (`ulimit -f`), if there is one.
pub fn file_size_limit() -> Option<u64> {
    rustix::process::getrlimit(Resource::Fsize).current
}
