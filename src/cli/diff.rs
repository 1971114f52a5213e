//! `forge diff`.
use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::args;
use crate::cli::files::Files;
use crate::cli::terminal::Terminal;

pub(super) fn run(_args: &args::Diff, _files: &Files, _terminal: &Terminal) -> Result<Exit, Failure> {
    Ok(Exit::Done)
}
