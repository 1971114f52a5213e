//! `forge cache`: the store itself. One file per command, or per group of related commands.

pub(super) mod args;
mod clean;
pub(super) mod gc;
mod list;
mod pin;
mod shared;
mod size;
mod verify;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::cache::args::CacheCommand;
use crate::cli::files::Files;
use crate::cli::terminal::Terminal;

use shared::failure;
use shared::line;
use shared::open;

pub(super) fn run(cache: &args::Cache, files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    match &cache.command {
        CacheCommand::Dir => size::dir(files, terminal),
        CacheCommand::Size => size::run(files, terminal),
        CacheCommand::List(list) => list::run(list, files, terminal),
        CacheCommand::Verify(verify) => verify::run(verify, files, terminal),
        CacheCommand::Gc(gc) => gc::run(gc, files, terminal),
        CacheCommand::Pin(pin) => pin::pin(pin, files, terminal),
        CacheCommand::Unpin(unpin) => pin::unpin(unpin, files, terminal),
        CacheCommand::Clean(clean) => clean::run(clean, files, terminal),
    }
}
