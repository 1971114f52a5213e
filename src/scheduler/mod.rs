//! Runs what is stale.
