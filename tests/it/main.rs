//! End-to-end tests: one binary, one file per theme.

mod recipes;
