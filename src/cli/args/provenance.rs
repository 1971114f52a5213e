//! The arguments of the commands that lock, reproduce, verify and sign.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use clap::Subcommand;
use clap::ValueEnum;

use super::RecipeArgument;
use super::RecipeOption;

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
The lock file lists the digest of every file that the recipe reads, and the engines. Put it under
version control. `forge build --frozen` builds nothing if anything differs from it.")]
pub(in crate::cli) struct Lock {
    #[command(flatten)]
    pub(in crate::cli) recipe: RecipeArgument,
    /// Write nothing; exit with 1 if anything differs from the lock file
    #[arg(long)]
    pub(in crate::cli) check: bool,
    /// The lock file [default: the recipe's name with `.lock` for `.toml`]
    #[arg(long = "lock", value_name = "FILE")]
    pub(in crate::cli) file: Option<PathBuf>,
    /// Threads to use [default: all cores, or `[engine.embedded] threads` of forge.toml]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(in crate::cli) jobs: Option<u16>,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
First lists everything that is missing (sources by digest, the engine by fingerprint, disk
space); if anything is, exits with 3. Searches for sources at the recipe's paths (relative to the
manifest's folder, to two folders above it, and to the current folder), next to the manifest, and
below every `--search DIR`, under any name. Then builds in an empty store and prints `identical`
(exit status 0), `same tensors, different metadata`, or which tensors differ and at which action
the two histories diverge (exit status 1).")]
pub(in crate::cli) struct Reproduce {
    /// The manifest, the candidate that it belongs to, or the step that wrote it, such as `promote.small@Q4_K_M`
    #[arg(value_name = "MANIFEST|GGUF|STEP")]
    pub(in crate::cli) path: PathBuf,
    /// The recipe of the step [default: recipe.toml]
    #[arg(short = 'f', long = "recipe", value_name = "RECIPE")]
    pub(in crate::cli) recipe: Option<String>,
    /// Search this folder and its subfolders for sources, by length and digest
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) search: Vec<PathBuf>,
    /// Continue with an engine other than the manifest's; bytes may differ
    #[arg(long)]
    pub(in crate::cli) any_engine: bool,
    /// Keep the store here [default: a temporary folder, removed afterwards]
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) store: Option<PathBuf>,
    /// Allow the store to contain results of an earlier attempt
    #[arg(long, requires = "store")]
    pub(in crate::cli) resume: bool,
    /// Keep the candidate and its new manifest here
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) out: Option<PathBuf>,
    /// Threads to use [default: all cores, or `[engine.embedded] threads` of forge.toml]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(in crate::cli) jobs: Option<u16>,
}

/// Which outputs: of files, of folders, or of a recipe.
#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct OutputArgs {
    /// Candidates, manifests, folders of them, recipes (all their candidates), or steps such as `promote.small` [default:
    /// recipe.toml]
    #[arg(value_name = "PATH|RECIPE|DIR|STEP")]
    pub(in crate::cli) paths: Vec<PathBuf>,
    #[command(flatten)]
    pub(in crate::cli) recipe: RecipeOption,
    /// Where a recipe's outputs are [default: `out/<recipe name>/` next to the recipe]
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) out: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Reads every byte of the outputs and checks the file's blake3 and sha256, each tensor, the header
and the padding. Checks that each manifest is consistent, and its signatures if there are any. With
`--key`, every manifest must be signed. Exits with 1 if anything is wrong, and names the tensor and
the field.")]
pub(in crate::cli) struct Verify {
    #[command(flatten)]
    pub(in crate::cli) outputs: OutputArgs,
    /// A public key that must have signed every manifest (PEM or OpenSSH); may be given several times
    #[arg(long, value_name = "PUB")]
    pub(in crate::cli) key: Vec<PathBuf>,
    /// Threads to use [default: all cores]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(in crate::cli) jobs: Option<u16>,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Writes `<manifest>.sig.json`: a DSSE envelope with the exact bytes of the manifest. Signatures by
other keys are kept. The key is PKCS#8 in PEM (`openssl genpkey -algorithm ed25519`), an OpenSSH
key, or one made by `forge key new`.")]
pub(in crate::cli) struct Sign {
    #[command(flatten)]
    pub(in crate::cli) outputs: OutputArgs,
    /// The secret key (Ed25519) [default: `[signing] key` of forge.toml]
    #[arg(long, value_name = "KEY")]
    pub(in crate::cli) key: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct Key {
    #[command(subcommand)]
    pub(in crate::cli) command: KeyCommand,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum KeyCommand {
    /// Create a key: FILE (secret, mode 0600) and FILE.pub; never overwrites a file
    New {
        /// The file for the secret key
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Print the public key and its ID
    Show {
        /// A secret or public key
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum BundleFormat {
    /// A Sigstore bundle v0.3 with the key's ID as hint; for one manifest with one signature
    Sigstore,
    /// An in-toto bundle: JSON Lines, one envelope per line
    InToto,
}

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct Bundle {
    #[command(flatten)]
    pub(in crate::cli) outputs: OutputArgs,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    pub(in crate::cli) output: PathBuf,
    /// The format
    #[arg(long, value_enum, default_value = "in-toto")]
    pub(in crate::cli) format: BundleFormat,
}
