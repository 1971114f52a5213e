//! `forge init`: which files it finds, how it writes their paths, and what it refuses.

use forge::gguf::Value;
use forge::tensor_type::TensorType;

use crate::one_layer_project;
use crate::one_layer_project::Gguf;
use crate::support::Forge;
use crate::support::Run;

/// Writes the small model and its texts, the held-out one long enough for the chunks of a new recipe.
fn furnish(forge: &Forge) {
    one_layer_project::furnish(forge);
    let held_out = std::fs::read_to_string(crate::support::quickstart().join("held-out.txt")).unwrap();
    forge.write("held-out.txt", held_out.chars().take(8000).collect::<String>());
}

/// Returns the paths in a recipe: of the model, of the calibration text, of the held-out text.
fn paths(forge: &Forge, recipe: &str) -> (String, Vec<String>, Vec<String>) {
    let text = std::fs::read_to_string(forge.path(recipe)).unwrap();
    let recipe: toml::Table = text.parse().unwrap();
    let files = |corpus: &str| -> Vec<String> {
        let files = recipe["corpus"]
            .get(corpus)
            .map(|corpus| corpus["files"].as_array().unwrap().clone());
        let files = files.unwrap_or_default();
        files.iter().map(|file| file.as_str().unwrap().to_owned()).collect()
    };
    let model = recipe["source"]["model"]["path"].as_str().unwrap().to_owned();
    (model, files("calibration"), files("held-out"))
}

/// Checks a refusal: the status, the parts of the message, and that nothing was written.
fn refused(forge: &Forge, args: &[&str], parts: &[&str]) {
    let names = crate::small_model::names(forge.dir());
    let run = forge.run(args).status(2);
    for part in parts {
        assert!(run.stderr.contains(part), "{args:?}: `{part}` in {}", run.stderr);
    }
    assert_eq!(
        crate::small_model::names(forge.dir()),
        names,
        "{args:?} wrote something"
    );
}

#[test]
fn finds_the_model_and_the_texts_of_the_folder() {
    let forge = Forge::new();
    furnish(&forge);
    forge
        .write("README.txt", "about this folder")
        .write("notes.pdf", "no text");
    let run = forge.run(&["init"]).success();
    assert_eq!(
        paths(&forge, "recipe.toml"),
        (
            "model.gguf".to_owned(),
            vec!["code.txt".to_owned(), "prose.txt".to_owned()],
            vec!["held-out.txt".to_owned()]
        )
    );
    for part in ["wrote recipe.toml", "code.txt, prose.txt", "`forge build` runs it"] {
        assert!(run.stderr.contains(part), "`{part}` in {}", run.stderr);
    }
    assert!(!run.stderr.contains("warning"), "{}", run.stderr);
    let _ = forge.run(&["plan"]).success();
}

#[test]
fn writes_paths_from_the_new_folder() {
    let forge = Forge::new();
    furnish(&forge);
    let run = forge.run(&["init", "one/two"]).success();
    let (model, corpus, held_out) = paths(&forge, "one/two/recipe.toml");
    assert_eq!(model, "../../model.gguf");
    assert_eq!(corpus, ["../../code.txt", "../../prose.txt"]);
    assert_eq!(held_out, ["../../held-out.txt"]);
    assert!(
        run.stderr.contains("`forge build one/two/recipe.toml`"),
        "{}",
        run.stderr
    );
    let run = forge.run(&["plan", "one/two/recipe.toml"]).success();
    assert!(!run.stdout.contains("error"), "{}", run.stdout);

    // Given paths start from the current folder, and may be patterns.
    let text = |name: &str| -> String {
        let whole = std::fs::read_to_string(crate::support::quickstart().join(name)).unwrap();
        whole.chars().take(8000).collect()
    };
    forge
        .write("texts/[a].txt", text("held-out.txt"))
        .write("three/b.txt", text("calibration-prose.txt"));
    std::fs::copy(forge.path("model.gguf"), forge.path("three/m.gguf")).unwrap();
    let args = [
        "--model",
        "three/m.gguf",
        "--corpus",
        "texts/*.txt",
        "--corpus",
        "three/b.txt",
    ];
    let held_out = ["--held-out", "texts/../texts/[a].txt"];
    let run = forge
        .run(&[&["init", "three"], &args[..], &held_out[..]].concat())
        .success();
    let (model, corpus, held_out) = paths(&forge, "three/recipe.toml");
    assert_eq!(
        (model.as_str(), held_out),
        ("m.gguf", vec!["../texts/[[]a[]].txt".to_owned()])
    );
    assert_eq!(corpus, ["../texts/*.txt", "b.txt"]);
    // The held-out text is one of the calibration texts.
    assert!(run.stderr.contains("warning[init::held-out]"), "{}", run.stderr);
    let run = forge.run(&["plan", "three/recipe.toml"]).status(1);
    assert_eq!(run.stderr.matches("error[").count(), 1, "{}", run.stderr);
    assert!(run.stderr.contains("eval-on-calibration"), "{}", run.stderr);

    // `-C` moves the current folder, and an absolute path that leads elsewhere stays.
    let elsewhere = Forge::new();
    furnish(&elsewhere);
    let model = elsewhere.path("model.gguf").canonicalize().unwrap();
    let args = ["-C", "three", "init", "four", "--corpus", "b.txt", "--model"];
    let _ = forge.run(&[&args[..], &[model.to_str().unwrap()]].concat()).success();
    let (written, corpus, held_out) = paths(&forge, "three/four/recipe.toml");
    assert_eq!(written, model.to_str().unwrap());
    assert_eq!((corpus, held_out), (vec!["../b.txt".to_owned()], vec![]));
    let _ = forge.run(&["plan", "three/four/recipe.toml"]).success();
}

#[test]
fn a_folder_behind_a_link_gets_paths_that_lead_out_of_it() {
    let forge = Forge::new();
    furnish(&forge);
    std::fs::create_dir_all(forge.path("disk/deep")).unwrap();
    std::os::unix::fs::symlink("disk/deep", forge.path("link")).unwrap();
    let _ = forge.run(&["init", "link/new"]).success();
    assert_eq!(paths(&forge, "disk/deep/new/recipe.toml").0, "../../../model.gguf");
    let run = forge.run(&["plan", "link/new/recipe.toml"]).success();
    assert!(!run.stdout.contains("error"), "{}", run.stdout);
}

#[test]
fn prefers_the_new_folder_and_its_folders_of_texts() {
    let forge = Forge::new();
    furnish(&forge);
    std::fs::create_dir(forge.path("new")).unwrap();
    std::fs::rename(forge.path("model.gguf"), forge.path("new/inner.gguf")).unwrap();
    forge
        .write("new/calibration/a.txt", "a")
        .write("new/held-out/b.txt", "b")
        .write("new/stray.txt", "c");
    let _ = forge.run(&["init", "new"]).success();
    assert_eq!(
        paths(&forge, "new/recipe.toml"),
        (
            "inner.gguf".to_owned(),
            vec!["calibration/*.txt".to_owned()],
            vec!["held-out/*.txt".to_owned()]
        )
    );
}

#[test]
fn names_everything_that_is_missing_and_writes_nothing() {
    let forge = Forge::new();
    refused(
        &forge,
        &["init", "new"],
        &[
            "error[init::no-model]",
            "error[init::no-text]",
            "--model FILE",
            "--corpus FILE",
            "`.txt` or `.raw`",
        ],
    );
    furnish(&forge);
    let args = [
        "init",
        "--model",
        "gone.gguf",
        "--corpus",
        "no/*.txt",
        "--held-out",
        "neither.txt",
    ];
    refused(
        &forge,
        &args,
        &[
            "no model `gone.gguf`",
            "no text `no/*.txt`",
            "no text `neither.txt`",
            "--held-out FILE",
        ],
    );
    forge.write("texts/a.txt", "a");
    refused(
        &forge,
        &["init", "--corpus", "texts"],
        &["`texts` is a folder", "--corpus 'texts/*.txt'"],
    );
    refused(
        &forge,
        &["init", "--model", "prose.txt"],
        &["`prose.txt` is a text file, not a model"],
    );
    // A text for evaluation only is none to calibrate on.
    let alone = Forge::new();
    alone
        .write("model.gguf", Gguf::small().bytes())
        .write("held-out.txt", "x");
    refused(
        &alone,
        &["init"],
        &["no calibration text", "held-out.txt is for evaluation"],
    );
}

#[test]
fn several_models_are_listed() {
    let forge = Forge::new();
    furnish(&forge);
    std::fs::copy(forge.path("model.gguf"), forge.path("other.GGUF")).unwrap();
    refused(
        &forge,
        &["init"],
        &["2 models", "`model.gguf` and `other.GGUF`", "--model FILE"],
    );
    let _ = forge.run(&["init", "--model", "other.GGUF"]).success();
    assert_eq!(paths(&forge, "recipe.toml").0, "other.GGUF");
}

#[test]
fn parts_of_a_model_and_files_beside_it_are_not_models() {
    let forge = Forge::new();
    furnish(&forge);
    let mut projector = Gguf::small();
    projector.set("general.architecture", Value::String(b"clip".to_vec()));
    let mut adapter = Gguf::small();
    adapter.set("general.type", Value::String(b"adapter".to_vec()));
    forge
        .write("vision.gguf", projector.bytes())
        .write("mmproj-model-BF16.gguf", Gguf::small().bytes())
        .write("mtp-model.gguf", Gguf::small().bytes())
        .write("lora.gguf", adapter.bytes())
        .write("broken.gguf", b"GGUF\x03");
    let _ = forge.run(&["init"]).success();
    assert_eq!(paths(&forge, "recipe.toml").0, "model.gguf");

    // With no model, the error says what the others are.
    std::fs::remove_file(forge.path("recipe.toml")).unwrap();
    std::fs::rename(forge.path("model.gguf"), forge.path("model.bin")).unwrap();
    refused(
        &forge,
        &["init"],
        &[
            "multimodal projector",
            "goes with a model",
            "type `adapter`",
            "damaged GGUF",
        ],
    );
    refused(
        &forge,
        &["init", "--model", "vision.gguf"],
        &["is a multimodal projector (mmproj), not a model"],
    );
    // The content decides, not the ending, where the user names the file.
    let _ = forge.run(&["init", "--model", "model.bin"]).success();
    assert_eq!(paths(&forge, "recipe.toml").0, "model.bin");
}

#[test]
fn the_first_part_of_a_split_model_is_the_model() {
    let forge = Forge::new();
    furnish(&forge);
    let [first, second] = Gguf::small().halves(3);
    std::fs::remove_file(forge.path("model.gguf")).unwrap();
    forge
        .write("big-00001-of-00002.gguf", first)
        .write("big-00002-of-00002.gguf", second);
    let _ = forge.run(&["init"]).success();
    assert_eq!(paths(&forge, "recipe.toml").0, "big-00001-of-00002.gguf");
    let _ = forge
        .run(&["init", "new", "--model", "big-00002-of-00002.gguf"])
        .success();
    assert_eq!(paths(&forge, "new/recipe.toml").0, "../big-00001-of-00002.gguf");
    // A part is missing: nothing to begin with.
    std::fs::remove_file(forge.path("recipe.toml")).unwrap();
    std::fs::remove_file(forge.path("big-00001-of-00002.gguf")).unwrap();
    refused(&forge, &["init"], &["no model to quantize", "big-00002-of-00002.gguf"]);
    refused(
        &forge,
        &["init", "--model", "big-00002-of-00002.gguf"],
        &["no model `big-00001-of-00002.gguf`"],
    );
}

#[test]
fn a_quantized_model_is_not_chosen_and_is_warned_about() {
    let forge = Forge::new();
    furnish(&forge);
    let _ = forge.run(&["init"]).success();
    let mut quantized = Gguf::small();
    for (spec, bytes) in &mut quantized.tensors {
        if spec.dims.len() == 2 && spec.dims[0] % 32 == 0 {
            spec.ty = TensorType::Q8_0;
            let blocks = spec.dims.iter().product::<u64>() / 32;
            bytes.resize(34 * usize::try_from(blocks).unwrap(), 0);
        }
    }
    forge.write("small-Q8_0.gguf", quantized.bytes());
    std::fs::remove_file(forge.path("recipe.toml")).unwrap();
    let _ = forge.run(&["init"]).success();
    assert_eq!(paths(&forge, "recipe.toml").0, "model.gguf");
    let run = forge.run(&["init", "new", "--model", "small-Q8_0.gguf"]).success();
    assert!(run.stderr.contains("warning[init::quantized]"), "{}", run.stderr);
    assert!(run.stderr.contains("allow_requantize"), "{}", run.stderr);
    std::fs::remove_file(forge.path("model.gguf")).unwrap();
    refused(&forge, &["init", "third"], &["small-Q8_0.gguf` is quantized already"]);
}

#[test]
fn with_one_text_the_recipe_evaluates_nothing_and_says_how_to_get_a_held_out_text() {
    let forge = Forge::new();
    furnish(&forge);
    for name in ["held-out.txt", "code.txt"] {
        std::fs::remove_file(forge.path(name)).unwrap();
    }
    let run = forge.run(&["init"]).success();
    for part in [
        "warning[init::no-held-out]",
        "wiki.test.raw",
        "split -n l/2",
        "[corpus.held-out]",
    ] {
        assert!(run.stderr.contains(part), "`{part}` in {}", run.stderr);
    }
    assert_eq!(paths(&forge, "recipe.toml").2, Vec::<String>::new());
    let checked = forge.run(&["check", "--no-files"]).success();
    assert!(!checked.stderr.contains("warning"), "{}", checked.stderr);
    let lines = forge
        .run(&["init", "json", "--message-format", "json"])
        .success()
        .json_lines();
    assert_eq!(
        (&lines[0]["level"], &lines[1]["reason"]),
        (&"warning".into(), &"initialized".into())
    );

    // Of several texts, none is held out by guess.
    forge.write("more.txt", "more");
    let run = forge.run(&["init", "several"]).success();
    assert!(run.stderr.contains("forge init --held-out FILE"), "{}", run.stderr);
    let run = forge.run(&["init", "chosen", "--held-out", "more.txt"]).success();
    assert!(!run.stderr.contains("warning"), "{}", run.stderr);
    assert_eq!(
        (
            paths(&forge, "chosen/recipe.toml").1,
            paths(&forge, "chosen/recipe.toml").2
        ),
        (vec!["../prose.txt".to_owned()], vec!["../more.txt".to_owned()])
    );
}

#[test]
fn a_folder_of_a_home_and_an_odd_name_survive() {
    let forge = Forge::new();
    furnish(&forge);
    let Run { stderr, .. } = forge.run(&["init", "a [b] c"]).success();
    assert!(stderr.contains("wrote a [b] c/recipe.toml"), "{stderr}");
    let (model, corpus, _) = paths(&forge, "a [b] c/recipe.toml");
    assert_eq!((model.as_str(), corpus[0].as_str()), ("../model.gguf", "../code.txt"));
    // From inside, other folders' names are escaped in patterns.
    std::fs::copy(forge.path("prose.txt"), forge.path("a [b] c/p.txt")).unwrap();
    let _ = forge
        .run(&["init", "d", "--corpus", "a [b] c/p.txt", "--held-out", "held-out.txt"])
        .success();
    let run = forge.run(&["plan", "d/recipe.toml"]).success();
    assert!(!run.stdout.contains("error"), "{}", run.stdout);
}
