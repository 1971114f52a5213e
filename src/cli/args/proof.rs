//! What can be typed to reproduce, verify and sign.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use clap::Subcommand;
use clap::ValueEnum;

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
The lock file lists the digest of every file that the recipe reads, and the engines. Put it under
version control. `forge build --frozen` builds nothing where anything differs from it.")]
pub(in crate::cli) struct Lock {
    /// The recipe
    #[arg(default_value = "recipe.toml", value_name = "RECIPE")]
    pub(in crate::cli) recipe: String,
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
First says all that is missing (sources by digest, the engine by fingerprint, space on the disk) and
exits with 3. Sources are looked for at the recipe's paths (from the manifest's folder, two
folders above it, and here), beside the manifest, and below every `--search DIR`, whatever they
are called there. Then builds in an empty store, and says `identical` (exit status 0), `same
tensors, other metadata`, or which tensors differ and at which action the two histories part
(exit status 1).")]
pub(in crate::cli) struct Reproduce {
    /// The manifest, or the candidate beside which it stands
    #[arg(value_name = "MANIFEST|GGUF")]
    pub(in crate::cli) path: PathBuf,
    /// Look for sources in this folder and all below it, by length and digest
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) search: Vec<PathBuf>,
    /// Go on with another engine than the manifest's; bytes may differ
    #[arg(long)]
    pub(in crate::cli) any_engine: bool,
    /// Keep the store here [default: a temporary folder that goes away]
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) store: Option<PathBuf>,
    /// Let the store have results of an earlier attempt
    #[arg(long, requires = "store")]
    pub(in crate::cli) resume: bool,
    /// Keep the candidate and its new manifest here
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) out: Option<PathBuf>,
    /// Threads to use [default: all cores, or `[engine.embedded] threads` of forge.toml]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(in crate::cli) jobs: Option<u16>,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Reads every byte of the outputs: the file's blake3 and sha256, each tensor at its place, the
header, what lies between; holds manifests against themselves, and against their signatures where
there are any. With `--key`, every manifest must be signed. Exits with 1 if anything is wrong, and
says which tensor and which field.")]
pub(in crate::cli) struct Verify {
    /// Candidates, manifests, folders of them, or recipes (their outputs) [default: recipe.toml]
    #[arg(value_name = "PATH|RECIPE|DIR")]
    pub(in crate::cli) paths: Vec<String>,
    /// A public key that must have signed every manifest (PEM, or a line of OpenSSH); may be given several times
    #[arg(long, value_name = "PUB")]
    pub(in crate::cli) key: Vec<PathBuf>,
    /// Where a recipe's outputs are [default: `out/<recipe name>/` beside the recipe]
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) out: Option<PathBuf>,
    /// Threads to use [default: all cores]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(in crate::cli) jobs: Option<u16>,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Writes `<manifest>.sig.json`: a DSSE envelope with the manifest's very bytes. Signatures of other
keys stay. The key: PKCS#8 in PEM (`openssl genpkey -algorithm ed25519`), OpenSSH's form, or one
of `forge key new`.")]
pub(in crate::cli) struct Sign {
    /// Manifests, or candidates beside which they stand
    #[arg(value_name = "MANIFEST|GGUF", required = true)]
    pub(in crate::cli) paths: Vec<PathBuf>,
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
    /// Make a key: FILE (secret, mode 0600) and FILE.pub; overwrites nothing
    New {
        /// Where the secret key goes
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Print a key's public half and its name
    Show {
        /// A secret or public key
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum BundleFormat {
    /// A sigstore bundle v0.3 with the key's name as hint; of one manifest with one signature
    Sigstore,
    /// An in-toto bundle: JSON lines, an envelope each
    InToto,
}

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct Bundle {
    /// Signed manifests, or candidates beside which they stand
    #[arg(value_name = "MANIFEST|GGUF", required = true)]
    pub(in crate::cli) paths: Vec<PathBuf>,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    pub(in crate::cli) output: PathBuf,
    /// The form
    #[arg(long, value_enum, default_value = "in-toto")]
    pub(in crate::cli) format: BundleFormat,
}
