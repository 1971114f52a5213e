//! The only user of the file system: every error names a path and what was being done to it, every write is whole or
//! absent, every read of a whole file is bounded.

mod dir;
mod error;
mod facts;
mod grow;
mod lock;
pub mod map;
mod memory;
mod place;
mod read;
mod safe;
mod stamp;
mod tree;
mod write;

/// An open file, as the standard library has it; it is opened here only.
pub use std::fs::File;

pub use dir::Entry;
pub use dir::create_dir;
pub use dir::create_dir_all;
pub use dir::exists;
pub use dir::free_space;
pub use dir::is_only_name;
pub use dir::list;
pub use dir::remove_dir_all;
pub use dir::remove_file;
pub use dir::rename;
pub use dir::sync_dir;
pub use error::PathError;
pub use facts::Facts;
pub use facts::FileKind;
pub use facts::facts;
pub use facts::open_plain;
pub use facts::set_modified;
pub use facts::set_modified_of;
pub use grow::Ended;
pub use grow::Journal;
pub use grow::is_held;
pub use lock::FileLock;
pub use lock::open_lock;
pub use memory::free_memory;
pub use place::Check;
pub use place::Placed;
pub use place::place;
pub use read::open;
pub use read::open_foreign;
pub use read::read_at;
pub use read::read_exact_at;
pub use read::read_foreign;
pub use read::read_plain;
pub use read::read_small;
pub use safe::UnsafePathError;
pub use safe::safe_join;
pub use stamp::Folder;
pub use stamp::Stamp;
pub use tree::TempDir;
pub use tree::link_to;
pub use tree::plain_files;
pub use write::Durability;
pub use write::TempFile;
pub use write::make_read_only;
pub use write::sweep_temps;
pub use write::unique_name;
pub use write::write_atomic;
pub use write::write_new;
