//! Compares `policy` with the real `llama-quantize`: the same types for every tensor, and a refusal wherever it refuses.
//!
//! `FORGE_PEER_BIN` names the directory with `llama-quantize`; without it the tests say loudly that they did nothing.
//! `FORGE_TEST_MODEL` and `FORGE_TEST_MOE` name further models to compare with.

#![allow(clippy::print_stderr)]

mod models;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use forge::gguf;
use forge::policy;
use forge::policy::ManualOptions;
use forge::policy::Mix;
use forge::policy::MixOptions;
use forge::policy::ModelFacts;
use forge::policy::PolicyError;
use forge::policy::Rule;
use forge::policy::Table;
use forge::policy::Target;
use forge::policy::Why;
use forge::tensor_type::TensorType;
use regex::Regex;

use self::models::Attention;
use self::models::Random;
use self::models::Shape;

type Types = BTreeMap<String, TensorType>;

/// The real tool, and a place for its output.
pub(crate) struct Peer {
    tool: PathBuf,
    scratch: tempfile::TempDir,
}

/// What a run of the tool came to.
#[derive(Debug)]
pub(crate) struct Run {
    ok: bool,
    log: String,
}

impl Peer {
    /// Returns the peer, or says that the test is skipped.
    pub(crate) fn find(test: &str) -> Option<Self> {
        let Some(dir) = std::env::var_os("FORGE_PEER_BIN") else {
            eprintln!("SKIPPED: {test}: FORGE_PEER_BIN does not name a directory with llama-quantize");
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
        command.args(args);
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
    fn dry(&self, args: &[OsString], model: &Path, mix: &str) -> Run {
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
    fn types(&self) -> Types {
        let line = Regex::new(r"(?m)^\[ *\d+/ *\d+\] (\S+) +- .*type = +(\w+), size = .*?(?:\((\w+)\))?$").unwrap();
        let ty = |name: &str| name.parse::<TensorType>().unwrap();
        let types = line.captures_iter(&self.log).map(|found| {
            let to = found.get(3).unwrap_or_else(|| found.get(2).unwrap());
            (found[1].to_owned(), ty(to.as_str()))
        });
        types.collect()
    }

    fn wants_imatrix(&self) -> bool {
        self.log.contains("will require an imatrix")
    }

    fn fallbacks(&self) -> usize {
        let line = Regex::new(r"(\d+) of \d+ tensor\(s\) required fallback").unwrap();
        line.captures(&self.log).map_or(0, |found| found[1].parse().unwrap())
    }
}

fn types(table: &Table) -> Types {
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

    fn has(&self) -> impl Fn(&str) -> bool + '_ {
        |name| self.entries.contains(name)
    }

    fn mix(&self, mix: Mix, options: &MixOptions, imatrix: bool) -> Result<Table, PolicyError> {
        let has = self.has();
        policy::mix(&self.facts, mix, options, imatrix.then_some(&has))
    }

    fn args(&self, options: &MixOptions, imatrix: bool) -> Vec<OsString> {
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

    /// Compares what a real run does with every mix.
    fn compare_real(&self, peer: &Peer, options: &MixOptions) {
        for (mix, imatrix) in Mix::ALL.iter().flat_map(|mix| [(*mix, false), (*mix, true)]) {
            let theirs = peer.real(&self.args(options, imatrix), &self.path, mix.name());
            match (self.mix(mix, options, imatrix), theirs) {
                (Ok(ours), Ok((theirs, file_type))) => {
                    assert_eq!(types(&ours), theirs, "{} as {mix}, imatrix: {imatrix}", self.name);
                    assert_eq!(mix.file_type(&self.facts), file_type, "{} as {mix}", self.name);
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

/// Real models that the environment names.
fn named_models(peer: &Peer) -> Vec<Subject> {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/quickstart/tiny.gguf");
    let dense = std::env::var_os("FORGE_TEST_MODEL").map(PathBuf::from);
    let moe = std::env::var_os("FORGE_TEST_MOE").map(PathBuf::from);
    let named = [
        ("dense", dense.or_else(|| example.is_file().then_some(example))),
        ("moe", moe),
    ];
    let open = |(name, path): (&str, Option<PathBuf>)| match path {
        Some(path) => Some(Subject::open(peer, name, &path, &[])),
        None => {
            eprintln!("SKIPPED: comparison with a {name} model: FORGE_TEST_MODEL or FORGE_TEST_MOE names none");
            None
        }
    };
    named.into_iter().filter_map(open).collect()
}

/// Models that between them meet every rule.
fn chosen_shapes() -> Vec<(&'static str, Shape)> {
    let shape = Shape::new;
    let shared = |arch, layers| Shape {
        heads_kv: 1,
        ..shape(arch, layers)
    };
    let experts = |arch, layers, experts| Shape {
        experts,
        ..shape(arch, layers)
    };
    vec![
        ("llama-32", shape("llama", 32)),
        ("llama-32-gqa", shared("llama", 32)),
        ("llama-80", shape("llama", 80)),
        ("llama-80-gqa", shared("llama", 80)),
        (
            "llama-80-experts",
            Shape {
                heads_kv: 1,
                experts: 8,
                ..shape("llama", 80)
            },
        ),
        ("llama-1", shape("llama", 1)),
        (
            "llama-288",
            Shape {
                embd: 288,
                ff: 512,
                ..shape("llama", 17)
            },
        ),
        (
            "llama-100",
            Shape {
                embd: 104,
                ff: 100,
                ..shape("llama", 9)
            },
        ),
        (
            "llama-fused",
            Shape {
                attention: Attention::Fused,
                ..shape("llama", 20)
            },
        ),
        (
            "llama-extras",
            Shape {
                extras: true,
                ..shape("llama", 12)
            },
        ),
        ("mixtral", experts("llama", 32, 8)),
        (
            "mixtral-tied-gqa",
            Shape {
                heads_kv: 2,
                tied: true,
                ..experts("llama", 33, 8)
            },
        ),
        ("four-experts", experts("qwen3moe", 25, 4)),
        (
            "many-experts",
            Shape {
                heads_kv: 2,
                ..experts("qwen3moe", 26, 16)
            },
        ),
        (
            "compressed",
            Shape {
                attention: Attention::Compressed,
                nextn: 1,
                ..experts("qwen3moe", 19, 8)
            },
        ),
        (
            "falcon-32",
            Shape {
                attention: Attention::Fused,
                gate: false,
                ..shape("falcon", 32)
            },
        ),
        (
            "falcon-60",
            Shape {
                attention: Attention::Split,
                tied: true,
                ..shape("falcon", 60)
            },
        ),
        (
            "falcon-320",
            Shape {
                embd: 320,
                gate: false,
                ..shape("falcon", 40)
            },
        ),
        (
            "gemma2",
            Shape {
                tied: true,
                heads_kv: 4,
                ..shape("gemma2", 26)
            },
        ),
        (
            "gemma2-320",
            Shape {
                tied: true,
                embd: 320,
                ..shape("gemma2", 26)
            },
        ),
        ("qwen2-80", shape("qwen2", 80)),
        (
            "deci-80",
            Shape {
                ty: TensorType::BF16,
                ..shape("deci", 80)
            },
        ),
        (
            "olmo-80",
            Shape {
                ty: TensorType::F32,
                ..shape("olmo", 80)
            },
        ),
        (
            "jais2-68",
            Shape {
                gate: false,
                ..shape("jais2", 68)
            },
        ),
        ("nanbeige", shape("nanbeige", 10)),
        (
            "bert",
            Shape {
                extras: true,
                ..shape("bert", 12)
            },
        ),
    ]
}

#[test]
fn every_mix_gives_real_models_the_types_of_the_tool() {
    let Some(peer) = Peer::find("every_mix_gives_real_models_the_types_of_the_tool") else {
        return;
    };
    for subject in named_models(&peer) {
        assert!(
            subject.compare_all(&peer, &MixOptions::default()) >= 60,
            "{}",
            subject.name
        );
    }
}

#[test]
fn every_mix_gives_chosen_models_the_types_of_the_tool() {
    let Some(peer) = Peer::find("every_mix_gives_chosen_models_the_types_of_the_tool") else {
        return;
    };
    for (name, shape) in chosen_shapes() {
        let compared = Subject::make(&peer, name, &shape).compare_all(&peer, &MixOptions::default());
        assert!(compared >= 55, "{name}: {compared} comparisons");
    }
}

#[test]
fn every_mix_gives_random_models_the_types_of_the_tool() {
    let Some(peer) = Peer::find("every_mix_gives_random_models_the_types_of_the_tool") else {
        return;
    };
    let mut compared = 0;
    for seed in 1..=40 {
        let subject = Subject::make(&peer, &format!("seed-{seed}"), &Shape::random(seed));
        compared += subject.compare_all(&peer, &MixOptions::default());
        let mut random = Random(seed << 32);
        for _ in 0..12 {
            let any = |random: &mut Random| (!random.one_in(3)).then(|| random.pick(TensorType::ALL));
            let options = MixOptions {
                pure: random.one_in(2),
                output_type: any(&mut random),
                embedding_type: any(&mut random),
                ..MixOptions::default()
            };
            let mix = random.pick(Mix::ALL);
            compared += usize::from(subject.compare_types(&peer, mix, &options, random.one_in(2)));
        }
    }
    assert!(compared > 2000, "{compared} comparisons");
}

#[test]
fn real_runs_write_the_types_and_refuse_what_is_refused() {
    let Some(peer) = Peer::find("real_runs_write_the_types_and_refuse_what_is_refused") else {
        return;
    };
    let small = [
        (
            "small",
            Shape {
                heads_kv: 2,
                ..Shape::new("llama", 9)
            },
        ),
        (
            "small-moe",
            Shape {
                experts: 8,
                extras: true,
                ..Shape::new("qwen3moe", 3)
            },
        ),
        (
            "small-288",
            Shape {
                embd: 288,
                tied: true,
                ty: TensorType::BF16,
                ..Shape::new("qwen2", 3)
            },
        ),
    ];
    for (name, shape) in small {
        let subject = Subject::make(&peer, name, &shape);
        subject.compare_real(&peer, &MixOptions::default());
        subject.compare_real(
            &peer,
            &MixOptions {
                pure: true,
                ..MixOptions::default()
            },
        );
    }
    let path = peer.path("small.gguf");
    let partial = Subject::open(
        &peer,
        "partial",
        &path,
        &["blk.1.attn_k.weight", "blk.2.ffn_down.weight"],
    );
    partial.compare_real(&peer, &MixOptions::default());
}

#[test]
fn quantized_sources_are_refused_or_copied_as_the_tool_does() {
    let Some(peer) = Peer::find("quantized_sources_are_refused_or_copied_as_the_tool_does") else {
        return;
    };
    let source = Subject::make(
        &peer,
        "source",
        &Shape {
            heads_kv: 2,
            ..Shape::new("llama", 5)
        },
    );
    for base in [Mix::Q4_K_M, Mix::IQ2_XXS, Mix::Q8_0, Mix::BF16] {
        peer.real(&source.args(&MixOptions::default(), true), &source.path, base.name())
            .unwrap();
        let path = peer.path(&format!("source-{base}.gguf"));
        std::fs::rename(peer.path("output.gguf"), &path).unwrap();
        let subject = Subject::open(&peer, &format!("source-{base}"), &path, &[]);
        for allow_requantize in [false, true] {
            subject.compare_real(
                &peer,
                &MixOptions {
                    allow_requantize,
                    ..MixOptions::default()
                },
            );
        }
    }
}

#[test]
fn projectors_and_unusual_tensors_are_handled_as_the_tool_does() {
    let Some(peer) = Peer::find("projectors_and_unusual_tensors_are_handled_as_the_tool_does") else {
        return;
    };
    let clip = Subject::make(
        &peer,
        "clip",
        &Shape {
            extras: true,
            ..Shape::new("clip", 3)
        },
    );
    clip.compare_all(&peer, &MixOptions::default());

    for (name, dims, ty) in [
        ("blk.0.four.weight", vec![256, 2, 2, 2], TensorType::F16),
        ("blk.0.double.weight", vec![256, 2], TensorType::F64),
        ("ffn_down.weight", vec![256, 2], TensorType::F16),
        ("blk.9.ffn_up.weight", vec![256, 2], TensorType::F16),
    ] {
        let shape = Shape {
            experts: 2,
            ..Shape::new("qwen3moe", 3)
        };
        let path = peer.path("unusual.gguf");
        shape.write(&path);
        let model = gguf::Model::open(&path).unwrap();
        let mut tensors = shape.tensors();
        tensors.push(gguf::TensorSpec {
            name: name.to_owned(),
            ty,
            dims,
        });
        let metadata = model.metadata().clone();
        models::write(&path, &metadata, &tensors, 7);
        Subject::open(&peer, name, &path, &[]).compare_real(&peer, &MixOptions::default());
    }
}

/// One anchored line per tensor, so that no rule of the tool's own is left to apply.
fn tensor_type_file(table: &Table) -> String {
    let quantizable = table
        .choices
        .iter()
        .filter(|choice| !matches!(choice.why, Why::NeverQuantized { .. }));
    quantizable
        .map(|choice| {
            let wanted = choice.instead_of.unwrap_or(choice.to);
            format!("^{}$={wanted}\n", regex::escape(&choice.tensor))
        })
        .collect()
}

#[test]
fn rules_of_the_user_come_out_as_a_complete_map_does() {
    let Some(peer) = Peer::find("rules_of_the_user_come_out_as_a_complete_map_does") else {
        return;
    };
    let targets: Vec<_> = TensorType::ALL
        .iter()
        .copied()
        .filter(|ty| ty.quantizable_target() && *ty != TensorType::Q1_0)
        .collect();
    let mut subjects = named_models(&peer);
    for (name, shape) in chosen_shapes().into_iter().step_by(3) {
        subjects.push(Subject::make(&peer, name, &shape));
    }
    let mut compared = 0;
    for (seed, subject) in subjects.iter().enumerate() {
        let mut random = Random(seed as u64 + 99);
        for _ in 0..6 {
            let parts = [
                "attn_v",
                "attn_k",
                "ffn_down",
                r"blk\.[0-3]\.",
                "ffn_(up|gate)",
                "attn_output",
                "embd",
                "^o",
            ];
            let mut rules = Vec::new();
            for part in parts {
                if random.one_in(4) {
                    continue;
                }
                let to = Target::Type(random.pick(&targets));
                let pattern = Regex::new(part).unwrap();
                rules.push(Rule { pattern, to });
            }
            let options = ManualOptions {
                otherwise: Some(random.pick(&[Target::Keep, Target::Type(TensorType::Q6_K)])),
                allow_requantize: false,
            };
            let has = subject.has();
            let ours = policy::manual(&subject.facts, &rules, options, Some(&has));
            let mixed = subject.mix(
                Mix::Q4_K_M,
                &MixOptions {
                    rules,
                    ..MixOptions::default()
                },
                true,
            );
            for table in [ours, mixed].into_iter().flatten() {
                let map = peer.path("map.txt");
                std::fs::write(&map, tensor_type_file(&table)).unwrap();
                let mut args = subject.args(&MixOptions::default(), true);
                args.extend(["--tensor-type-file".into(), map.into()]);
                let theirs = peer.dry(&args, &subject.path, "Q5_K_M");
                assert!(theirs.ok, "{}: {}", subject.name, theirs.log);
                assert_eq!(types(&table), theirs.types(), "{}", subject.name);
                compared += 1;
            }
        }
    }
    assert!(compared > 30, "{compared} comparisons");
}

#[test]
fn names_and_numbers_of_the_mixes_are_the_tool_s() {
    let Some(peer) = Peer::find("names_and_numbers_of_the_mixes_are_the_tool_s") else {
        return;
    };
    let usage = Command::new(&peer.tool).output().unwrap();
    let usage = String::from_utf8_lossy(&usage.stdout).into_owned();
    let line = Regex::new(r"(?m)^ +(?:(\d+)  or  )?(\w+) +: ").unwrap();
    let mut listed = BTreeSet::new();
    for found in line.captures_iter(&usage) {
        let mix = Mix::from_name(&found[2]).unwrap_or_else(|| panic!("no mix named {}", &found[2]));
        assert_eq!(
            mix.ftype(),
            found.get(1).map(|number| number.as_str().parse().unwrap()),
            "{mix}"
        );
        listed.insert(mix);
    }
    assert_eq!(listed, Mix::ALL.iter().copied().collect());
}
