//! End-to-end tests: one binary, one file per theme.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test that cannot go on panics, one that is skipped says so, and the environment configures it"
)]

mod alignment;
mod allocation;
mod arguments;
mod borrow;
mod broken_cli;
mod broken_formats;
mod build;
mod cache;
mod cache_contention;
mod cache_flips;
mod cache_hostile;
mod cache_limit;
mod cache_stress;
mod certificate;
mod clean;
mod concurrent;
mod conformance;
mod content;
mod crash;
mod crash_matrix;
mod damage_matrix;
mod determinism;
mod diff;
mod early_checks;
mod engine;
mod exec;
mod fisher;
mod frozen;
mod gradients;
mod hostile;
mod init;
mod keys;
mod layering;
mod limits;
mod linear;
mod log;
mod manifests;
mod measured;
mod messages;
mod method_patch;
mod moments;
mod mutated;
mod one_layer_project;
mod output_faults;
mod overlap;
mod peer_bytes;
mod peer_engine;
mod peer_policy;
mod peer_quantize;
mod policies;
mod policy_views;
mod probe_model;
mod property;
mod quick_project;
mod random_model;
mod readme;
mod recipe_names;
mod recipes;
mod refined;
mod reproduce;
mod roles;
mod scheduling;
mod schema;
mod second_engine;
mod small_model;
mod space;
mod squared;
mod store;
mod support;
mod tables;
mod timing;
mod trust;
mod up_to_date_note;
mod verify;
mod why;
