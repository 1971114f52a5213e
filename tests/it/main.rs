//! End-to-end tests: one binary, one file per theme.

mod broken_cli;
mod broken_formats;
mod build;
mod engine;
mod keys;
mod messages;
mod peer_engine;
mod peer_quantize;
mod recipes;
mod small;
mod store;
mod support;
