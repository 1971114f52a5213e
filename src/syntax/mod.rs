//! Reading TOML with places: values, keys and sections, the names that a recipe declares, and what can be wrong with them.
//! `recipe`, `method` and `settings` read their files with it.

// Errors carry their places; they are made once and never on a hot path.
#![allow(clippy::result_large_err)]

pub mod error;
pub mod id;
pub mod names;
pub mod pattern;

pub(crate) mod declared;
pub(crate) mod field;
pub(crate) mod raw;
pub(crate) mod shared;
pub(crate) mod sweep;
pub(crate) mod words;
