//! End-to-end tests: one binary, one file per theme.

mod peer_quantize;
