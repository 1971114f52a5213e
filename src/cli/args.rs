//! What can be typed.

mod proof;
mod types;

use std::path::PathBuf;

use clap::Args as ClapArgs;
use clap::Parser;
use clap::Subcommand;
use clap::ValueEnum;
use clap::builder::BoolishValueParser;

pub(super) use proof::*;
pub(super) use types::*;

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
Exit status: 0 done, 1 the recipe or a step, 2 usage, 3 environment.
A build that a signal stops keeps what is committed: 130 after SIGINT (Ctrl-C), 143 after SIGTERM, 129 after SIGHUP."
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
    #[arg(
        long,
        global = true,
        env = "FORGE_NO_PROGRESS",
        value_parser = BoolishValueParser::new(),
        help_heading = "Global options"
    )]
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
    /// Say why a step or a tensor runs, or when and why it ran last
    Why(Why),
    /// Compare two recipes, manifests, candidates, imatrices or policies
    Diff(Diff),
    /// List the runs on record, or show one
    Log(Log),
    /// Draw the steps and what each needs
    Graph(Graph),
    /// Look at choices of tensor types, and at the proofs that come with them
    #[command(subcommand)]
    Policy(Policy),
    /// Look at the store, check it, and free space
    Cache(crate::cli::cache::args::Cache),
    /// Run actions of the store again, from their documents
    Exec(Exec),
    /// Print the identities of the engines
    Engine,
    /// Print the JSON Schema of recipes, for editors
    Schema,
    /// Write down the digest of every source, and the engines, for `forge build --frozen`
    Lock(Lock),
    /// Make a candidate again from its manifest alone, and compare
    Reproduce(Reproduce),
    /// Hold outputs against their manifests, and manifests against their signatures
    Verify(Verify),
    /// Sign manifests with an Ed25519 key
    Sign(Sign),
    /// Make or show a signing key
    Key(Key),
    /// Export signed manifests in the forms of other tools
    Bundle(Bundle),
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
    /// Print the types of a candidate as rules that `llama-quantize --tensor-type-file` reads, or as a recipe of forgequant
    ///
    /// Every tensor that can be quantized is named, so that the tool's mix decides on none; tell it any mix but a plain float. Given
    /// the same source and imatrix, it then makes the same tensors.
    Export(PolicyExport),
    /// Print a file of rules (`pattern=type` a line), or a recipe of forgequant, as a section of a recipe
    Import(PolicyImport),
    /// Show the types of a candidate: by class, by layer, or tensor by tensor
    Show(PolicyShow),
    /// Compare the types of two candidates: what changes by class, by layer and tensor by tensor, in bytes and in predicted loss
    Diff(PolicyDiff),
    /// Draw loss against bytes: candidates of policies as lines, llama.cpp's mixes as marks, the front told apart
    Chart(PolicyChart),
}

#[derive(Debug, ClapArgs)]
pub(super) struct PolicyExport {
    /// The candidate: its name in the recipe, its file or manifest, or any other quantized model (GGUF)
    #[arg(value_name = "CANDIDATE")]
    pub(super) candidate: String,
    #[command(flatten)]
    pub(super) of: OfRecipe,
    /// A line for every tensor, one for all layers that have the same type, or a recipe of forgequant (JSON)
    #[arg(long, value_enum, default_value = "tensors")]
    pub(super) format: ExportFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ExportFormat {
    Tensors,
    Rules,
    Forgequant,
}

#[derive(Debug, ClapArgs)]
pub(super) struct PolicyImport {
    /// The file
    #[arg(value_name = "FILE")]
    pub(super) rules: String,
    /// What it is [default: a recipe of forgequant if it begins with a brace, else rules]
    #[arg(long, value_enum)]
    pub(super) format: Option<ImportFormat>,
    /// The name of the section
    #[arg(long, value_name = "NAME", default_value = "imported", value_parser = section_name)]
    pub(super) name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ImportFormat {
    Rules,
    Forgequant,
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
    pub(super) folder: PathBuf,
    /// The model (GGUF; F32, F16 or BF16)
    #[arg(long, value_name = "PATH")]
    pub(super) model: Option<String>,
    /// The calibration text, or a pattern for several
    #[arg(long, value_name = "PATH")]
    pub(super) corpus: Option<String>,
    /// The recipe's name
    #[arg(long, value_name = "NAME", value_parser = section_name)]
    pub(super) name: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Check {
    /// The recipes
    #[arg(default_value = "recipe.toml", value_name = "RECIPE")]
    pub(super) recipes: Vec<String>,
    /// Run actions twice and compare: those of these steps, or all; outputs are not touched
    #[arg(long, value_name = "STEP", num_args = 0..)]
    pub(super) twice: Option<Vec<String>>,
    /// Threads to use with `--twice` [default: all cores]
    #[arg(short, long, value_name = "N", requires = "twice", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) jobs: Option<u16>,
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
    /// Build nothing if a source or engine differs from the lock file, or else from the manifests in the output folder and
    /// from the last build on record
    #[arg(long)]
    pub(super) frozen: bool,
    /// The lock file for `--frozen` [default: the recipe's name with `.lock` for `.toml`]
    #[arg(long, value_name = "FILE", requires = "frozen")]
    pub(super) lock: Option<PathBuf>,
    /// Sign the manifests with this Ed25519 key [default: `[signing] key` of forge.toml, if it names one]
    #[arg(long, value_name = "KEY")]
    pub(super) sign: Option<PathBuf>,
    /// Write what happened when to a file that Perfetto and Chrome open (chrome://tracing)
    #[arg(long, value_name = "FILE")]
    pub(super) trace: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Compares the action that would run with what the step did last, field by field, and follows every digest that differs
down to the file, the line of the recipe or the engine that began it. Without STEP: every cause, and what follows from it.

  forge why
  forge why promote.small
  forge why promote.small@Q4_K_M blk.3.ffn_down
  forge why -f other.toml eval.quality

Files that were edited are read, as the next build would read them, and not again by that. docs/why.md has more.")]
pub(super) struct Why {
    /// The step, as `promote.small` or `eval.quality`; all variants of a sweep unless one is named
    #[arg(value_name = "STEP")]
    pub(super) step: Option<String>,
    /// A tensor of a candidate, as `blk.3.ffn_down` (with or without `.weight`)
    #[arg(value_name = "TENSOR")]
    pub(super) tensor: Option<String>,
    /// The recipe
    #[arg(short = 'f', long, default_value = "recipe.toml", value_name = "RECIPE")]
    pub(super) recipe: String,
    /// Where outputs go [default: `out/<recipe name>/` beside the recipe]
    #[arg(long, value_name = "DIR")]
    pub(super) out: Option<PathBuf>,
    /// Read no file: of one that was edited it is only said that it must be read
    #[arg(long)]
    pub(super) no_read: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum DiffFormat {
    Text,
    Json,
    Markdown,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
What the two are is seen from what is in them: recipes (TOML), manifests (JSON), candidates and imatrices (GGUF; imatrices
also in the older .dat form), policies (JSON). Two of different kinds are refused.

  forge diff recipe.toml other.toml
  forge diff out/a/small-Q4_0.gguf out/b/small-Q4_0.gguf
  forge diff --exit-code old.gguf.manifest.json new.gguf.manifest.json

As git's diff driver:
  git config diff.forge.command 'forge diff --git'
  echo '*.toml diff=forge' >> .gitattributes
docs/diff.md has more.")]
pub(super) struct Diff {
    /// The first file, and the second; with --git, the seven arguments (or nine, of a renamed file) that git gives
    #[arg(value_name = "A B", required = true, num_args = 2..=9)]
    pub(super) files: Vec<String>,
    /// Exit with 1 if they differ
    #[arg(long)]
    pub(super) exit_code: bool,
    /// For people, for programs, or for a comment on a change
    #[arg(long, value_enum, default_value = "text")]
    pub(super) format: DiffFormat,
    /// Show at most so many rows of each part in text and Markdown; 0 for all
    #[arg(long, default_value = "30", value_name = "N")]
    pub(super) rows: usize,
    /// Be the program that git calls: `git config diff.forge.command 'forge diff --git'`
    #[arg(long, conflicts_with = "exit_code")]
    pub(super) git: bool,
}

#[derive(Debug, ClapArgs)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Log {
    #[command(subcommand)]
    pub(super) verb: Option<LogVerb>,
    /// How many runs, the latest first; 0 for all
    #[arg(short = 'n', long, default_value = "20", value_name = "N")]
    pub(super) number: usize,
}

#[derive(Debug, Subcommand)]
pub(super) enum LogVerb {
    /// Show a run: its steps, why each ran, what ran and what it cost, warnings, outputs
    Show(LogShow),
}

#[derive(Debug, ClapArgs)]
pub(super) struct LogShow {
    /// The run: its name, the start of it, or `last`
    #[arg(default_value = "last", value_name = "RUN")]
    pub(super) run: String,
    /// A step of it: also every action, and what the engine said
    #[arg(value_name = "STEP")]
    pub(super) step: Option<String>,
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

/// Reads a name that recipes take.
fn section_name(text: &str) -> Result<String, String> {
    match crate::syntax::names::name_problem(text) {
        None => Ok(text.to_owned()),
        Some(problem) => Err(format!("{problem}; names have letters, digits, `.`, `_` and `-`")),
    }
}

/// Arguments of `forge exec`.
#[derive(Debug, clap::Args)]
pub(super) struct Exec {
    /// Actions: their digests, or files with their documents
    #[arg(value_name = "ACTION", required_unless_present = "worker")]
    pub actions: Vec<String>,
    /// A file that the actions name by digest: a source, or a candidate; of a split model any part. Can be given again
    #[arg(long, value_name = "FILE")]
    pub source: Vec<PathBuf>,
    /// Commit the results that the store does not have yet
    #[arg(long)]
    pub commit: bool,
    /// Write the files of candidates into this folder
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Threads to use [default: all cores, or `[engine.embedded] threads` of forge.toml]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: Option<u16>,
    /// Serve a build: read requests from standard input, and answer on standard output
    #[arg(long, hide = true, conflicts_with_all = ["actions", "source", "commit", "out"])]
    pub worker: bool,
}
