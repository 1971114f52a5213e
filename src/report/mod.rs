//! Rows and tables: pure functions from figures to what people and programs read.

pub mod chart;
pub mod gate;
pub mod metrics;
