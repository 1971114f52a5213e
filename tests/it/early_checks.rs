//! What would make a build fail is found before any action runs: `forge check`, `forge plan` and `forge build` refuse the same
//! recipes, and report everything that is wrong with one at once.

use forge::gguf::Value;

use crate::quick_project;
use crate::small_model;
use crate::small_model::InMemory;
use crate::support::Forge;
use crate::support::Run;

/// A model, two texts, and sections that cases add to.
const HEAD: &str = "schema = 1\nname = \"early\"\n[source.model]\npath = \"small.gguf\"\n\
    [corpus.calibration]\nfiles = [\"prose.txt\"]\n[corpus.held-out]\nfiles = [\"held-out.txt\"]\n\
    [imatrix.general]\ncorpus = \"calibration\"\ncontext = 64\nchunks = 4\n";

const MIX: &str =
    "[policy.mix]\nmethod = \"mix\"\nimatrix = \"general\"\nmix = \"Q4_0\"\n[promote.small]\npolicy = \"mix\"\n";

const EVAL: &str = "[eval.quality]\ncandidates = [\"small\"]\ncorpus = \"held-out\"\ncontext = 64\nchunks = 2\n";

/// A mistake: its name, what makes it (changes files and returns the recipe), and what the report says.
type Mistake = (&'static str, fn(&Forge) -> String, &'static str);

fn recipe(policy: &str) -> String {
    format!("{HEAD}[policy.small]\nimatrix = \"general\"\n{policy}[promote.small]\npolicy = \"small\"\n{EVAL}")
}

fn with_mix() -> String {
    format!("{HEAD}{MIX}{EVAL}")
}

fn with_model(forge: &Forge, change: impl FnOnce(&mut InMemory)) -> String {
    let mut model = InMemory::small();
    change(&mut model);
    model.write(&forge.path("small.gguf"));
    with_mix()
}

/// Makes the source a model whose tensors are Q8_0.
fn quantize_source(forge: &Forge) {
    let other = Forge::new();
    InMemory::small().write(&other.path("small.gguf"));
    other.recipe(
        "schema = 1\nname = \"q\"\n[source.model]\npath = \"small.gguf\"\n[policy.q]\nmethod = \"mix\"\nmix = \"Q8_0\"\n\
         [promote.q]\npolicy = \"q\"\n",
    );
    let _ = other.run(&["build"]).success();
    std::fs::copy(other.path("out/q/q.gguf"), forge.path("small.gguf")).unwrap();
}

const MISTAKES: &[Mistake] = &[
    (
        "the model is missing",
        |_| with_mix().replace("small.gguf", "gone.gguf"),
        "gone.gguf",
    ),
    (
        "a text is missing",
        |_| with_mix().replace("held-out.txt", "gone.txt"),
        "gone.txt",
    ),
    (
        "a pattern matches nothing",
        |_| with_mix().replace("prose.txt", "texts/*.txt"),
        "texts/*.txt",
    ),
    (
        "an imatrix file is missing",
        |_| {
            with_mix().replace(
                "[imatrix.general]\ncorpus = \"calibration\"\ncontext = 64\nchunks = 4\n",
                "[source.saved]\npath = \"gone.dat\"\nkind = \"imatrix\"\n[imatrix.general]\nsource = \"saved\"\n",
            )
        },
        "gone.dat",
    ),
    (
        "the model is in safetensors",
        |forge| {
            let mut bytes = 64_u64.to_le_bytes().to_vec();
            bytes.extend(b"{\"__metadata__\":{\"format\":\"pt\"}}                              ");
            forge.write("small.gguf", bytes);
            with_mix()
        },
        "convert_hf_to_gguf.py",
    ),
    (
        "the model is a text",
        |_| with_mix().replace("small.gguf", "prose.txt"),
        "prose.txt",
    ),
    (
        "the header of the model is cut",
        |forge| {
            let bytes = std::fs::read(forge.path("small.gguf")).unwrap();
            forge.write("small.gguf", &bytes[..1000]);
            with_mix()
        },
        "small.gguf",
    ),
    (
        "a part of a split model is missing",
        |forge| {
            std::fs::rename(forge.path("small.gguf"), forge.path("m-00001-of-00002.gguf")).unwrap();
            with_mix().replace("small.gguf", "m-00001-of-00002.gguf")
        },
        "m-00002-of-00002.gguf",
    ),
    (
        "the engine does not know the architecture",
        |forge| {
            with_model(forge, |model| {
                model
                    .metadata
                    .set("general.architecture", &Value::String(b"nonesuch".to_vec()))
                    .unwrap();
            })
        },
        "nonesuch",
    ),
    (
        "a text is empty",
        |forge| {
            forge.write("held-out.txt", "");
            with_mix()
        },
        "empty",
    ),
    (
        "a text is not UTF-8",
        |forge| {
            forge.write("prose.txt", b"caf\xe9 au lait");
            with_mix()
        },
        "byte 3 is 0xe9",
    ),
    (
        "a text is no text",
        |_| with_mix().replace("prose.txt", "small.gguf"),
        "it is not a text file",
    ),
    (
        "the calibration text is shorter than a chunk",
        |forge| {
            forge.write("prose.txt", "Once upon a time.");
            with_mix()
        },
        "the text of `corpus.calibration` is too short",
    ),
    (
        "the evaluation text has one chunk",
        |forge| {
            forge.write("held-out.txt", "Once upon a time there was a fox. ".repeat(10));
            with_mix()
        },
        "the text of `corpus.held-out` is too short",
    ),
    (
        "the text of a measured policy is shorter than a chunk",
        |forge| {
            forge.write("other.txt", "Once upon a time.");
            let more = "[corpus.other]\nfiles = [\"other.txt\"]\n";
            recipe("method = \"measured\"\ncorpus = \"other\"\nbudget = \"8 bpw\"\n") + more
        },
        "the text of `corpus.other` is too short",
    ),
    (
        "an evaluation of one chunk",
        |_| with_mix().replace("chunks = 2", "chunks = 1"),
        "confidence intervals",
    ),
    (
        "the source is quantized",
        |forge| {
            quantize_source(forge);
            with_mix()
        },
        "allow_requantize",
    ),
    (
        "the source has the type already",
        |forge| {
            quantize_source(forge);
            with_mix().replace("\"Q4_0\"", "\"Q8_0\"")
        },
        "allow_requantize",
    ),
    (
        "a measured policy would quantize a quantized source",
        |forge| {
            quantize_source(forge);
            recipe("method = \"measured\"\ncorpus = \"calibration\"\ncontext = 64\nbudget = \"8 bpw\"\n")
        },
        "allow_requantize",
    ),
    (
        "a budget below the smallest file",
        |_| recipe("method = \"prior\"\nbudget = \"1 bpw\"\n"),
        "budget",
    ),
    (
        "a budget of `measured` below the smallest file",
        |_| recipe("method = \"measured\"\ncorpus = \"calibration\"\ncontext = 64\nbudget = \"100 KiB\"\n"),
        "budget",
    ),
    (
        "a budget of `ashq1` below the smallest file",
        |_| recipe("method = \"ashq1\"\nbudget = \"2 bpw\"\n"),
        "budget",
    ),
    (
        "a budget of `density` below the smallest file",
        |_| recipe("method = \"density\"\nbudget = \"4 bpw\"\nbase = \"Q4_K\"\npromotion = \"Q8_0\"\n"),
        "budget",
    ),
    (
        "a type that needs an imatrix, without one",
        |_| {
            recipe("method = \"manual\"\nrules = [{ match = \"ffn\", type = \"IQ2_XXS\" }]\notherwise = \"Q8_0\"\n")
                .replace("[policy.small]\nimatrix = \"general\"\n", "[policy.small]\n")
        },
        "imatrix",
    ),
    (
        "layers that the model does not have",
        |_| recipe("method = \"boost\"\nmix = \"Q4_0\"\npromotion = \"Q8_0\"\nlayers = [7]\n"),
        "layer",
    ),
    (
        "the memory of a device is too small",
        |_| {
            recipe(
                "method = \"prior\"\nbudget = \"8 bpw\"\n[policy.small.device.gpu]\ntensors = [\"ffn\"]\nmemory = \"1 KiB\"\n",
            )
        },
        "gpu",
    ),
    (
        "a bad `forge.toml`",
        |forge| {
            forge.write("forge.toml", "cache_dirr = \"x\"\n");
            with_mix()
        },
        "cache_dirr",
    ),
    (
        "an engine that does not exist",
        |_| with_mix().replace("name = \"early\"", "name = \"early\"\nengine = \"llama.cp\""),
        "llama.cp",
    ),
    (
        "the output folder is a file",
        |forge| {
            forge.write("out", "not a folder");
            with_mix()
        },
        "output folder",
    ),
];

/// Asserts that no action of a build ran, and returns everything that was said.
fn refused(run: &Run, what: &str) -> String {
    assert!(
        matches!(run.status, Some(1 | 3)),
        "{what}: {:?}\n{}{}",
        run.status,
        run.stdout,
        run.stderr
    );
    assert!(!run.stdout.contains("\"action-finished\""), "{what}: {}", run.stdout);
    format!("{}{}", run.stdout, run.stderr)
}

#[test]
fn mistakes_are_refused_before_any_action_runs() {
    assert!(MISTAKES.len() >= 25);
    let mut wrong = Vec::new();
    for (what, make, says) in MISTAKES {
        let forge = Forge::new();
        small_model::fill(&forge);
        forge.recipe(&make(&forge));
        for args in [
            &["check"][..],
            &["plan"][..],
            &["build", "-j", "1", "--message-format", "json"][..],
        ] {
            let run = forge.run(args);
            if !matches!(run.status, Some(1 | 3)) || !format!("{}{}", run.stdout, run.stderr).contains(says) {
                wrong.push(format!(
                    "{what}, {args:?}: {:?}\n{}{}",
                    run.status, run.stdout, run.stderr
                ));
                continue;
            }
            refused(&run, what);
        }
        assert!(!forge.path("out/early").join("early.gguf").exists());
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        MISTAKES.len(),
        wrong.join("\n")
    );
}

#[test]
fn all_mistakes_of_a_recipe_are_in_one_report() {
    let forge = Forge::new();
    small_model::fill(&forge);
    forge.write("prose.txt", "Once upon a time.");
    forge.write("held-out.txt", b"caf\xe9");
    forge.recipe(&format!(
        "{HEAD}{MIX}{EVAL}[policy.best]\nmethod = \"prior\"\nbudget = \"1 bpw\"\n[promote.best]\npolicy = \"best\"\n\
         [source.saved]\npath = \"gone.dat\"\nkind = \"imatrix\"\n[imatrix.saved]\nsource = \"saved\"\n"
    ));
    for verb in ["check", "plan", "build"] {
        let said = refused(&forge.run(&[verb]), verb);
        assert_eq!(said.matches("not UTF-8").count(), 1, "{verb}: {said}");
        for says in ["gone.dat", "`corpus.calibration` is too short", "0xe9", "budget"] {
            assert!(said.contains(says), "{verb}, {says}: {said}");
        }
    }
}

#[test]
fn recipes_alone_are_checked_without_files() {
    let forge = Forge::new();
    forge.recipe(&with_mix());
    let run = forge.run(&["check", "--no-files"]).success();
    assert!(run.stdout.contains("ok: recipe.toml"), "{}", run.stdout);
    assert!(!forge.store().exists(), "no store was made");
    let run = forge.run(&["check"]);
    assert_eq!(run.status, Some(1), "{}", run.stdout);
}

#[test]
fn what_is_in_the_store_already_is_not_checked_again() {
    let forge = quick_project::project();
    let _ = forge.run(&["build", "-j", "1"]).success();
    let _ = forge.run(&["check"]).success();
    std::fs::remove_file(forge.path("model.gguf")).unwrap();
    let run = forge.run(&["check"]);
    assert!(run.stderr.contains("model.gguf"), "{}", run.stderr);
}
