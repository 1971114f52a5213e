//! `forge`: a declarative build system with a content-addressed cache for quantized language models.
//!
//! The modules are layers, lowest first; each names only those above it in this list. `docs/architecture.md` says why,
//! and `tests/it/layering.rs` keeps it so.

pub mod digest;
pub mod fs;

pub mod vocab;

pub mod observer;
pub mod prose;

pub mod sign;
pub mod text;

pub mod tensor_type;

pub mod mix;

pub mod gguf;

pub mod imatrix;

pub mod moments;

pub mod fisher;
pub mod rounding;

pub mod container;

pub mod content;

pub mod quantity;

pub mod requirement;

pub mod engine;

pub mod syntax;

pub mod figures;

pub mod overlap;

pub mod allocation;

pub mod certificate;

pub mod policy;

pub mod method;

pub mod recipe;

pub mod settings;

pub mod report;

pub mod action;

pub mod store;

pub mod runs;

pub mod graph;

pub mod timing;

pub mod work;

pub mod step;

pub mod plan;

pub mod manifest;

pub mod verify;

pub mod scheduler;

pub mod why;

pub mod diff;

pub mod session;

pub mod cli;
