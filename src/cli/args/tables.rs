//! The arguments of `forge table`.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use clap::ValueEnum;

use crate::prose;
use crate::report::columns::COLUMNS;
use crate::report::columns::Column;
use crate::report::table::Sort;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum TableFormat {
    Text,
    Markdown,
    Csv,
    Json,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Builds nothing and reads no source. Columns have the names of the fields of `metrics.json`, or shorter ones:
candidate, size, bpw, ppl, ppl_ci, kld, kld_ci, p90, p95, p99, max, top1, rms, predicted, front, engine, ...
CSV and JSON have figures in full, sizes in bytes, and the interval of each figure. Figures from another engine
or other text than the first file's are marked as historical. See docs/table.md.")]
pub(in crate::cli) struct Table {
    /// Recipes that were built, tables of figures (`metrics.json`), or manifests of candidates
    #[arg(default_value = "recipe.toml", value_name = "RECIPE|FILE|MANIFEST")]
    pub(in crate::cli) files: Vec<String>,
    /// The columns, in this order [default: those that the terminal has space for; in CSV and JSON all]
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', value_parser = column)]
    pub(in crate::cli) columns: Vec<&'static Column>,
    /// Sort by a column; with a hyphen before it, the largest first
    #[arg(long, value_name = "[-]NAME", allow_hyphen_values = true, value_parser = sort)]
    pub(in crate::cli) sort: Option<Sort>,
    /// The output format
    #[arg(long, value_enum, default_value = "text")]
    pub(in crate::cli) format: TableFormat,
    /// Where the recipes' outputs are [default: `out/<recipe name>/` next to each recipe]
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) out: Option<PathBuf>,
}

fn column(name: &str) -> Result<&'static Column, String> {
    Column::find(name).ok_or_else(|| {
        let names = || {
            COLUMNS
                .iter()
                .flat_map(|column| column.aliases.iter().copied().chain([column.name]))
        };
        if let Some(near) = prose::closest(name, names()) {
            format!("there is no such column; did you mean `{near}`?")
        } else {
            let all: Vec<&str> = COLUMNS.iter().map(|column| column.name).collect();
            format!("there is no such column; there are {}", all.join(", "))
        }
    })
}

fn sort(text: &str) -> Result<Sort, String> {
    let (name, descending) = match text.strip_prefix('-') {
        Some(name) => (name, true),
        None => (text, false),
    };
    let column = column(name)?;
    Ok(Sort { column, descending })
}
