//! The command line.

pub mod check;
pub mod diagnostic;
pub mod init;
pub mod show;
