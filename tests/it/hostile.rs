//! Manifests, recipes and signatures from somebody who means ill: nothing is written where it may not be, nothing hangs or
//! takes all memory, and what is wrong is said.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use forge::manifest::Manifest;
use serde_json::Value as Json;

use crate::one_layer_project::build_well;
use crate::one_layer_project::project;
use crate::reproduce::forged;
use crate::support::Forge;
use crate::support::Run;

/// More address space than the program and its threads take, and far less than hostile files ask for.
const KIB: u64 = 3 << 20;

/// Runs the program with little memory; one that hangs fails the test.
fn bounded(forge: &Forge, args: &[&str]) -> Run {
    let program = forge.command(&[]).get_program().to_owned();
    let mut child = Command::new("sh")
        .args(["-c", &format!("ulimit -v {KIB}; exec \"$0\" \"$@\"")])
        .arg(program)
        .args(args)
        .current_dir(forge.dir())
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", forge.dir())
        .env("TMPDIR", forge.path("tmp"))
        .env("FORGE_CACHE_DIR", forge.store())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let started = Instant::now();
    // Little is said: the pipes do not fill.
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > Duration::from_mins(1) {
            child.kill().ok();
            panic!("{args:?} hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let run = Run::of(child.wait_with_output().unwrap());
    assert!(!run.stderr.contains("panicked"), "{args:?}: {}", run.stderr);
    assert!(run.status.is_some(), "{args:?} was killed: {}", run.stderr);
    run
}

/// Every name below a folder, links and devices too.
fn names_below(folder: &Path) -> BTreeSet<PathBuf> {
    let mut names = BTreeSet::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
            names.insert(entry.path());
        }
    }
    names
}

/// A built project in a folder below another one, so that what goes up is seen.
fn built() -> Forge {
    let forge = project();
    std::fs::create_dir(forge.path("tmp")).unwrap();
    let _ = forge.run(&["key", "new", "key"]).success();
    let _ = forge.run(&["build", "-j", "1", "--sign", "key"]).success();
    forge
}

fn pipe(path: &Path) {
    let made = Command::new("mkfifo").arg(path).status().unwrap();
    assert!(made.success());
}

#[test]
fn files_that_are_not_manifests_are_rejected_by_every_command() {
    let forge = built();
    let good = std::fs::read(forge.path("out/small/a.gguf.manifest.json")).unwrap();
    let text = String::from_utf8(good.clone()).unwrap();
    let folder = forge.path("hostile");
    std::fs::create_dir(&folder).unwrap();
    let mut names = Vec::new();
    let mut put = |name: &str, bytes: &[u8]| {
        std::fs::write(folder.join(format!("{name}.gguf.manifest.json")), bytes).unwrap();
        names.push(name.to_owned());
    };
    put("empty", b"");
    put("nul", &[0; 100]);
    put("text", b"hello");
    put("null", b"null");
    put("array", b"[]");
    put("object", b"{}");
    put("not-utf8", &[&good[..200], b"\xff\xfe", &good[200..]].concat());
    put("torn", &good[..good.len() / 2]);
    put("twice", &[&good[..], &good[..]].concat());
    put("deep", &b"[".repeat(1_000_000));
    put(
        "deep-inside",
        text.replacen(
            "\"actions\": {",
            &format!("\"actions\": {{\"a\":{}", "[".repeat(100_000)),
            1,
        )
        .as_bytes(),
    );
    put("many", format!("[{}0]", "0,".repeat(20 << 20)).as_bytes());
    let wide: Vec<String> = (0..500_000).map(|at| format!("\"{at}\":0,")).collect();
    put("wide", format!("{{{}\"a\":0}}", wide.concat()).as_bytes());
    put("long", &vec![b' '; (64 << 20) + 1]);
    put("long-text", format!("\"{}\"", "a".repeat(60 << 20)).as_bytes());
    put(
        "number",
        text.replacen("\"start\": ", "\"start\": -1e999, \"x\": ", 1).as_bytes(),
    );
    put("types", text.replacen("\"subject\": [", "\"subject\": {", 1).as_bytes());
    put(
        "field-twice",
        text.replacen("\"_type\"", "\"_type\": \"x\", \"_type\"", 1).as_bytes(),
    );
    put(
        "nul-in-name",
        text.replacen("\"a.gguf\"", "\"a\\u0000.gguf\"", 1).as_bytes(),
    );
    put(
        "up-in-name",
        text.replacen("\"a.gguf\"", "\"../../a.gguf\"", 1).as_bytes(),
    );
    std::fs::create_dir(folder.join("folder.gguf.manifest.json")).unwrap();
    symlink("/dev/zero", folder.join("zero.gguf.manifest.json")).unwrap();
    symlink("/dev/full", folder.join("full.gguf.manifest.json")).unwrap();
    symlink("loop.gguf.manifest.json", folder.join("loop.gguf.manifest.json")).unwrap();
    symlink("/nowhere", folder.join("broken.gguf.manifest.json")).unwrap();
    pipe(&folder.join("pipe.gguf.manifest.json"));
    names.extend(["folder", "zero", "full", "loop", "broken", "pipe"].map(str::to_owned));
    let before = names_below(forge.dir());
    for name in &names {
        let path = format!("hostile/{name}.gguf.manifest.json");
        let verify = bounded(&forge, &["verify", &path, "-j", "1"]);
        assert_eq!(verify.status, Some(1), "{name}: {}{}", verify.stdout, verify.stderr);
        assert!(
            verify.stdout.len() + verify.stderr.len() < 20_000,
            "{name} is repeated at length"
        );
        let reproduce = bounded(&forge, &["reproduce", &path, "--out", "made", "-j", "1"]);
        assert_eq!(reproduce.status, Some(1), "{name}: {}", reproduce.stderr);
        assert!(reproduce.stderr.contains(name.as_str()), "{name}: {}", reproduce.stderr);
        assert!(reproduce.stderr.len() < 20_000, "{name} is repeated at length");
        if ["nul-in-name", "up-in-name"].contains(&name.as_str()) {
            // These are manifests, and may be signed: what they say is another matter.
            continue;
        }
        let sign = bounded(&forge, &["sign", &path, "--key", "key"]);
        assert!(matches!(sign.status, Some(1 | 3)), "{name}: {}", sign.stderr);
        let bundle = bounded(&forge, &["bundle", &path, "-o", "bundle"]);
        assert_eq!(bundle.status, Some(1), "{name}: {}", bundle.stderr);
    }
    assert_eq!(names_below(forge.dir()), before, "nothing was written");
}

#[test]
fn paths_in_manifests_are_only_read_never_written() {
    let forge = built();
    let path = forge.path("out/small/a.gguf.manifest.json");
    let out = forge.path("out/small/evil.gguf.manifest.json");
    // A recipe with paths that lead away: they are hints. What they name here is nothing, or is not what was hashed.
    let away = |from: &str, to: &str| -> Manifest {
        forged(&path, |manifest| {
            let parameters = &mut manifest.predicate.build_definition.external_parameters;
            assert!(parameters.recipe_toml.contains(from), "{}", parameters.recipe_toml);
            parameters.recipe_toml = parameters.recipe_toml.replace(from, to);
            let parsed =
                forge::recipe::parse_alone(&forge::text::Source::new("it", parameters.recipe_toml.as_str())).unwrap();
            parameters.recipe_toml = parsed.recipe.to_toml();
            parameters.recipe = serde_json::to_value(&parsed.recipe).unwrap();
        })
    };
    for to in [
        "/etc/passwd",
        "../../../../../../etc/shadow",
        "/dev/zero",
        "/dev/stdin",
        "/proc/self/mem",
        "pipe",
        "loop",
        "folder",
    ] {
        if to == "pipe" {
            pipe(&forge.path("pipe"));
            symlink("loop", forge.path("loop")).unwrap();
            std::fs::create_dir(forge.path("folder")).unwrap();
        }
        for from in ["\"model.gguf\"", "\"prose.txt\""] {
            let manifest = away(from, &format!("{to:?}"));
            std::fs::write(&out, manifest.to_bytes().unwrap()).unwrap();
            let before = names_below(forge.dir());
            let empty = forge.path("tmp");
            let run = bounded(
                &forge,
                &[
                    "-C",
                    empty.to_str().unwrap(),
                    "reproduce",
                    "../out/small/evil.gguf.manifest.json",
                    "-j",
                    "1",
                ],
            );
            // A source is also searched for by its name in the folder that the recipe names.
            let beside = !to.contains('/');
            assert_eq!(
                run.status,
                Some(if beside { 0 } else { 3 }),
                "{from} {to}: {}{}",
                run.stdout,
                run.stderr
            );
            assert_eq!(run.stdout.contains("missing  "), !beside, "{from} {to}: {}", run.stdout);
            assert_eq!(names_below(forge.dir()), before, "{from} {to}");
            // Found elsewhere, the same candidate comes out: links to sources go into a folder of ours alone.
            let run = bounded(
                &forge,
                &[
                    "reproduce",
                    "out/small/evil.gguf.manifest.json",
                    "--search",
                    ".",
                    "-j",
                    "1",
                ],
            );
            assert_eq!(run.status, Some(0), "{from} {to}: {}{}", run.stdout, run.stderr);
            assert!(run.stdout.contains("identical"), "{from} {to}: {}", run.stdout);
            assert_eq!(names_below(forge.dir()), before, "{from} {to}");
        }
    }
}

/// An edit of a manifest that may pass as one.
type Edit = fn(&mut Json);

#[test]
fn names_that_leave_the_output_folder_are_rejected() {
    let forge = built();
    let bytes = std::fs::read(forge.path("out/small/a.gguf.manifest.json")).unwrap();
    let out = forge.path("out/small/evil.gguf.manifest.json");
    let parameters = "/predicate/buildDefinition/externalParameters";
    let source = "/predicate/buildDefinition/resolvedDependencies/0";
    let edits: &[(String, Edit)] = &[
        (format!("{source}/name"), |it| *it = "../../../evil".into()),
        (format!("{source}/name"), |it| *it = "/tmp/evil".into()),
        (format!("{source}/name"), |it| *it = "..".into()),
        (format!("{source}/name"), |it| *it = "".into()),
        (format!("{source}/name"), |it| *it = "a\0b".into()),
        (format!("{source}/name"), |it| *it = "a\\..\\b".into()),
        (format!("{source}/annotations/bytes"), |it| {
            *it = "18446744073709551615".into();
        }),
        (format!("{source}/annotations/node"), |it| *it = "source.nobody".into()),
        (format!("{parameters}/step"), |it| *it = "promote.../../evil".into()),
        (format!("{parameters}/step"), |it| *it = "promote./etc/evil".into()),
        (format!("{parameters}/step"), |it| *it = "eval.quality/a".into()),
        (format!("{parameters}/recipeToml"), |it| {
            *it = it
                .as_str()
                .unwrap()
                .replace("name = \"small\"", "name = \"../evil\"")
                .into();
        }),
        (format!("{parameters}/recipeToml"), |it| {
            *it = it
                .as_str()
                .unwrap()
                .replace("[promote.a]", "[promote.\"../evil\"]")
                .into();
        }),
        (format!("{parameters}/recipeToml"), |it| {
            *it = "extends = \"/etc/passwd\"\nschema = 1\nname = \"x\"\n".into();
        }),
        (format!("{parameters}/recipeToml"), |it| {
            *it = "a = [".repeat(100_000).into();
        }),
        ("/predicate/forge/tensors/0/name".to_owned(), |it| {
            *it = "../evil\u{1b}[2J".into();
        }),
        ("/predicate/forge/tensors/0/start".to_owned(), |it| {
            *it = u64::MAX.into();
        }),
        ("/predicate/forge/tensors/0/dims".to_owned(), |it| {
            *it = serde_json::json!([u64::MAX, u64::MAX]);
        }),
        ("/predicate/forge/tensors/0/dims".to_owned(), |it| {
            *it = Json::Array(vec![1.into(); 100_000]);
        }),
    ];
    for (at, (pointer, edit)) in edits.iter().enumerate() {
        let mut manifest: Json = serde_json::from_slice(&bytes).unwrap();
        edit(manifest.pointer_mut(pointer).unwrap());
        let manifest: Manifest = serde_json::from_value(manifest).unwrap();
        std::fs::write(&out, manifest.to_bytes().unwrap()).unwrap();
        let before = names_below(forge.dir());
        let run = bounded(
            &forge,
            &[
                "reproduce",
                "out/small/evil.gguf.manifest.json",
                "--search",
                ".",
                "-j",
                "1",
            ],
        );
        assert_eq!(run.status, Some(1), "{at} {pointer}: {}", run.stderr);
        assert!(
            run.stderr.contains("contradicts itself"),
            "{at} {pointer}: {}",
            run.stderr
        );
        let verify = bounded(&forge, &["verify", "out/small/evil.gguf.manifest.json"]);
        assert_eq!(verify.status, Some(1), "{at} {pointer}");
        assert!(
            !verify.stdout.contains('\u{1b}') && !run.stderr.contains('\u{1b}'),
            "{at}: the terminal is steered"
        );
        assert_eq!(names_below(forge.dir()), before, "{at} {pointer}");
    }
}

#[test]
fn links_devices_and_pipes_are_rejected_as_outputs() {
    let forge = built();
    // What stands where the output or the signatures should be.
    let manifest = std::fs::read(forge.path("out/small/a.gguf.manifest.json")).unwrap();
    std::fs::create_dir(forge.path("odd")).unwrap();
    for (name, to) in [
        ("zero", "/dev/zero"),
        ("loop", "loop.gguf"),
        ("up", "../out"),
        ("broken", "/nowhere"),
    ] {
        symlink(to, forge.path(&format!("odd/{name}.gguf"))).unwrap();
        forge.write(&format!("odd/{name}.gguf.manifest.json"), &manifest);
    }
    pipe(&forge.path("odd/pipe.gguf"));
    forge.write("odd/pipe.gguf.manifest.json", &manifest);
    for name in ["zero", "loop", "up", "broken", "pipe"] {
        let run = bounded(&forge, &["verify", &format!("odd/{name}.gguf.manifest.json")]);
        assert_eq!(run.status, Some(1), "{name}: {}", run.stdout);
        assert!(run.stdout.contains("output: "), "{name}: {}", run.stdout);
    }
    let run = bounded(&forge, &["verify", "odd"]);
    assert_eq!(run.status, Some(1));
    // A link in the place of the signatures is replaced, not followed.
    forge.write("precious", "mine");
    let signatures = forge.path("odd/zero.gguf.manifest.json.sig.json");
    symlink(forge.path("precious"), &signatures).unwrap();
    let run = bounded(&forge, &["sign", "odd/zero.gguf.manifest.json", "--key", "key"]);
    assert_eq!(run.status, Some(1), "what is there is no envelope: {}", run.stderr);
    assert_eq!(std::fs::read(forge.path("precious")).unwrap(), b"mine");
    std::fs::remove_file(&signatures).unwrap();
    pipe(&signatures);
    for args in [
        &["sign", "odd/zero.gguf.manifest.json", "--key", "key"][..],
        &["verify", "out/small/a.gguf", "--key", "odd/pipe.gguf"],
        &["verify", "out/small/a.gguf", "--key", "/dev/zero"],
        &["sign", "out/small/a.gguf", "--key", "odd/pipe.gguf"],
        &["key", "show", "odd"],
    ] {
        let run = bounded(&forge, args);
        assert_eq!(run.status, Some(3), "{args:?}: {}", run.stderr);
    }
    // Hostile envelopes.
    let good = std::fs::read(forge.path("out/small/a.gguf.manifest.json.sig.json")).unwrap();
    let place = forge.path("out/small/a.gguf.manifest.json.sig.json");
    for bytes in [
        b"[".repeat(1_000_000),
        b"{}".to_vec(),
        b"\xff".to_vec(),
        format!(
            "{{\"payload\":\"\",\"payloadType\":\"x\",\"signatures\":[{}]}}",
            "{\"sig\":\"\"},".repeat(1000).trim_end_matches(',')
        )
        .into_bytes(),
        [&good[..], b"{}"].concat(),
        vec![b' '; 200 << 20],
    ] {
        std::fs::write(&place, bytes).unwrap();
        let run = bounded(&forge, &["verify", "out/small/a.gguf", "--key", "key.pub"]);
        assert_eq!(run.status, Some(1), "{}{}", run.stdout, run.stderr);
        assert!(run.stdout.contains("signature"), "{}", run.stdout);
    }
}

#[test]
fn recipes_that_name_devices_or_pipes_do_not_block() {
    let forge = project();
    std::fs::create_dir(forge.path("tmp")).unwrap();
    pipe(&forge.path("pipe"));
    symlink("/dev/zero", forge.path("zero")).unwrap();
    symlink("loop", forge.path("loop")).unwrap();
    for to in [
        "/dev/zero",
        "zero",
        "loop",
        "/dev/null",
        "../../../../../../dev/zero",
        "/proc/self/mem",
        ".",
    ] {
        for from in ["\"model.gguf\"", "\"prose.txt\""] {
            forge.recipe(&crate::one_layer_project::RECIPE.replace(from, &format!("{to:?}")));
            let run = bounded(&forge, &["build", "-j", "1"]);
            assert!(
                matches!(run.status, Some(1 | 3)),
                "{from} {to}: {:?} {}",
                run.status,
                run.stderr
            );
            assert!(run.stderr.contains("error"), "{from} {to}: {}", run.stderr);
            let run = bounded(&forge, &["lock"]);
            assert!(matches!(run.status, Some(1 | 3)), "{from} {to}: {}", run.stderr);
            assert!(!forge.path("recipe.lock").exists());
        }
    }
    forge.recipe(crate::one_layer_project::RECIPE);
    build_well(&forge, &[]);
    for lock in ["zero", "pipe", "loop", "tmp"] {
        let run = bounded(&forge, &["build", "--frozen", "--lock", lock]);
        assert!(matches!(run.status, Some(1 | 3)), "{lock}: {}", run.stderr);
    }
}
