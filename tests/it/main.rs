//! End-to-end tests: one binary, one file per theme.

mod broken_formats;
mod engine;
mod peer_bytes;
mod peer_engine;
mod peer_quantize;
mod recipes;
mod store;
mod support;
