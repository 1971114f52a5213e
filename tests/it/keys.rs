//! What keys are made of: what must not change them, what must, and that no field of an action is left out.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use forge::action;
use forge::action::Action;
use forge::digest::ActionDigest;
use forge::digest::BlobDigest;
use forge::digest::Fingerprint;
use forge::gguf::Value;
use forge::method;
use forge::method::MethodDocument;
use forge::policy::Family;
use forge::policy::Fuse;
use forge::policy::Ranking;
use forge::vocab;
use serde_json::Value as Json;

use crate::one_layer_project::Gguf;
use crate::one_layer_project::RECIPE;
use crate::one_layer_project::build_well;
use crate::one_layer_project::edited;
use crate::one_layer_project::furnish;
use crate::one_layer_project::in_parallel;
use crate::one_layer_project::manifest;
use crate::one_layer_project::plan;
use crate::one_layer_project::project;
use crate::support::Forge;

/// Every key of a fresh build: of each node, and of each action in it.
fn keys_of(forge: &Forge, args: &[&str]) -> BTreeSet<(String, String, String)> {
    let built = build_well(forge, args);
    let (run, nodes) = plan(forge, args);
    let _run = run.success();
    assert!(nodes.values().all(|(status, _)| status == "hit"), "{nodes:?}");
    let nodes = nodes
        .into_iter()
        .map(|(node, (_, key))| (node, "node".to_owned(), key.unwrap()));
    let keys: BTreeSet<_> = built.keys().into_iter().chain(nodes).collect();
    assert!(keys.len() > 40, "{}", keys.len());
    keys
}

/// The same recipe in other words: comments, other white space, other quotes, sections and keys in another order.
const REWORDED: &str = r#"
# A comment.
schema=1
name   =   'small'   # another

[eval.quality]
block = 1
context = 64
chunks = 2
corpus = 'held-out'

promote.b = { policy = "b" }

[promote.a]
policy = "a"

[policy.b]
mix = "Q4_K_M"
method = "mix"
imatrix = "general"

[policy.a]
otherwise = 'Q4_K'
method = "manual"
rules = [
    # First this,
    { type = 'Q8_0', match = "^token_embd\\.weight$" },
    # then that.
    { type = "Q6_K", match = 'ffn_down' },
]
imatrix = "general"

[imatrix.general]
block = 2
context = 64
chunks = 4
corpus = "calibration"

[corpus]
held-out.files = ["held-out.txt"]
calibration = { files = [
  "prose.txt",
] }

[source]
model.path = "model.gguf"
"#;

#[test]
fn what_does_not_change_the_result_changes_no_key() {
    let forge = project();
    let expected = keys_of(&forge, &[]);
    let tensors = manifest(&forge.path("out/small/a.gguf"))["predicate"]["forge"]["tensors"].clone();

    // Every one in a folder and a store of its own, so that every action runs again and tells its key.
    let reworded = || {
        let text = edited(REWORDED, "promote.b = { policy = \"b\" }\n", "");
        let other = project();
        other.recipe(&edited(
            &text,
            "[promote.a]",
            "[promote.b]\npolicy = \"b\"\n\n[promote.a]",
        ));
        keys_of(&other, &[])
    };
    let moved = || {
        let other = Forge::new();
        furnish(&other);
        std::fs::create_dir(other.path("deep")).unwrap();
        for name in ["model.gguf", "prose.txt", "held-out.txt"] {
            std::fs::rename(other.path(name), other.path("deep").join(name)).unwrap();
        }
        other.write("deep/renamed.toml", RECIPE);
        keys_of(&other, &["deep/renamed.toml"])
    };
    let elsewhere = || {
        let other = project();
        keys_of(&other, &["--out", "else/where"])
    };
    let threads = || {
        let other = project();
        let built = build_well_with_threads(&other);
        let (_run, nodes) = plan(&other, &[]);
        let nodes = nodes
            .into_iter()
            .map(|(node, (_, key))| (node, "node".to_owned(), key.unwrap()));
        built.into_iter().chain(nodes).collect()
    };
    let environment = || {
        let other = project()
            .env("TZ", "Pacific/Auckland")
            .env("LANG", "tr_TR.UTF-8")
            .env("LC_ALL", "tr_TR.UTF-8");
        std::fs::create_dir(other.path("home")).unwrap();
        let home = other.path("home");
        let other = other.env("HOME", home.to_str().unwrap()).env("USER", "somebody");
        keys_of(&other, &[])
    };
    let umask = || {
        let other = project();
        let program = other.command(&[]).get_program().to_owned();
        let status = Command::new("sh")
            .args(["-c", "umask 077; exec \"$0\" build -j 1 -q"])
            .arg(program)
            .current_dir(other.dir())
            .env("FORGE_CACHE_DIR", other.store())
            .output();
        let run = crate::support::Run::of(status.unwrap()).success();
        assert_eq!(
            run.stderr.lines().count(),
            1,
            "a quiet build says how it ended: {}",
            run.stderr
        );
        let (_run, nodes) = plan(&other, &[]);
        let nodes: BTreeSet<_> = nodes
            .into_iter()
            .map(|(node, (_, key))| (node, "node".to_owned(), key.unwrap()))
            .collect();
        let only: BTreeSet<_> = expected.iter().filter(|key| key.1 == "node").cloned().collect();
        assert_eq!(nodes, only, "umask");
        let again = manifest(&other.path("out/small/a.gguf"))["predicate"]["forge"]["tensors"].clone();
        assert_eq!(again, tensors, "umask");
        expected.clone()
    };
    type Variant<'a> = (&'a str, &'a (dyn Fn() -> BTreeSet<(String, String, String)> + Sync));
    let variants: [Variant<'_>; 6] = [
        ("other words", &reworded),
        ("another folder and name", &moved),
        ("--out", &elsewhere),
        ("two threads", &threads),
        ("environment", &environment),
        ("umask", &umask),
    ];
    in_parallel(&variants, |(name, keys)| {
        let keys = keys();
        let differing: Vec<_> = keys.symmetric_difference(&expected).collect();
        assert!(differing.is_empty(), "{name}: {differing:#?}");
    });
}

fn build_well_with_threads(forge: &Forge) -> BTreeSet<(String, String, String)> {
    let (run, events) = forge.build_events(&["-j", "2"]);
    crate::one_layer_project::Built {
        run: run.success(),
        events,
    }
    .keys()
}

/// Where an edit is made.
enum Edit {
    /// In the recipe.
    Recipe(&'static str, &'static str),
    /// In a text: a letter of it.
    Letter(&'static str, u64),
    /// In the model.
    Model(fn(&mut Gguf)),
}

/// Two texts, one block each; a merged imatrix for `a`, a plain one for `b`; a gate.
fn matrix_recipe() -> String {
    let recipe = edited(
        RECIPE,
        "files = [\"prose.txt\"]",
        "files = [\"prose.txt\", \"code.txt\"]",
    );
    let recipe = edited(
        &recipe,
        "chunks = 4\ncontext = 64\nblock = 2",
        "context = 64\nblock = 100",
    );
    let recipe = edited(
        &recipe,
        "[policy.a]\nimatrix = \"general\"",
        "[policy.a]\nimatrix = \"both\"",
    );
    // Enough chunks that another seed gives another interval.
    let recipe = edited(
        &recipe,
        "chunks = 2\ncontext = 64\nblock = 1\n",
        "chunks = 6\ncontext = 64\nblock = 2\n",
    );
    recipe
        + "\n[corpus.code]\nfiles = [\"code.txt\"]\n\n[imatrix.code]\ncorpus = \"code\"\nchunks = 2\ncontext = 32\n\n\
           [imatrix.both]\nmerge = [\"general\", \"code\"]\nweights = [1, 0.5]\nmode = \"sum\"\n\n\
           [join.both]\nimatrix = \"both\"\n\n[gate.good]\nrequire = [\"bytes < 1 GiB\"]\n"
}

/// Everything from the tensors on.
const FROM_TENSORS: &[&str] = &["tensor", "promote", "eval-block", "eval", "metrics", "gate"];
/// Everything from an imatrix of `general` on, its blocks apart.
const FROM_IMATRIX: &[&str] = &["imatrix-collect", "imatrix-merge", "join"];

/// An edit, and the kinds of the actions that get keys which were never seen before.
const EFFECTS: &[(&str, Edit, &[&[&str]])] = &[
    (
        "a letter of the calibration text",
        Edit::Letter("prose.txt", 30),
        &[&["corpus", "tokens", "imatrix-block"], FROM_IMATRIX, FROM_TENSORS],
    ),
    (
        "a letter of the held-out text",
        Edit::Letter("held-out.txt", 30),
        &[&[
            "corpus",
            "tokens",
            "reference-block",
            "eval-block",
            "eval",
            "metrics",
            "gate",
        ]],
    ),
    (
        // The sum of two blocks is the same in both orders, and so is all that is made of it.
        "the order of texts",
        Edit::Recipe("[\"prose.txt\", \"code.txt\"]", "[\"code.txt\", \"prose.txt\"]"),
        &[&["corpus", "imatrix-collect"]],
    ),
    (
        "chunking",
        Edit::Recipe(
            "\"code.txt\"]\n\n[corpus.held-out]",
            "\"code.txt\"]\nchunking = \"joined\"\n\n[corpus.held-out]",
        ),
        &[&["corpus", "tokens", "imatrix-block"], FROM_IMATRIX, FROM_TENSORS],
    ),
    (
        // The texts hold no special tokens, so the tokens are the same.
        "parse_special",
        Edit::Recipe(
            "\"code.txt\"]\n\n[corpus.held-out]",
            "\"code.txt\"]\nparse_special = true\n\n[corpus.held-out]",
        ),
        &[&["corpus", "tokens", "imatrix-collect"]],
    ),
    (
        "the context of the imatrix",
        Edit::Recipe("context = 64\nblock = 100", "context = 48\nblock = 100"),
        &[&["imatrix-block"], FROM_IMATRIX, FROM_TENSORS],
    ),
    (
        // The model has no output matrix of its own, so there is nothing more to collect.
        "process_output",
        Edit::Recipe(
            "context = 64\nblock = 100",
            "context = 64\nblock = 100\nprocess_output = true",
        ),
        &[&["imatrix-block", "imatrix-collect"]],
    ),
    (
        "chunks of the imatrix",
        Edit::Recipe("context = 64\nblock = 100", "context = 64\nchunks = 2\nblock = 100"),
        &[&["imatrix-block"], FROM_IMATRIX, FROM_TENSORS],
    ),
    (
        "the mode of the merge",
        Edit::Recipe("\"sum\"", "\"mean\""),
        &[&["imatrix-merge", "join"], FROM_TENSORS],
    ),
    (
        "a weight of the merge",
        Edit::Recipe("[1, 0.5]", "[1, 2]"),
        &[&["imatrix-merge", "join"], FROM_TENSORS],
    ),
    (
        "the mix",
        Edit::Recipe("\"Q4_K_M\"", "\"Q5_K_M\""),
        &[&["policy"], FROM_TENSORS],
    ),
    (
        "a pattern to keep",
        Edit::Recipe("mix = \"Q4_K_M\"", "mix = \"Q4_K_M\"\nkeep = [\"ffn_up\"]"),
        &[&["policy", "promote", "eval-block", "eval", "metrics", "gate"]],
    ),
    (
        // The table says which rule chose; the candidate that is assembled from it is the same file.
        "the order of rules that do not meet",
        Edit::Recipe(
            r#"{ match = '^token_embd\.weight$', type = "Q8_0" }, { match = "ffn_down", type = "Q6_K" }"#,
            r#"{ match = "ffn_down", type = "Q6_K" }, { match = '^token_embd\.weight$', type = "Q8_0" }"#,
        ),
        &[&["policy", "promote"]],
    ),
    (
        "allow_requantize",
        Edit::Recipe(
            "[promote.a]\npolicy = \"a\"",
            "[promote.a]\npolicy = \"a\"\nallow_requantize = true",
        ),
        &[&["promote"]],
    ),
    (
        "the smallest count of a join",
        Edit::Recipe("[join.both]\n", "[join.both]\nmin_count = 2\n"),
        &[&["join"]],
    ),
    (
        "the context of the evaluation",
        Edit::Recipe("context = 64\nblock = 2\n", "context = 48\nblock = 2\n"),
        &[&["reference-block", "eval-block", "eval", "metrics", "gate"]],
    ),
    (
        "chunks of the evaluation",
        Edit::Recipe("chunks = 6\ncontext = 64\n", "chunks = 7\ncontext = 64\n"),
        &[&["reference-block", "eval-block", "eval", "metrics", "gate"]],
    ),
    (
        "the seed",
        Edit::Recipe("block = 2\n", "block = 2\nseed = 7\n"),
        &[&["eval", "metrics", "gate"]],
    ),
    (
        "the bootstrap",
        Edit::Recipe("block = 2\n", "block = 2\nbootstrap = 50\n"),
        &[&["eval", "metrics", "gate"]],
    ),
    (
        "KLD or not",
        Edit::Recipe("block = 2\n", "block = 2\nkld = false\n"),
        &[&["eval-block", "eval", "metrics", "gate"]],
    ),
    ("a requirement", Edit::Recipe("1 GiB", "2 GiB"), &[&["gate"]]),
    (
        "the name of the recipe",
        Edit::Recipe("name = \"small\"", "name = \"little\""),
        &[&["metrics"]],
    ),
    (
        "a byte of a tensor",
        Edit::Model(|model| {
            let down = model
                .tensors
                .iter_mut()
                .find(|(spec, _)| spec.name == "blk.0.ffn_down.weight")
                .unwrap();
            down.1[100] ^= 1;
        }),
        &[
            &["inspect-model", "imatrix-block", "reference-block"],
            FROM_IMATRIX_OF_A_LAST_LAYER,
            &["tensor", "promote", "eval-block", "eval", "metrics", "gate"],
        ],
    ),
    (
        "a hyperparameter",
        Edit::Model(|model| model.set("qwen3.attention.layer_norm_rms_epsilon", Value::F32(2e-6))),
        &[
            &["inspect-model", "imatrix-block", "policy", "reference-block"],
            FROM_IMATRIX,
            FROM_TENSORS,
        ],
    ),
    (
        "the chat template",
        Edit::Model(|model| model.set("tokenizer.chat_template", Value::String(b"{{ second }}".to_vec()))),
        &[&["inspect-model", "promote", "metrics", "gate"]],
    ),
    (
        "the name of the model",
        Edit::Model(|model| model.set("general.name", Value::String(b"another".to_vec()))),
        &[&["inspect-model", "promote", "metrics", "gate"]],
    ),
    (
        // Other than the tokens, the imatrix and the figures stay the same.
        "the vocabulary, where it does not touch the text",
        Edit::Model(|model| model.set("tokenizer.ggml.eos_token_id", Value::U32(1))),
        &[&[
            "inspect-model",
            "tokens",
            "imatrix-collect",
            "promote",
            "eval",
            "metrics",
            "gate",
        ]],
    ),
];

/// What feeds the last matrix of a model of one layer does not depend on that matrix: the imatrix comes out the same.
const FROM_IMATRIX_OF_A_LAST_LAYER: &[&str] = &["imatrix-collect"];

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn every_edit_changes_the_keys_of_what_depends_on_it_and_no_other() {
    let base = project();
    let recipe = matrix_recipe();
    base.recipe(&recipe);
    let all = build_well(&base, &[]).ran();
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let wrong = std::sync::Mutex::new(BTreeMap::new());
    in_parallel(EFFECTS, |(name, edit, expected)| {
        let forge = Forge::new();
        furnish(&forge);
        copy_tree(base.store(), forge.store());
        forge.recipe(&recipe);
        match edit {
            Edit::Recipe(from, to) => {
                forge.recipe(&edited(&recipe, from, to));
            }
            Edit::Letter(text, at) => crate::one_layer_project::corrupt_quietly(&forge.path(text), *at),
            Edit::Model(change) => {
                let mut model = Gguf::small();
                change(&mut model);
                forge.write("model.gguf", model.bytes());
            }
        }
        let ran: BTreeSet<String> = build_well(&forge, &[]).ran().into_keys().collect();
        let expected: BTreeSet<String> = expected.concat().into_iter().map(str::to_owned).collect();
        if ran != expected {
            let more: Vec<_> = ran.difference(&expected).cloned().collect();
            let fewer: Vec<_> = expected.difference(&ran).cloned().collect();
            wrong.lock().unwrap().insert(*name, (more, fewer));
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(
        wrong.is_empty(),
        "edit: (ran though it should not, did not run): {wrong:#?}"
    );
    for (_, _, expected) in EFFECTS {
        seen.extend(expected.concat().into_iter().map(str::to_owned));
    }
    assert_eq!(
        seen,
        all.into_keys().collect(),
        "every kind of action is touched by some edit"
    );
}

fn blob(text: &str) -> BlobDigest {
    BlobDigest::of(text.as_bytes())
}

fn row(eval: &str) -> action::MetricsRow {
    action::MetricsRow {
        eval: eval.to_owned(),
        candidate: "a".to_owned(),
        file: blob("file"),
        elements: 7,
        figures: blob("figures"),
        probed: Some("10000000000,1000000000,16,512".to_owned()),
        engine: Fingerprint::of(b"engine"),
        overlaps: vec![action::RowOverlap {
            corpus: "calibration".to_owned(),
            same_files: 1,
            share: 1000,
            passage: Some(500),
        }],
    }
}

fn device(name: &str) -> method::DeviceDocument {
    method::DeviceDocument {
        name: name.to_owned(),
        tensors: vec!["a".to_owned(), "b".to_owned()],
        memory: 5000,
        reserve: 10,
        cache: Some(method::CacheDocument {
            context: 256,
            ty: "F16".to_owned(),
        }),
    }
}

/// One action of every kind, of every variant, with every field that may be absent there.
fn samples() -> Vec<Action> {
    let engine = Fingerprint::of(b"engine");
    let policy = |method| action::Policy {
        shape: blob("shape"),
        coverage: Some(blob("coverage")),
        method,
        rules: 1,
    };
    let rule = |pattern: &str, target: &str| method::RuleDocument {
        pattern: pattern.to_owned(),
        target: target.to_owned(),
    };
    vec![
        Action::InspectModel(action::InspectModel {
            files: vec![blob("1"), blob("2")],
            index: 1,
        }),
        Action::Corpus(action::Corpus {
            texts: vec![blob("1"), blob("2")],
            chunking: vocab::Chunking::PerFile,
            parse_special: false,
        }),
        Action::Tokens(action::Tokens {
            texts: vec![blob("1"), blob("2")],
            tokenizer: blob("tokenizer"),
            parse_special: false,
            engine,
        }),
        Action::ImatrixBlock(action::ImatrixBlock {
            model: blob("model"),
            tokens: blob("tokens"),
            context: 64,
            process_output: false,
            engine,
        }),
        Action::ImatrixCollect(action::ImatrixCollect {
            model: blob("model"),
            tokenizer: blob("tokenizer"),
            corpus: blob("corpus"),
            dataset: "calibration".to_owned(),
            context: 64,
            chunks: Some(4),
            block: 2,
            process_output: false,
            engine,
        }),
        Action::ImatrixMerge(action::ImatrixMerge {
            imatrices: vec![blob("1"), blob("2")],
            mode: vocab::MergeMode::Sum,
            weights: vec![1_000_000, 500_000],
        }),
        Action::ImatrixImport(action::ImatrixImport { file: blob("file") }),
        Action::ImatrixMoments(action::ImatrixMoments {
            moments: blob("moments"),
            process_output: false,
        }),
        Action::WeightInputs(action::WeightInputs {
            model: blob("model"),
            context: 64,
            engine,
        }),
        Action::MomentsBlock(action::MomentsBlock {
            model: blob("model"),
            tokens: blob("tokens"),
            context: 64,
            input: "a".to_owned(),
            engine,
            form: 1,
        }),
        Action::MomentsSum(action::MomentsSum {
            parts: vec![blob("1"), blob("2")],
        }),
        Action::Moments(action::Moments {
            model: blob("model"),
            shape: blob("shape"),
            tokenizer: blob("tokenizer"),
            corpus: blob("corpus"),
            dataset: "calibration".to_owned(),
            context: 64,
            chunks: Some(4),
            block: 2,
            held_out: 8,
            engine,
            form: 1,
        }),
        Action::RefinedTensor(action::RefinedTensor {
            source: blob("source"),
            from: "F16".to_owned(),
            dims: vec![256, 4],
            to: "Q4_K".to_owned(),
            weights: Some(blob("weights")),
            moments: blob("moments"),
            validation: Some(blob("validation")),
            damping: 10_000,
            version: 1,
            quantizer: engine,
        }),
        Action::Join(action::Join {
            shape: blob("shape"),
            imatrix: blob("imatrix"),
            missing: vocab::Severity::Warn,
            unrouted: vocab::Severity::Fail,
            min_count: 1,
        }),
        Action::Policy(policy(MethodDocument::Mix(Box::new(method::mix::Document {
            mix: "Q4_K_M".to_owned(),
            pure: false,
            output_type: Some("Q6_K".to_owned()),
            embedding_type: Some("Q8_0".to_owned()),
            keep: vec!["a".to_owned(), "b".to_owned()],
        })))),
        Action::Policy(policy(MethodDocument::Manual(Box::new(method::manual::Document {
            rules: vec![rule("a", "Q4_K"), rule("b", "Q5_K")],
            otherwise: Some("Q6_K".to_owned()),
        })))),
        Action::Policy(policy(MethodDocument::Ashq1(Box::new(method::ashq1::Document {
            imatrix: blob("imatrix"),
            header: method::HeaderDocument {
                metadata: blob("metadata"),
                dataset: Some("calibration".to_owned()),
            },
            budget: method::BudgetDocument::Bytes { number: 1000 },
            depth: false,
            free: false,
            qat: false,
            floors: vec![rule("a", "Q4_K"), rule("b", "Q5_K")],
            ceilings: vec![rule("a", "Q6_K"), rule("b", "Q8_0")],
            keep: vec!["a".to_owned(), "b".to_owned()],
        })))),
        Action::Policy(policy(MethodDocument::Density(Box::new(method::density::Document {
            imatrix: blob("imatrix"),
            header: method::HeaderDocument {
                metadata: blob("metadata"),
                dataset: Some("calibration".to_owned()),
            },
            budget: method::BudgetDocument::Bytes { number: 1000 },
            base: "Q4_K".to_owned(),
            promotion: "Q8_0".to_owned(),
            anchors: false,
            keep: vec!["a".to_owned(), "b".to_owned()],
        })))),
        Action::Policy(policy(MethodDocument::Prior(Box::new(method::prior::Document {
            header: method::HeaderDocument {
                metadata: blob("metadata"),
                dataset: Some("calibration".to_owned()),
            },
            budget: method::BudgetDocument::MillionthsOfBits { number: 4_500_000 },
            constraints: method::ConstraintsDocument {
                types: vec!["Q4_K".to_owned(), "Q8_0".to_owned()],
                fuse: vec![Fuse::Attention, Fuse::Experts],
                floors: vec![rule("a", "Q4_K"), rule("b", "Q5_K")],
                ceilings: vec![rule("a", "Q6_K"), rule("b", "Q8_0")],
                keep: vec!["a".to_owned(), "b".to_owned()],
                devices: vec![device("x"), device("y")],
            },
            states: 1000,
            solver: 1,
        })))),
        Action::Policy(policy(MethodDocument::Measured(Box::new(method::measured::Document {
            header: method::HeaderDocument {
                metadata: blob("metadata"),
                dataset: Some("calibration".to_owned()),
            },
            budget: method::BudgetDocument::Bytes { number: 1000 },
            model: blob("compute"),
            imatrix: Some(blob("imatrix")),
            corpus: blob("corpus"),
            tokenizer: blob("tokenizer"),
            context: 64,
            chunks: 4,
            block: 2,
            screen: 1,
            max_probes: Some(100),
            refine: 3,
            rounding: Some(method::rounding::RoundingDocument::new(blob("moments"))),
            constraints: method::ConstraintsDocument {
                types: vec!["Q4_K".to_owned(), "Q8_0".to_owned()],
                fuse: vec![Fuse::Attention, Fuse::Experts],
                floors: vec![rule("a", "Q4_K"), rule("b", "Q5_K")],
                ceilings: vec![rule("a", "Q6_K"), rule("b", "Q8_0")],
                keep: vec!["a".to_owned(), "b".to_owned()],
                devices: vec![device("x"), device("y")],
            },
            states: 1000,
            solver: 1,
            form: 1,
            quantizer: engine,
            evaluator: engine,
        })))),
        Action::Policy(policy(MethodDocument::Fisher(Box::new(method::fisher::Document {
            header: method::HeaderDocument {
                metadata: blob("metadata"),
                dataset: Some("calibration".to_owned()),
            },
            budget: method::BudgetDocument::Bytes { number: 1000 },
            model: blob("compute"),
            imatrix: Some(blob("imatrix")),
            corpus: blob("corpus"),
            tokenizer: blob("tokenizer"),
            context: 64,
            chunks: 4,
            block: 2,
            probes: 8,
            corrections: 1,
            rounding: Some(method::rounding::RoundingDocument::new(blob("moments"))),
            constraints: method::ConstraintsDocument {
                types: vec!["Q4_K".to_owned(), "Q8_0".to_owned()],
                fuse: vec![Fuse::Attention, Fuse::Experts],
                floors: vec![rule("a", "Q4_K"), rule("b", "Q5_K")],
                ceilings: vec![rule("a", "Q6_K"), rule("b", "Q8_0")],
                keep: vec!["a".to_owned(), "b".to_owned()],
                devices: vec![device("x"), device("y")],
            },
            states: 1000,
            solver: 1,
            quantizer: engine,
            evaluator: engine,
        })))),
        Action::Policy(policy(MethodDocument::Boost(Box::new(method::boost::Document {
            base: method::boost::BaseDocument::Mix {
                mix: "Q4_K_M".to_owned(),
            },
            layers: method::boost::LayersDocument::Listed { layers: vec![1, 2] },
            families: vec![Family::Gate, Family::Down],
            promotion: "Q6_K".to_owned(),
            keep: vec!["a".to_owned(), "b".to_owned()],
        })))),
        Action::Policy(policy(MethodDocument::Boost(Box::new(method::boost::Document {
            base: method::boost::BaseDocument::Type { to: "Q4_K".to_owned() },
            layers: method::boost::LayersDocument::Ranked {
                count: 6,
                ranking: Ranking::Contrast,
                imatrix: blob("imatrix"),
                baseline: Some(blob("baseline")),
            },
            families: vec![Family::Gate, Family::Down],
            promotion: "Q6_K".to_owned(),
            keep: vec!["a".to_owned(), "b".to_owned()],
        })))),
        Action::Policy(policy(MethodDocument::Error(Box::new(method::error::Document {
            header: method::HeaderDocument {
                metadata: blob("metadata"),
                dataset: Some("calibration".to_owned()),
            },
            budget: method::BudgetDocument::Bytes { number: 1000 },
            model: blob("compute"),
            imatrix: Some(blob("imatrix")),
            probes: Some(method::error::ProbesDocument {
                count: 1,
                corpus: blob("corpus"),
                tokenizer: blob("tokenizer"),
                context: 64,
                chunks: 4,
                block: 2,
                evaluator: engine,
            }),
            rounding: Some(method::rounding::RoundingDocument::new(blob("moments"))),
            constraints: method::ConstraintsDocument {
                types: vec!["Q4_K".to_owned(), "Q8_0".to_owned()],
                fuse: vec![Fuse::Attention, Fuse::Experts],
                floors: vec![rule("a", "Q4_K"), rule("b", "Q5_K")],
                ceilings: vec![rule("a", "Q6_K"), rule("b", "Q8_0")],
                keep: vec!["a".to_owned(), "b".to_owned()],
                devices: vec![device("x"), device("y")],
            },
            states: 1000,
            solver: 1,
            form: 1,
            quantizer: engine,
        })))),
        Action::TensorLoss(action::TensorLoss {
            tensor: ActionDigest::of(b"tensor"),
            factors: Some(blob("factors")),
            moments: Some(blob("moments")),
            quantizer: engine,
            form: 1,
        }),
        Action::GradientsBlock(action::GradientsBlock {
            model: blob("model"),
            tokens: blob("tokens"),
            context: 64,
            engine,
            form: 1,
        }),
        Action::Gradients(action::Gradients {
            model: blob("model"),
            tokenizer: blob("tokenizer"),
            corpus: blob("corpus"),
            context: 64,
            chunks: 4,
            block: 2,
            engine,
            form: 1,
        }),
        Action::TensorError(action::TensorError {
            tensor: ActionDigest::of(b"tensor"),
            weights: Some(blob("weights")),
            quantizer: engine,
            form: 1,
        }),
        Action::Tensor(action::Tensor {
            source: blob("source"),
            from: "F16".to_owned(),
            dims: vec![256, 64],
            to: "Q4_K".to_owned(),
            weights: Some(blob("weights")),
            quantizer: engine,
        }),
        Action::Promote(action::Promote {
            model: blob("model"),
            metadata: blob("metadata"),
            policy: blob("policy"),
            slices: Some(blob("slices")),
            imatrix: BTreeMap::from([("dataset".to_owned(), "calibration".to_owned())]),
            allow_requantize: false,
            quantizer: engine,
            writer: 1,
            rounding: Some(method::rounding::RoundingDocument::new(blob("moments"))),
        }),
        Action::ReferenceBlock(action::ReferenceBlock {
            model: blob("model"),
            tokens: blob("tokens"),
            context: 64,
            codec: 1,
            engine,
        }),
        Action::EvalBlock(action::EvalBlock {
            candidate: blob("candidate"),
            reference: Some(ActionDigest::of(b"reference")),
            tokens: blob("tokens"),
            context: 64,
            codec: 1,
            engine,
        }),
        Action::Eval(action::Eval {
            candidate: blob("candidate"),
            reference: Some(blob("reference")),
            tokenizer: blob("tokenizer"),
            corpus: blob("corpus"),
            context: 64,
            chunks: Some(2),
            block: 1,
            bootstrap: 1000,
            seed: 0,
            codec: 1,
            engine,
        }),
        Action::Overlap(action::Overlap {
            evaluation: vec![blob("1"), blob("2")],
            calibration: vec![blob("3"), blob("4")],
            rules: 1,
        }),
        Action::Metrics(action::Metrics {
            recipe: "small".to_owned(),
            rows: vec![row("x"), row("y")],
            table: 1,
        }),
        Action::Gate(action::Gate {
            rows: vec![row("x"), row("y")],
            baseline: vec![row("z")],
            require: vec!["kld_mean < 1".to_owned(), "bytes < 5".to_owned()],
            confidence: 950_000,
            bootstrap: 1000,
            seed: 0,
        }),
    ]
}

/// Fails to compile where a kind is new: it needs a sample.
fn kind_number(action: &Action) -> usize {
    match action {
        Action::InspectModel(_) => 0,
        Action::Corpus(_) => 1,
        Action::Tokens(_) => 2,
        Action::ImatrixBlock(_) => 3,
        Action::ImatrixCollect(_) => 4,
        Action::ImatrixMerge(_) => 5,
        Action::ImatrixImport(_) => 6,
        Action::Join(_) => 7,
        Action::Policy(_) => 8,
        Action::Tensor(_) => 9,
        Action::Promote(_) => 10,
        Action::ReferenceBlock(_) => 11,
        Action::EvalBlock(_) => 12,
        Action::Eval(_) => 13,
        Action::Metrics(_) => 14,
        Action::Gate(_) => 15,
        Action::TensorError(_) => 16,
        Action::Overlap(_) => 17,
        Action::ImatrixMoments(_) => 18,
        Action::WeightInputs(_) => 19,
        Action::MomentsBlock(_) => 20,
        Action::MomentsSum(_) => 21,
        Action::Moments(_) => 22,
        Action::RefinedTensor(_) => 23,
        Action::GradientsBlock(_) => 24,
        Action::Gradients(_) => 25,
        Action::TensorLoss(_) => 26,
    }
}

/// Other values that might stand in the place of one.
fn others(value: &Json) -> Vec<Json> {
    let words = [
        "per-file",
        "joined",
        "sum",
        "mean",
        "max",
        "warn",
        "fail",
        "other",
        "bytes",
        "millionths-of-bits",
        "attention",
        "feed-forward",
        "gate",
        "up",
        "energy",
        "contrast",
    ]
    .map(Json::from);
    match value {
        Json::Bool(flag) => vec![Json::from(!flag)],
        Json::Number(number) => vec![Json::from(number.as_u64().unwrap() + 1), Json::Null],
        Json::String(text) => {
            // A digest with another digit, and one with another length; a word; nothing.
            let digit = if text.starts_with('0') { '1' } else { '0' };
            let flipped = format!("{digit}{}", text.get(1..).unwrap_or_default());
            let mut all = vec![Json::from(flipped), Json::from(format!("{text}1")), Json::Null];
            all.extend(words);
            all
        }
        Json::Array(items) => {
            let mut more = items.clone();
            more.extend(items.first().cloned());
            let fewer = items[..items.len().saturating_sub(1)].to_vec();
            let turned: Vec<Json> = items.iter().rev().cloned().collect();
            vec![Json::from(more), Json::from(fewer), Json::from(turned)]
        }
        Json::Object(_) | Json::Null => Vec::new(),
    }
}

/// Returns the JSON pointers of everything in a document.
fn pointers(value: &Json, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Json::Object(fields) => fields
            .iter()
            .for_each(|(name, value)| pointers(value, &format!("{at}/{name}"), found)),
        Json::Array(items) => items
            .iter()
            .enumerate()
            .for_each(|(index, value)| pointers(value, &format!("{at}/{index}"), found)),
        _ => {}
    }
}

#[test]
fn every_field_of_every_action_is_part_of_its_key() {
    let samples = samples();
    let kinds: BTreeSet<usize> = samples.iter().map(kind_number).collect();
    assert_eq!(kinds, (0..27).collect());
    let mut digests = BTreeSet::new();
    for sample in &samples {
        let document = sample.document();
        assert_eq!(&Action::parse(&document).unwrap(), sample);
        assert!(digests.insert(sample.digest()), "{}", sample.kind());
        let value: Json = serde_json::from_slice(&document).unwrap();
        let mut all = Vec::new();
        pointers(&value["inputs"], "/inputs", &mut all);
        let mut changed = 0;
        for pointer in all {
            let here = value.pointer(&pointer).unwrap();
            // The name of a method, and the kind of a part of it, decides which fields there are; each has a sample.
            if here.is_object() || pointer == "/inputs/method/name" || pointer.ends_with("/kind") {
                continue;
            }
            let mut understood = 0;
            for other in others(here) {
                if other == *here {
                    continue;
                }
                let mut edited = value.clone();
                *edited.pointer_mut(&pointer).unwrap() = other.clone();
                let Ok(action) = Action::parse(&serde_json::to_vec(&edited).unwrap()) else {
                    continue;
                };
                understood += 1;
                assert_ne!(
                    action.digest(),
                    sample.digest(),
                    "{} {pointer} = {other}",
                    sample.kind()
                );
                // However a document was written, its key is that of its one canonical form.
                let again: Json = serde_json::from_slice(&action.document()).unwrap();
                assert_eq!(again, edited, "{} {pointer}", sample.kind());
                assert_eq!(Action::parse(&action.document()).unwrap(), action);
            }
            assert!(
                understood > 0,
                "{} {pointer}: no other value is understood",
                sample.kind()
            );
            changed += 1;
        }
        assert!(changed > 0);
        // No field is dropped on reading: one that is absent is refused, or reads as absent and counts as such.
        for name in value["inputs"].as_object().unwrap().keys() {
            let mut edited = value.clone();
            edited["inputs"].as_object_mut().unwrap().remove(name);
            if let Ok(action) = Action::parse(&serde_json::to_vec(&edited).unwrap()) {
                assert_ne!(action.digest(), sample.digest(), "{} without {name}", sample.kind());
            }
        }
        assert!(!String::from_utf8(document).unwrap().contains(['.', ' ']) || kind_number(sample) == 15);
    }
}

#[test]
fn white_space_and_order_of_a_document_do_not_matter() {
    for sample in samples() {
        let value: Json = serde_json::from_slice(&sample.document()).unwrap();
        let spaced = serde_json::to_vec_pretty(&value).unwrap();
        assert_ne!(spaced, sample.document());
        assert_eq!(Action::parse(&spaced).unwrap().digest(), sample.digest());
    }
}
