//! The arithmetic of evaluations.
