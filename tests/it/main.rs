//! End-to-end tests: one binary, one file per theme.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test that cannot go on panics, one that is skipped says so, and the environment configures it"
)]

mod allocation;
mod broken_cli;
mod broken_formats;
mod build;
mod certificate;
mod concurrent;
mod conformance;
mod crash;
mod cut;
mod engine;
mod fresh;
mod keys;
mod layering;
mod messages;
mod peer_bytes;
mod peer_engine;
mod peer_quantize;
mod policies;
mod property;
mod readme;
mod recipes;
mod schema;
mod small;
mod store;
mod support;
mod words;
mod workbench;
