//! The real `llama-quantize` as a test sees it, and how one model is compared.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use forge::gguf;
use forge::mix::Mix;
use forge::policy;
use forge::policy::MixOptions;
use forge::policy::ModelFacts;
use forge::policy::PolicyError;
use forge::policy::Table;
use forge::tensor_type::TensorType;
use regex::Regex;

use super::models;
use super::models::Shape;

/// Mixes that between them are refused for every reason, and of which most are quick.
pub(crate) const FEW: &[Mix] = &[
    Mix::COPY,
    Mix::F16,
    Mix::Q4_0,
    Mix::Q8_0,
    Mix::Q1_0,
    Mix::Q2_0,
    Mix::Q2_K_S,
    Mix::Q4_K_M,
    Mix::IQ4_XS,
    Mix::TQ1_0,
    Mix::MXFP4_MOE,
    Mix::IQ2_XXS,
];

pub(crate) type Types = BTreeMap<String, TensorType>;

/// The real tool, and a place for its output.
pub(crate) struct Peer {
    pub(crate) tool: PathBuf,
    scratch: tempfile::TempDir,
}

/// Says that something was not tested; straight to the stream, since the test runner keeps what a passing test prints.
pub(crate) fn skipped(what: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {what}");
}

/// What a run of the tool came to.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) ok: bool,
    pub(crate) log: String,
}

impl Peer {
    /// Returns the peer, or says that the test is skipped.
    pub(crate) fn find(test: &str) -> Option<Self> {
        let Some(dir) = std::env::var_os("FORGE_PEER_BIN") else {
            skipped(&format!(
                "{test}: FORGE_PEER_BIN does not name a directory with llama-quantize"
            ));
            return None;
        };
        let tool = PathBuf::from(dir).join("llama-quantize");
        assert!(tool.is_file(), "{} is not there", tool.display());
        Some(Self {
            tool,
            scratch: tempfile::tempdir().unwrap(),
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn run(&self, args: &[OsString], model: &Path, output: Option<&Path>, mix: &str) -> Run {
        let mut command = Command::new(&self.tool);
        // An abort would otherwise start a debugger for its backtrace.
        command.env("GGML_NO_BACKTRACE", "1").args(args);
        if output.is_none() {
            command.arg("--dry-run");
        }
        command.arg(model);
        if let Some(output) = output {
            command.arg(output);
        }
        let output = command.arg(mix).arg("1").output().unwrap();
        let log = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Run {
            ok: output.status.success(),
            log: log.concat(),
        }
    }

    /// Computes the types only, which takes milliseconds.
    pub(crate) fn dry(&self, args: &[OsString], model: &Path, mix: &str) -> Run {
        self.run(args, model, None, mix)
    }

    /// Quantizes, and returns the types in the header of what was written.
    pub(crate) fn real(&self, args: &[OsString], model: &Path, mix: &str) -> Result<(Types, u32), String> {
        let output = self.path("output.gguf");
        let _ = std::fs::remove_file(&output);
        let run = self.run(args, model, Some(&output), mix);
        if !run.ok {
            return Err(run.log);
        }
        let written = gguf::Model::open(&output).unwrap();
        let types = written
            .tensors()
            .iter()
            .map(|tensor| (tensor.info.name.clone(), tensor.info.ty))
            .collect();
        Ok((types, written.metadata().get_u32("general.file_type").unwrap()))
    }
}

impl Run {
    pub(crate) fn types(&self) -> Types {
        let line = Regex::new(r"(?m)^\[ *\d+/ *\d+\] (\S+) +- .*type = +(\w+), size = .*?(?:\((\w+)\))?$").unwrap();
        let ty = |name: &str| name.parse::<TensorType>().unwrap();
        let types = line.captures_iter(&self.log).map(|found| {
            let to = found.get(3).unwrap_or_else(|| found.get(2).unwrap());
            (found[1].to_owned(), ty(to.as_str()))
        });
        types.collect()
    }

    pub(crate) fn wants_imatrix(&self) -> bool {
        self.log.contains("will require an imatrix")
    }

    pub(crate) fn fallbacks(&self) -> usize {
        let line = Regex::new(r"(\d+) of \d+ tensor\(s\) required fallback").unwrap();
        line.captures(&self.log).map_or(0, |found| found[1].parse().unwrap())
    }
}

/// The types of a table by name.
pub(crate) fn types(table: &Table) -> Types {
    table
        .choices
        .iter()
        .map(|choice| (choice.tensor.clone(), choice.to))
        .collect()
}

/// A model on disk, what the rules know of it, and an imatrix for it.
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) facts: ModelFacts,
    pub(crate) imatrix: PathBuf,
    pub(crate) entries: BTreeSet<String>,
}

impl Subject {
    pub(crate) fn open(peer: &Peer, name: &str, path: &Path, without: &[&str]) -> Self {
        let model = gguf::Model::open(path).unwrap();
        let tensors = model.tensors().iter().map(|tensor| (&tensor.info).into()).collect();
        let facts = ModelFacts::from_metadata(model.metadata(), tensors).unwrap();
        let collected = facts.tensors.iter().filter(|tensor| {
            let exempt = ["token_embd.weight", "output.weight", "per_layer_token_embd.weight"];
            tensor.dims.len() > 1 && !exempt.contains(&tensor.name.as_str()) && !without.contains(&tensor.name.as_str())
        });
        let sizes: BTreeSet<_> = collected
            .map(|tensor| {
                (
                    tensor.name.clone(),
                    tensor.columns(),
                    tensor.dims.get(2).copied().unwrap_or(1),
                )
            })
            .collect();
        let imatrix = peer.path(&format!("{name}.imatrix.gguf"));
        models::write_imatrix(&imatrix, &sizes);
        let entries = sizes.into_iter().map(|(name, _, _)| name).collect();
        Self {
            name: name.to_owned(),
            path: path.to_owned(),
            facts,
            imatrix,
            entries,
        }
    }

    pub(crate) fn make(peer: &Peer, name: &str, shape: &Shape) -> Self {
        let path = peer.path(&format!("{name}.gguf"));
        shape.write(&path);
        Self::open(peer, name, &path, &[])
    }

    pub(crate) fn has(&self) -> impl Fn(&str) -> bool + '_ {
        |name| self.entries.contains(name)
    }

    pub(crate) fn mix(&self, mix: Mix, options: &MixOptions, imatrix: bool) -> Result<Table, PolicyError> {
        let has = self.has();
        policy::mix(&self.facts, mix, options, imatrix.then_some(&has))
    }

    pub(crate) fn args(&self, options: &MixOptions, imatrix: bool) -> Vec<OsString> {
        let mut args = Vec::<OsString>::new();
        if imatrix {
            args.extend(["--imatrix".into(), self.imatrix.clone().into()]);
        }
        if options.pure {
            args.push("--pure".into());
        }
        if options.allow_requantize {
            args.push("--allow-requantize".into());
        }
        for (flag, ty) in [
            ("--output-tensor-type", options.output_type),
            ("--token-embedding-type", options.embedding_type),
        ] {
            args.extend(ty.iter().flat_map(|ty| [flag.into(), ty.name().into()]));
        }
        args
    }

    /// Compares the types of one mix. Returns true if both sides had types to compare.
    pub(crate) fn compare_types(&self, peer: &Peer, mix: Mix, options: &MixOptions, imatrix: bool) -> bool {
        let what = format!("{} as {mix}, imatrix: {imatrix}, {options:?}", self.name);
        let args = self.args(options, imatrix);
        let theirs = peer.dry(&args, &self.path, mix.name());
        match self.mix(mix, options, imatrix) {
            Ok(ours) => {
                assert!(theirs.ok, "{what}: refused by the peer only: {}", theirs.log);
                assert_eq!(types(&ours), theirs.types(), "{what}");
                assert_eq!(ours.fallbacks(), theirs.fallbacks(), "{what}");
                assert!(!theirs.wants_imatrix(), "{what}");
                true
            }
            // A dry run finds less to refuse than a real one.
            Err(error) => {
                let missing = matches!(
                    error,
                    PolicyError::NeedsImatrix {
                        have_imatrix: false,
                        ..
                    }
                );
                if theirs.ok && !(missing && theirs.wants_imatrix()) {
                    let real = peer.real(&args, &self.path, mix.name());
                    assert!(real.is_err(), "{what}: the peer does not refuse what we do: {error}");
                }
                false
            }
        }
    }

    /// Compares every mix, with and without imatrix; returns how many had types to compare.
    pub(crate) fn compare_all(&self, peer: &Peer, options: &MixOptions) -> usize {
        let runs = Mix::ALL.iter().flat_map(|mix| [(*mix, false), (*mix, true)]);
        runs.filter(|(mix, imatrix)| self.compare_types(peer, *mix, options, *imatrix))
            .count()
    }

    /// Compares what real runs do. The low-bit mixes compute tables for seconds in every process: choose few.
    pub(crate) fn compare_real(&self, peer: &Peer, options: &MixOptions, mixes: &[Mix]) {
        for (mix, imatrix) in mixes.iter().flat_map(|mix| [(*mix, false), (*mix, true)]) {
            let theirs = peer.real(&self.args(options, imatrix), &self.path, mix.name());
            match (self.mix(mix, options, imatrix), theirs) {
                (Ok(ours), Ok((theirs, file_type))) => {
                    assert_eq!(types(&ours), theirs, "{} as {mix}, imatrix: {imatrix}", self.name);
                    assert_eq!(
                        forge::policy::file_type_of(mix, &self.facts),
                        file_type,
                        "{} as {mix}",
                        self.name
                    );
                }
                (Err(_), Err(_)) => (),
                (Ok(_), Err(log)) => panic!(
                    "{} as {mix}, imatrix: {imatrix}: only the peer refuses: {log}",
                    self.name
                ),
                (Err(error), Ok(_)) => {
                    panic!("{} as {mix}, imatrix: {imatrix}: only we refuse: {error}", self.name)
                }
            }
        }
    }
}
