//! `forge graph`: the steps and what each needs.

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::args;
use crate::cli::diagnostic::Diagnostic;
use crate::cli::files::Files;
use crate::cli::selection;
use crate::cli::terminal::Terminal;
use crate::graph::Format;
use crate::graph::Graph;

pub(super) fn run(args: &args::Graph, files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    let parsed = files.recipe(&selection::only_recipe(&args.recipe, "graph", files)?, terminal)?;
    let graph =
        Graph::of(&parsed.recipe).map_err(|error| Failure::new(Exit::Recipe, Diagnostic::from_error(&error)))?;
    let format = match args.format {
        _ if terminal.is_json() => Format::Json,
        args::GraphFormat::Dot => Format::Dot,
        args::GraphFormat::Mermaid => Format::Mermaid,
        args::GraphFormat::Json => Format::Json,
    };
    terminal.document(&graph.render(&parsed.recipe.name, format));
    Ok(Exit::Done)
}
