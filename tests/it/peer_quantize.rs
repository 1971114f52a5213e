//! Compares `policy` with the real `llama-quantize`: the same types for every tensor, and a refusal wherever it refuses.
//!
//! `FORGE_PEER_BIN` names the directory with `llama-quantize`; without it the tests say loudly that they did nothing.
//! `FORGE_TEST_MODEL` and `FORGE_TEST_MOE` name further models to compare with.

// A test reads its own switches and stops at whatever goes wrong.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

mod harness;
mod models;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use forge::gguf;
use forge::mix::Mix;
use forge::policy;
use forge::policy::ManualOptions;
use forge::policy::MixOptions;
use forge::policy::Rule;
use forge::policy::Table;
use forge::policy::Target;
use forge::policy::Why;
use forge::tensor_type::TensorType;
use regex::Regex;

use self::harness::FEW;
use self::harness::Peer;
use self::harness::Subject;
use self::harness::skipped;
use self::harness::types;
use self::models::Attention;
use self::models::Random;
use self::models::Shape;

/// Real models that the environment names.
fn named_models(peer: &Peer) -> Vec<Subject> {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/quickstart/tiny.gguf");
    let dense = std::env::var_os("FORGE_TEST_MODEL").map(PathBuf::from);
    let moe = Some(crate::support::moe_model());
    let named = [
        ("dense", dense.or_else(|| example.is_file().then_some(example))),
        ("moe", moe),
    ];
    let open = |(name, path): (&str, Option<PathBuf>)| {
        if path.is_none() {
            skipped(&format!(
                "comparison with a {name} model: FORGE_TEST_MODEL or FORGE_TEST_MOE names none"
            ));
        }
        path.map(|path| Subject::open(peer, name, &path, &[]))
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
    let mut compared: u64 = 0;
    // More where there is time: FORGE_TEST_SEEDS=30 takes a minute or two.
    let seeds = std::env::var("FORGE_TEST_SEEDS").map_or(6, |count| count.parse().unwrap());
    for seed in 1..=seeds {
        let subject = Subject::make(&peer, &format!("seed-{seed}"), &Shape::random(seed));
        compared += subject.compare_all(&peer, &MixOptions::default()) as u64;
        let mut random = Random(seed << 32);
        for _ in 0..6 {
            let any = |random: &mut Random| (!random.one_in(3)).then(|| random.pick(TensorType::ALL));
            let options = MixOptions {
                pure: random.one_in(2),
                output_type: any(&mut random),
                embedding_type: any(&mut random),
                ..MixOptions::default()
            };
            let mix = random.pick(Mix::ALL);
            compared += u64::from(subject.compare_types(&peer, mix, &options, random.one_in(2)));
        }
    }
    assert!(compared > 40 * seeds, "{compared} comparisons");
}

#[test]
fn real_runs_write_the_same_types_and_have_the_same_errors() {
    let Some(peer) = Peer::find("real_runs_write_the_same_types_and_have_the_same_errors") else {
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
        let mixes = if name == "small" { Mix::ALL } else { FEW };
        subject.compare_real(&peer, &MixOptions::default(), mixes);
        let pure = MixOptions {
            pure: true,
            ..MixOptions::default()
        };
        subject.compare_real(&peer, &pure, FEW);
    }
    let path = peer.path("small.gguf");
    let partial = Subject::open(
        &peer,
        "partial",
        &path,
        &["blk.1.attn_k.weight", "blk.2.ffn_down.weight"],
    );
    partial.compare_real(&peer, &MixOptions::default(), FEW);
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
                FEW,
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
        Subject::open(&peer, name, &path, &[]).compare_real(&peer, &MixOptions::default(), FEW);
    }
}

/// One anchored line per tensor, so that no rule of the tool's own is left to apply.
fn tensor_type_file(table: &Table) -> String {
    let quantizable = table
        .choices
        .iter()
        .filter(|choice| !matches!(choice.why, Why::NeverQuantized { .. }));
    let mut lines = String::new();
    for choice in quantizable {
        let wanted = choice.instead_of.unwrap_or(choice.to);
        writeln!(lines, "^{}$={wanted}", regex::escape(&choice.tensor)).unwrap();
    }
    lines
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
