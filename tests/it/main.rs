//! End-to-end tests: one binary, one file per theme.

#![allow(
    clippy::unwrap_used,
    reason = "a test says what is wrong by panicking, its helpers too"
)]

mod broken_formats;
mod engine;
mod layering;
mod peer_engine;
mod peer_quantize;
mod readme;
mod recipes;
mod schema;
mod store;
mod support;
mod words;
