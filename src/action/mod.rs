//! Canonical documents of work.

pub mod result;
