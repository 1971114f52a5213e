//! The only user of the file system.

pub mod map;
