//! Rows and tables: pure functions from figures to what people and programs read.

pub mod chart;
pub mod columns;
pub mod gate;
pub mod metrics;
pub mod table;
