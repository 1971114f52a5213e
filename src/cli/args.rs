//! What can be typed.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use clap::Parser;
use clap::Subcommand;
use clap::ValueEnum;

/// Build quantized language models from a recipe, and only what changed.
///
/// A recipe (TOML) says which model, which texts, how to choose tensor types and what to measure. `forge build` makes of it
/// quantized candidates and a table of their size and quality. Every result is kept under the hash of what it was made of,
/// so the next build runs only what changed.
#[derive(Debug, Parser)]
#[command(
    name = "forge",
    version,
    max_term_width = 100,
    after_help = "\
Start with `forge init`, then `forge build recipe.toml`.
Exit status: 0 done, 1 the recipe or a step, 2 usage, 3 environment, 130 stopped with Ctrl-C."
)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Options of every verb.
#[derive(Debug, ClapArgs)]
pub(super) struct Global {
    /// Work as if started in this folder
    #[arg(
        short = 'C',
        long,
        global = true,
        value_name = "DIR",
        help_heading = "Global options"
    )]
    pub(super) directory: Option<PathBuf>,
    /// Where results are kept
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "FORGE_CACHE_DIR",
        help_heading = "Global options"
    )]
    pub(super) cache_dir: Option<PathBuf>,
    /// Say less: no notes, no finished steps
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub(super) quiet: bool,
    /// Say more: every action, and why each step runs
    #[arg(
        short,
        long,
        global = true,
        conflicts_with = "quiet",
        help_heading = "Global options"
    )]
    pub(super) verbose: bool,
    /// When to use colours (NO_COLOR is heeded)
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "WHEN",
        env = "FORGE_COLOR",
        help_heading = "Global options"
    )]
    pub(super) color: Option<Color>,
    /// No progress bars
    #[arg(long, global = true, env = "FORGE_NO_PROGRESS", help_heading = "Global options")]
    pub(super) no_progress: bool,
    /// How to speak: to people, or to programs (one JSON object a line, on stdout)
    #[arg(
        long,
        global = true,
        value_enum,
        default_value = "human",
        value_name = "FORM",
        help_heading = "Global options"
    )]
    pub(super) message_format: MessageFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Color {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum MessageFormat {
    Human,
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Write a commented recipe to start from
    Init(Init),
    /// Check recipes: all errors at once, each with its line and a way out
    Check(Check),
    /// Print a recipe with everything resolved: defaults, sweeps, what it extends
    Show(Show),
    /// Say what a build would run, and why; reads no source, writes nothing
    Plan(Plan),
    /// Bring all candidates and figures up to date
    Build(Build),
    /// Draw the steps and what each needs
    Graph(Graph),
    /// Look at choices of tensor types, and at the proofs that come with them
    #[command(subcommand)]
    Policy(Policy),
    /// Print the identity of the embedded engine
    Engine,
}

#[derive(Debug, Subcommand)]
pub(super) enum Policy {
    /// Say whether what certificates claim is true; shares no code with the solver that wrote them
    ///
    /// Everything is worked out anew from the problem that stands in the certificate: losses, bytes, the lower bound. Where a
    /// choice is claimed to be the best, a search of another kind shows that no better one exists. Exit status 1 if
    /// anything is not as stated; the first such thing is named.
    Check(PolicyCheck),
    /// Show which tensors of a model get their types together
    ///
    /// Tensors of a layer that have the same inputs are tied; that is told from an imatrix. Others are fused by rule, where an
    /// engine wants one type. What is never quantized is in no group.
    Groups(PolicyGroups),
}

#[derive(Debug, ClapArgs)]
pub(super) struct PolicyGroups {
    /// The model (GGUF; of several files the first)
    #[arg(value_name = "MODEL")]
    pub(super) model: PathBuf,
    /// Tie tensors that have equal sums in this imatrix
    #[arg(long, value_name = "FILE")]
    pub(super) imatrix: Option<PathBuf>,
    /// Fuse what an engine wants to have one type
    #[arg(long, value_enum, value_delimiter = ',', value_name = "RULE")]
    pub(super) fuse: Vec<Fuse>,
    /// Show where `ashq1` starts each tensor, and how far it may rise
    #[arg(long)]
    pub(super) show_floors: bool,
    /// The model was trained to be quantized: floors are lower
    #[arg(long, requires = "show_floors")]
    pub(super) qat: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Fuse {
    /// Queries, keys and values of a layer
    Attention,
    /// Gate and up of a layer
    FeedForward,
    /// All expert tensors of a layer
    Experts,
}

#[derive(Debug, ClapArgs)]
pub(super) struct PolicyCheck {
    /// The certificates (`forge.certificate.v1`)
    #[arg(required = true, value_name = "CERTIFICATE")]
    pub(super) certificates: Vec<String>,
    /// How many states to search at most for each answer before its claim counts as not shown
    #[arg(long, value_name = "N", default_value_t = crate::certificate::DEFAULT_STATES)]
    pub(super) states: u64,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Init {
    /// The folder to write `recipe.toml` into
    #[arg(default_value = ".", value_name = "DIR")]
    pub(super) directory: PathBuf,
    /// The model (GGUF; F32, F16 or BF16)
    #[arg(long, value_name = "PATH")]
    pub(super) model: Option<String>,
    /// The calibration text, or a pattern for several
    #[arg(long, value_name = "PATH")]
    pub(super) corpus: Option<String>,
    /// The recipe's name
    #[arg(long, value_name = "NAME")]
    pub(super) name: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Check {
    /// The recipes
    #[arg(default_value = "recipe.toml", value_name = "RECIPE")]
    pub(super) recipes: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ShowFormat {
    Toml,
    Json,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Show {
    /// The recipe
    #[arg(default_value = "recipe.toml", value_name = "RECIPE")]
    pub(super) recipe: String,
    /// As a recipe again, or as JSON with every step of every sweep
    #[arg(long, value_enum, default_value = "toml")]
    pub(super) format: ShowFormat,
}

/// Which recipe, and which part of it.
#[derive(Debug, ClapArgs)]
pub(super) struct Target {
    /// The recipe
    #[arg(default_value = "recipe.toml", value_name = "RECIPE")]
    pub(super) recipe: String,
    /// Only these steps and what they need, as `promote.small` or `eval.quality`
    #[arg(value_name = "STEP")]
    pub(super) steps: Vec<String>,
    /// Where outputs go [default: `out/<recipe name>/` beside the recipe]
    #[arg(long, value_name = "DIR")]
    pub(super) out: Option<PathBuf>,
    /// Threads to use [default: all cores, or `[engine.embedded] threads` of forge.toml]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) jobs: Option<u16>,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Plan {
    #[command(flatten)]
    pub(super) target: Target,
    /// Exit with 1 if anything would run
    #[arg(long)]
    pub(super) check: bool,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Build {
    #[command(flatten)]
    pub(super) target: Target,
    /// Go on with what does not need a step that failed
    #[arg(short, long)]
    pub(super) keep_going: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum GraphFormat {
    Dot,
    Mermaid,
    Json,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Graph {
    /// The recipe
    #[arg(default_value = "recipe.toml", value_name = "RECIPE")]
    pub(super) recipe: String,
    /// For Graphviz, for Markdown, or for programs
    #[arg(long, value_enum, default_value = "mermaid")]
    pub(super) format: GraphFormat,
}
