//! Canonical documents of work.
