//! End-to-end tests: one binary, one file per theme.

mod broken_formats;
mod concurrent;
mod crash;
mod engine;
mod layering;
mod peer_engine;
mod peer_quantize;
mod property;
mod readme;
mod recipes;
mod schema;
mod small;
mod store;
mod support;
mod words;
