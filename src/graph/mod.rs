//! The graph of steps.
