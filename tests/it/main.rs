//! End-to-end tests: one binary, one file per theme.

mod broken_cli;
mod broken_formats;
mod build;
mod concurrent;
mod crash;
mod cut;
mod engine;
mod keys;
mod layering;
mod messages;
mod peer_bytes;
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
