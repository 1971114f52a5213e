//! The arguments of `forge cache`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args as ClapArgs;
use clap::Subcommand;
use clap::ValueEnum;

use crate::quantity::Quantity;
use crate::store::Sample;

/// Inspect, verify and shrink the store of cached results.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
The store keeps every result under the hash of its inputs. Everything in it can be computed again; the cost is
recorded, and `gc` keeps the most expensive results. `forge.toml` can set a limit that is enforced after each build:

  [cache]
  max-size = \"200 GB\"")]
pub(in crate::cli) struct Cache {
    #[command(subcommand)]
    pub(in crate::cli) command: CacheCommand,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum CacheCommand {
    /// Print where the store is
    Dir,
    /// Show how much disk space the store uses, and for what
    Size,
    /// List results with their kind, last use, cost and size
    List(List),
    /// Check the store, all of it or a sample; damaged files are reported and quarantined
    Verify(Verify),
    /// Remove what nothing needs, and more if the store must become smaller
    Gc(Gc),
    /// Protect everything that a manifest names from `gc`; without arguments, list the pins
    Pin(Pin),
    /// Remove pins
    Unpin(Unpin),
    /// Remove leftovers of killed builds and quarantined files; with `--all`, the whole store
    Clean(Clean),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Sort {
    /// The largest first
    Size,
    /// The longest unused first
    Age,
    /// The most expensive first
    Cost,
    /// By kind, then the largest first
    Kind,
}

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct List {
    /// Only results of this kind, such as `tensor` or `reference-block`; may be given several times
    #[arg(long, value_name = "KIND")]
    pub(in crate::cli) kind: Vec<String>,
    /// Only results that were not used for this long, such as `30d` or `12h`
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(in crate::cli) older_than: Option<Duration>,
    /// Only results larger than this, such as `1GB`
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub(in crate::cli) larger_than: Option<u64>,
    /// The order
    #[arg(long, value_enum, default_value = "size", value_name = "ORDER")]
    pub(in crate::cli) sort: Sort,
    /// The maximum number of results
    #[arg(long, value_name = "N")]
    pub(in crate::cli) limit: Option<usize>,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Tensors that the store borrows from outputs are read, too: this finds outputs whose bytes changed but whose timestamps
did not. Exit status 1 if anything was damaged, even if it was quarantined (and, with --repair, made again).")]
pub(in crate::cli) struct Verify {
    /// Read only a random part: a percentage such as `5%`, or a size such as `10GB`
    #[arg(long, value_name = "PART", value_parser = sample)]
    pub(in crate::cli) sample: Option<Sample>,
    /// Then build this recipe, which restores what it needs of the damaged results
    #[arg(long, value_name = "RECIPE")]
    pub(in crate::cli) repair: Option<String>,
    /// Threads to use [default: all cores]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(in crate::cli) jobs: Option<u16>,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Removed first is what nothing can use: blobs left by killed builds, results that have lost a blob, old quarantined
files. Then, for --older-than, results that were not used for that long; then, for --max-size, what is cheapest to compute
again for its size, the reference's log-probabilities first. Never removed is what a pinned manifest or a running build
needs, nor, unless --also-newest is given, what the newest outputs of recipes need. Builds may run meanwhile.")]
pub(in crate::cli) struct Gc {
    /// Make the store no larger than this, such as `200GB` [default: `[cache] max-size` of forge.toml]
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub(in crate::cli) max_size: Option<u64>,
    /// Also remove results that were not used for this long, such as `30d`
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(in crate::cli) older_than: Option<Duration>,
    /// Also remove the results that the newest outputs were made from; the next build may compute them again
    #[arg(long)]
    pub(in crate::cli) also_newest: bool,
    /// Only show what would be removed
    #[arg(short = 'n', long, conflicts_with = "yes")]
    pub(in crate::cli) dry_run: bool,
    /// Do not ask for confirmation
    #[arg(short, long)]
    pub(in crate::cli) yes: bool,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
A pin protects what is in the store. Tensors that the store borrows from an output last as long as that file is
unchanged: if it is deleted, they are quantized again when a build needs them. To keep all tensors in the store itself,
set this in forge.toml before the build:

  [cache]
  borrow = false")]
pub(in crate::cli) struct Pin {
    /// A manifest, an output with its manifest next to it, or the name of a run (all its outputs)
    #[arg(value_name = "MANIFEST|GGUF|RUN")]
    pub(in crate::cli) targets: Vec<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct Unpin {
    /// The same as for `pin`; or the output's name or the first digits of the manifest's hash, as `forge cache pin` lists them
    #[arg(value_name = "MANIFEST|GGUF|RUN", required = true)]
    pub(in crate::cli) targets: Vec<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct Clean {
    /// The whole store
    #[arg(long)]
    pub(in crate::cli) all: bool,
    /// Do not ask for confirmation
    #[arg(short, long)]
    pub(in crate::cli) yes: bool,
}

fn bytes(text: &str) -> Result<u64, String> {
    match text.parse::<Quantity>() {
        Ok(Quantity::Bytes(bytes)) => Ok(bytes),
        Ok(_) => Err("a size in bytes is needed, like `200GB` or `24 GiB`".to_owned()),
        Err(error) => Err(format!("{error}; a size looks like `200GB` or `24 GiB`")),
    }
}

fn sample(text: &str) -> Result<Sample, String> {
    match text.parse::<Quantity>() {
        Ok(Quantity::Bytes(bytes)) => Ok(Sample::Bytes(bytes)),
        Ok(Quantity::Percent(percent)) => Ok(Sample::Millionths(percent.millionths() / 100)),
        Ok(Quantity::BitsPerWeight(_)) => Err("a percentage or a size is needed, like `5%` or `10GB`".to_owned()),
        Err(error) => Err(format!("{error}; a part looks like `5%` or `10GB`")),
    }
}
