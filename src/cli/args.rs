//! The arguments of the command line.

mod clean;
mod provenance;
mod recipe;
mod tables;
mod types;

use std::path::PathBuf;

use crate::cli::environment::expand_home;
use crate::policy::Fuse;
use clap::Args as ClapArgs;
use clap::Parser;
use clap::Subcommand;
use clap::ValueEnum;
use clap::builder::BoolishValueParser;
use clap::builder::PathBufValueParser;
use clap::builder::PossibleValue;
use clap::builder::TypedValueParser as _;

pub(super) use clean::*;
pub(super) use provenance::*;
pub(super) use recipe::*;
pub(super) use tables::*;
pub(super) use types::*;

/// Build quantized language models from a recipe, and rebuild only what changed.
///
/// A recipe (TOML) names the model and the texts, and says how to choose tensor types and what to measure. `forge build`
/// writes quantized candidates and a table of their size and quality. Every result is cached under the hash of its inputs,
/// so the next build runs only what changed.
#[derive(Debug, Parser)]
#[command(
    name = "forge",
    version,
    after_help = "\
Exit status:
  0  success, also if there is nothing to do
  1  error in the recipe or a step
  2  usage error
  3  error in the environment (disk, permissions, engine)
  130 after SIGINT (Ctrl-C), 143 after SIGTERM,
  129 after SIGHUP: finished results are kept

Start with `forge init`, then `forge build`. `forge VERB --help` describes a verb, with examples.

Documentation: README.md and docs/ in forge's source; docs/recipes.md for recipes, docs/policies.md for the choice of types."
)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Options of every command.
#[derive(Debug, ClapArgs)]
pub(super) struct Global {
    /// Run as if started in this folder
    #[arg(
        short = 'C',
        long,
        global = true,
        value_name = "DIR",
        help_heading = "Global options"
    )]
    pub(super) directory: Option<PathBuf>,
    /// The store: the folder in which results are cached
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "FORGE_CACHE_DIR",
        value_parser = PathBufValueParser::new().try_map(|path| expand_home(&path)),
        help_heading = "Global options"
    )]
    pub(super) cache_dir: Option<PathBuf>,
    /// Print less: no notes, no finished steps
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub(super) quiet: bool,
    /// Print more: every action, and why each step runs
    #[arg(
        short,
        long,
        global = true,
        conflicts_with = "quiet",
        help_heading = "Global options"
    )]
    pub(super) verbose: bool,
    /// When to use colours (NO_COLOR is respected)
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
    /// Output for people, or for programs (one JSON object per line, on stdout)
    #[arg(
        long,
        global = true,
        value_enum,
        default_value = "human",
        value_name = "FORMAT",
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
    /// Check recipes: report all errors at once, each with its line and a fix
    Check(Check),
    /// Print a recipe with everything resolved: defaults, sweeps, what it extends
    Show(Show),
    /// Show what a build would run, and why; writes nothing
    Plan(Plan),
    /// Bring all candidates and figures up to date
    Build(Build),
    /// Remove files that forge wrote to the output folder: those that the recipe no longer makes, or all
    Clean(Clean),
    /// Explain why a step or a tensor would run, or when and why it last ran
    Why(Why),
    /// Print the table of the last build again, or figures of files side by side
    Table(Table),
    /// Compare two recipes, tables of figures, manifests, candidates, imatrices or policies
    Diff(Diff),
    /// List recorded runs, or show one
    Log(Log),
    /// Print the graph of steps and their dependencies
    Graph(Graph),
    /// Show, compare, exchange and check choices of tensor types
    #[command(subcommand)]
    Policy(Policy),
    /// Inspect, verify and shrink the store of cached results
    Cache(crate::cli::cache::args::Cache),
    /// Run single actions from their documents
    Exec(Exec),
    /// Print what identifies each engine: versions, compiler, flags, devices
    Engine,
    /// Print the JSON Schema of recipes, for editors
    Schema,
    /// Record the recipe, the digest of every source, and the engines, in a lock file for `forge build --frozen`
    Lock(Lock),
    /// Rebuild a candidate from its manifest alone, and compare
    Reproduce(Reproduce),
    /// Check outputs against their manifests, and manifests against their signatures
    Verify(Verify),
    /// Sign manifests with an Ed25519 key
    Sign(Sign),
    /// Create or show a signing key
    Key(Key),
    /// Export signed manifests in the formats of other tools
    Bundle(Bundle),
}

#[derive(Debug, Subcommand)]
pub(super) enum Policy {
    /// Check certificates, with code that is independent of the solver that wrote them
    ///
    /// Everything is computed again from the problem in the certificate: losses, bytes, the lower bound. Where a choice is
    /// claimed to be optimal, a different kind of search shows that no better one exists. Exit status 1 if a claim is wrong;
    /// the first wrong claim is named.
    Check(PolicyCheck),
    /// Show which tensors of a model always get the same type
    ///
    /// Tensors of a layer that have the same inputs are tied; an imatrix shows which. Others are fused by rule, where an
    /// engine needs one type. Tensors that are never quantized are in no group.
    Groups(PolicyGroups),
    /// Print the types of a candidate as rules that `llama-quantize --tensor-type-file` reads, or as a forgequant recipe
    ///
    /// Every tensor that can be quantized is named, so the mix that you give to `llama-quantize` does not matter: give it any mix
    /// except F32, F16 and BF16. With the same source and imatrix, it then writes the same tensors.
    Export(PolicyExport),
    /// Convert a file of rules (one `pattern=type` per line), or a forgequant recipe, to a section of a recipe
    Import(PolicyImport),
    /// Show the types of a candidate by class, by layer or by tensor
    Show(PolicyShow),
    /// Compare the types of two candidates by class, by layer and by tensor, in bytes and in predicted loss
    Diff(PolicyDiff),
    /// Plot loss against bytes: policies as lines, llama.cpp's mixes as marks, the Pareto front highlighted
    Chart(PolicyChart),
}

#[derive(Debug, ClapArgs)]
pub(super) struct PolicyExport {
    /// The candidate: its name in the recipe, its file or manifest, or any other quantized model (GGUF)
    #[arg(value_name = "CANDIDATE")]
    pub(super) candidate: String,
    #[command(flatten)]
    pub(super) of: NameArgs,
    /// One line per tensor, one rule for all layers that have the same type, or a forgequant recipe (JSON)
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
    /// The file's format [default: a forgequant recipe if it begins with a brace, else rules]
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
    /// The model (GGUF; of a split model the first file)
    #[arg(value_name = "MODEL")]
    pub(super) model: PathBuf,
    /// Tie tensors that have equal sums in this imatrix
    #[arg(long, value_name = "FILE")]
    pub(super) imatrix: Option<PathBuf>,
    /// Fuse tensors that an engine needs in one type
    #[arg(long, value_enum, value_delimiter = ',', value_name = "RULE")]
    pub(super) fuse: Vec<Fuse>,
    /// Show the lowest and the highest type that `ashq1` considers for each tensor
    #[arg(long)]
    pub(super) show_floors: bool,
    /// The model was trained for quantization (QAT): use lower floors
    #[arg(long, requires = "show_floors")]
    pub(super) qat: bool,
}

impl ValueEnum for Fuse {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            Self::Attention => "Queries, keys and values of a layer",
            Self::FeedForward => "Gate and up of a layer",
            Self::Experts => "All expert tensors of a layer",
        };
        Some(PossibleValue::new(self.as_str()).help(help))
    }
}

#[derive(Debug, ClapArgs)]
pub(super) struct PolicyCheck {
    /// The certificates (`forge.certificate.v2`, or `v1`)
    #[arg(required = true, value_name = "CERTIFICATE")]
    pub(super) certificates: Vec<String>,
    /// The maximum number of states to search for each answer; a claim that needs more counts as unproven
    #[arg(long, value_name = "N", default_value_t = crate::certificate::DEFAULT_STATES)]
    pub(super) states: u64,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Init {
    /// The folder to write `recipe.toml` into
    #[arg(default_value = ".", value_name = "DIR")]
    pub(super) folder: PathBuf,
    /// The model (GGUF; F32, F16 or BF16) [default: the only one in DIR or in the current folder]
    #[arg(long, value_name = "FILE")]
    pub(super) model: Option<String>,
    /// The calibration text, or a pattern that matches several; may be given several times [default: the texts (.txt, .raw) in DIR
    /// or its folder `calibration`, else in the current folder]
    #[arg(long, value_name = "FILE")]
    pub(super) corpus: Vec<String>,
    /// Other text to evaluate on, or a pattern that matches several; may be given several times [default: texts whose names contain
    /// `held-out`, `test`, `valid` or `eval`]
    #[arg(long, value_name = "FILE")]
    pub(super) held_out: Vec<String>,
    /// The recipe's name
    #[arg(long, value_name = "NAME", value_parser = section_name)]
    pub(super) name: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Check {
    /// Recipes, and manifests or the candidates that they belong to [default: recipe.toml]
    #[arg(value_name = "RECIPE|MANIFEST")]
    pub(super) files: Vec<String>,
    #[command(flatten)]
    pub(super) recipe: RecipeOption,
    /// Check recipes alone: their files need not be there
    #[arg(long, conflicts_with = "twice")]
    pub(super) no_files: bool,
    /// Run the actions of these steps, or of all, twice and compare the results; outputs are not touched
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
    #[command(flatten)]
    pub(super) recipe: RecipeArgument,
    /// A recipe, or JSON with every step of every sweep
    #[arg(long, value_enum, default_value = "toml")]
    pub(super) format: ShowFormat,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Plan {
    #[command(flatten)]
    pub(super) target: TargetArgs,
    /// Exit with 1 if anything would run or be written
    #[arg(long)]
    pub(super) check: bool,
}

/// What `--frozen` compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Frozen {
    /// The recipe, the sources and the engines
    All,
    /// The sources and the engines: the recipe may have changed
    Inputs,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Build {
    #[command(flatten)]
    pub(super) target: TargetArgs,
    /// After a failure, continue with steps that do not depend on the failed one
    #[arg(short, long)]
    pub(super) keep_going: bool,
    /// Build nothing if the recipe, a source or an engine differs from the lock file; without one, if a source or engine differs
    /// from the manifests in the output folder and from the last recorded build
    #[arg(long, value_enum, value_name = "WHAT", num_args = 0..=1, require_equals = true, default_missing_value = "all")]
    pub(super) frozen: Option<Frozen>,
    /// The lock file for `--frozen` [default: the recipe's name with `.lock` for `.toml`]
    #[arg(long, value_name = "FILE", requires = "frozen")]
    pub(super) lock: Option<PathBuf>,
    /// Sign the manifests with this Ed25519 key [default: `[signing] key` of forge.toml, if it names one]
    #[arg(long, value_name = "KEY")]
    pub(super) sign: Option<PathBuf>,
    /// Write a timeline of the build for Perfetto or Chrome (chrome://tracing)
    #[arg(long, value_name = "FILE")]
    pub(super) trace: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Compares the action that would run with the last one of the step, field by field, and follows every digest that differs
to the file, the line of the recipe or the engine that caused it. Without STEP: every cause, and the steps that it affects.

Edited files are read and hashed now; the next build does not read them again. See docs/why.md.")]
pub(super) struct Why {
    #[command(flatten)]
    pub(super) recipe: RecipeArgument,
    /// The step, such as `promote.small` or `eval.quality`; all variants of a sweep unless one is named
    #[arg(value_name = "STEP")]
    pub(super) step: Option<String>,
    /// A tensor of a candidate, such as `blk.3.ffn_down` (with or without `.weight`)
    #[arg(value_name = "TENSOR")]
    pub(super) tensor: Option<String>,
    /// Where outputs go [default: `out/<recipe name>/` next to the recipe]
    #[arg(long, value_name = "DIR")]
    pub(super) out: Option<PathBuf>,
    /// Do not read edited files; only say that they must be read
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
The kind of each file is detected from its content: recipes (TOML), tables of figures, manifests and policies (JSON),
candidates and imatrices (GGUF; imatrices also in the legacy .dat format). Both must be of the same kind. Text files
may be of git revisions. Of recipes and tables, forge says of each candidate whether it became better.

To use it as git's diff driver:
  git config diff.forge.command 'forge diff --git'
  echo '*.toml diff=forge' >> .gitattributes
See docs/diff.md.")]
pub(super) struct Diff {
    /// The first file, and the second, or steps that write candidates; with --git, the seven arguments (or nine, of a renamed
    /// file) that git gives
    #[arg(value_name = "A B", required = true, num_args = 2..=9)]
    pub(super) files: Vec<String>,
    /// Exit with 1 if they differ
    #[arg(long)]
    pub(super) exit_code: bool,
    /// The output format; Markdown is meant for comments on a change
    #[arg(long, value_enum, default_value = "text")]
    pub(super) format: DiffFormat,
    /// The maximum number of rows of each part in text and Markdown; 0 for all
    #[arg(long, default_value = "30", value_name = "N")]
    pub(super) rows: usize,
    /// Act as git's diff driver: `git config diff.forge.command 'forge diff --git'`
    #[arg(long, conflicts_with = "exit_code")]
    pub(super) git: bool,
    #[command(flatten)]
    pub(super) names: NameArgs,
}

#[derive(Debug, ClapArgs)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Log {
    #[command(subcommand)]
    pub(super) command: Option<LogCommand>,
    /// The number of runs, the latest first; 0 for all
    #[arg(short = 'n', long, default_value = "20", value_name = "N")]
    pub(super) number: usize,
}

#[derive(Debug, Subcommand)]
pub(super) enum LogCommand {
    /// Show a run: its steps, why each ran, its actions and their cost, warnings, outputs
    Show(LogShow),
}

#[derive(Debug, ClapArgs)]
pub(super) struct LogShow {
    /// The run: its name, the start of it, or `last`
    #[arg(default_value = "last", value_name = "RUN")]
    pub(super) run: String,
    /// A step of the run, with every action and the engine's log
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
    #[command(flatten)]
    pub(super) recipe: RecipeArgument,
    /// The output format: Graphviz, Mermaid (for Markdown) or JSON
    #[arg(long, value_enum, default_value = "mermaid")]
    pub(super) format: GraphFormat,
}

/// Reads a name that recipes take.
fn section_name(text: &str) -> Result<String, String> {
    match crate::syntax::names::name_problem(text) {
        None => Ok(text.to_owned()),
        Some(problem) => Err(format!("{problem}; names consist of letters, digits, `.`, `_` and `-`")),
    }
}

/// Arguments of `forge exec`.
#[derive(Debug, clap::Args)]
pub(super) struct Exec {
    /// Actions: their digests, or files with action documents
    #[arg(value_name = "ACTION", required_unless_present = "worker")]
    pub actions: Vec<String>,
    /// A file that the actions refer to by digest: a source or a candidate, of a split model any part; may be given several times
    #[arg(long, value_name = "FILE")]
    pub source: Vec<PathBuf>,
    /// Save results that are not in the store yet
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
    /// The bytes of memory that a computation may take beside its model
    #[arg(long, hide = true, value_name = "BYTES", requires = "worker")]
    pub memory: Option<u64>,
}
