//! What can be typed after `forge cache`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args as ClapArgs;
use clap::Subcommand;
use clap::ValueEnum;

use crate::quantity::Quantity;
use crate::store::Sample;

/// Look at the store, check it, and free space.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
The store keeps every result under the hash of what it was made of. Everything in it can be made again; what that
costs is recorded, and `gc` keeps what is dearest. `forge.toml` can set a limit that is held after each build:

  [cache]
  max-size = \"200 GB\"")]
pub(in crate::cli) struct Cache {
    #[command(subcommand)]
    pub(in crate::cli) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Verb {
    /// Print where the store is
    Dir,
    /// Say how much room the store takes, and what for
    Size,
    /// List results: what each is, when it was last used, what it cost, how large it is
    List(List),
    /// Read the store again, all of it or a sample; what is damaged is moved aside and named
    Verify(Verify),
    /// Collect what nothing needs, and more if the store is to become smaller
    Gc(Gc),
    /// Keep everything that a manifest names, whatever is collected; without a name, list what is pinned
    Pin(Pin),
    /// Let go of what was pinned
    Unpin(Unpin),
    /// Remove leftovers of killed builds and what was moved aside; with `--all` the whole store
    Clean(Clean),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Sort {
    /// The largest first
    Size,
    /// The longest unused first
    Age,
    /// The dearest first
    Cost,
    /// By kind, then the largest first
    Kind,
}

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct List {
    /// Only of this kind, as `tensor` or `reference-block`; may be given several times
    #[arg(long, value_name = "KIND")]
    pub(in crate::cli) kind: Vec<String>,
    /// Only what was not used for so long, as `30d` or `12h`
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(in crate::cli) older_than: Option<Duration>,
    /// Only what is larger, as `1GB`
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub(in crate::cli) larger_than: Option<u64>,
    /// In which order
    #[arg(long, value_enum, default_value = "size", value_name = "ORDER")]
    pub(in crate::cli) sort: Sort,
    /// At most so many
    #[arg(long, value_name = "N")]
    pub(in crate::cli) limit: Option<usize>,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
What outputs lend to the store is read, too: an output whose bytes changed although its times did not is found here.
Exit status 1 if anything was damaged, even though it was moved aside (and with --repair made again).")]
pub(in crate::cli) struct Verify {
    /// Read only a part, chosen anew each time: a share as `5%`, or so many bytes as `10GB`
    #[arg(long, value_name = "PART", value_parser = sample)]
    pub(in crate::cli) sample: Option<Sample>,
    /// Then build this recipe, which makes again what it needs of that
    #[arg(long, value_name = "RECIPE")]
    pub(in crate::cli) repair: Option<String>,
    /// Threads to use [default: all cores]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(in crate::cli) jobs: Option<u16>,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
First goes what nothing can use: blobs that killed builds left, results that have lost a blob, old quarantine. Then, for
--older-than, what was not used for so long; then, for --max-size, what is cheapest to make again for its room, the
reference's log-probabilities before all. Never what a pinned manifest or a build that is running needs; nor what the newest
outputs of recipes need, unless --also-newest is given. Builds may go on meanwhile.")]
pub(in crate::cli) struct Gc {
    /// Make the store no larger than this, as `200GB` [default: `[cache] max-size` of forge.toml]
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub(in crate::cli) max_size: Option<u64>,
    /// Also results that were not used for so long, as `30d`
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(in crate::cli) older_than: Option<Duration>,
    /// Also what the newest outputs would need to be made again without work
    #[arg(long)]
    pub(in crate::cli) also_newest: bool,
    /// Only show what would go
    #[arg(short = 'n', long, conflicts_with = "yes")]
    pub(in crate::cli) dry_run: bool,
    /// Do not ask
    #[arg(short, long)]
    pub(in crate::cli) yes: bool,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
A pin keeps what lies in the store. Tensors that the store borrows from an output are kept as long as that file stands
unchanged: delete it, and they are quantized again when a build needs them. Where the store is to hold all of it by itself,
forge.toml says so before the build:

  [cache]
  borrow = false")]
pub(in crate::cli) struct Pin {
    /// A manifest, an output with its manifest beside it, or a run (its name in the store) with all its outputs
    #[arg(value_name = "MANIFEST|GGUF|RUN")]
    pub(in crate::cli) targets: Vec<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct Unpin {
    /// As for `pin`; or the output's name or the first digits of the manifest's hash, as `forge cache pin` lists them
    #[arg(value_name = "MANIFEST|GGUF|RUN", required = true)]
    pub(in crate::cli) targets: Vec<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct Clean {
    /// The whole store
    #[arg(long)]
    pub(in crate::cli) all: bool,
    /// Do not ask
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
        Ok(Quantity::BitsPerWeight(_)) => Err("a share or a size is needed, like `5%` or `10GB`".to_owned()),
        Err(error) => Err(format!("{error}; a part looks like `5%` or `10GB`")),
    }
}
