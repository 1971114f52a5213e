//! `forge verify`, `sign`, `key` and `bundle`: every byte of outputs, manifests and signatures counts.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use forge::manifest::Manifest;
use forge::sign::Envelope;
use forge::sign::PublicKey;
use forge::sign::SecretKey;
use forge::verify;
use forge::verify::Part;
use forge::verify::Problem;
use forge::verify::Target;
use serde_json::Value as Json;

use crate::one_layer_project::build_well;
use crate::one_layer_project::project;
use crate::reproduce::forged;
use crate::small_model::Random;
use crate::support::Forge;

/// The small project, built, signed by `key`.
fn signed() -> Forge {
    let forge = project();
    let _ = forge.run(&["key", "new", "key"]).success();
    let _ = forge.run(&["build", "-j", "1", "--sign", "key"]).success();
    forge
}

fn target(forge: &Forge, name: &str) -> Target {
    Target::of_output(&forge.path(&format!("out/small/{name}.gguf")))
}

fn problems(target: &Target, keys: &[PublicKey]) -> Vec<Problem> {
    verify::verify(target, keys, &|_| {}).problems
}

fn flip(path: &Path, at: usize, bit: u32) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1 << bit;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn valid_outputs_are_verified_by_any_of_their_names() {
    let forge = signed();
    for args in [
        &["verify"][..],
        &["verify", "recipe.toml", "--key", "key.pub"],
        &["verify", "out", "--key", "key"],
        &[
            "verify",
            "out/small/a.gguf",
            "out/small/b.gguf.manifest.json",
            "--key",
            "key.pub",
        ],
        &[
            "verify",
            "out/small/a.gguf.manifest.json.sig.json",
            "out/small/b.gguf",
            "-j",
            "1",
        ],
    ] {
        let run = forge.run(args).success();
        assert_eq!(run.stdout.matches("good  ").count(), 2, "{args:?}: {}", run.stdout);
        assert!(run.stderr.ends_with("forge: 2 good, 0 bad\n"), "{}", run.stderr);
    }
    let lines = forge
        .run(&["verify", "out/small", "--key", "key.pub", "--message-format", "json"])
        .success()
        .json_lines();
    assert_eq!(lines.len(), 2);
    let model = forge::gguf::Model::open(&forge.path("out/small/a.gguf")).unwrap();
    assert_eq!(lines[0]["tensors"], model.tensors().len());
    assert_eq!((&lines[0]["keys"], &lines[0]["good"]), (&1.into(), &true.into()));

    // A renamed pair is as good; an output without a manifest is not, nor is a manifest without an output.
    std::fs::create_dir(forge.path("moved")).unwrap();
    for suffix in ["", ".manifest.json", ".manifest.json.sig.json"] {
        std::fs::copy(
            forge.path(&format!("out/small/a.gguf{suffix}")),
            forge.path(&format!("moved/best.gguf{suffix}")),
        )
        .unwrap();
    }
    let run = forge.run(&["verify", "moved", "--key", "key.pub"]).success();
    assert!(run.stdout.contains("renamed from `a.gguf`"), "{}", run.stdout);
    std::fs::remove_file(forge.path("moved/best.gguf.manifest.json")).unwrap();
    let run = forge.run(&["verify", "moved"]).status(1);
    assert!(run.stdout.contains("best.gguf.manifest.json`"), "{}", run.stdout);
    std::fs::remove_file(forge.path("out/small/b.gguf")).unwrap();
    let run = forge.run(&["verify"]).status(1);
    assert!(run.stdout.contains("there is no `out/small/b.gguf`"), "{}", run.stdout);
    let run = forge.run(&["verify", "texts-that-are-not-there.toml"]).status(1);
    assert!(run.stderr.contains("recipe::unreadable"), "{}", run.stderr);
    std::fs::create_dir(forge.path("empty")).unwrap();
    let run = forge.run(&["verify", "empty"]).status(1);
    assert!(run.stderr.contains("no candidate and no manifest"), "{}", run.stderr);
}

#[test]
fn a_change_of_any_byte_of_an_output_is_found_with_its_position() {
    let forge = project();
    build_well(&forge, &[]);
    let target = target(&forge, "a");
    assert_eq!(problems(&target, &[]), []);
    let manifest: Manifest = serde_json::from_slice(&std::fs::read(&target.manifest).unwrap()).unwrap();
    let size = usize::try_from(std::fs::metadata(&target.output).unwrap().len()).unwrap();
    let tensors: Vec<(String, usize, usize)> = manifest
        .predicate
        .forge
        .tensors
        .iter()
        .map(|tensor| {
            let (_, len) = tensor.bytes.split_once(':').unwrap();
            let start = usize::try_from(tensor.start).unwrap();
            (tensor.name.clone(), start, start + len.parse::<usize>().unwrap())
        })
        .collect();
    let place_of = |at: usize| {
        let tensor = tensors.iter().find(|(_, start, end)| (*start..*end).contains(&at));
        tensor.map(|(name, ..)| format!("tensor {name}"))
    };
    let mut random = Random(0x5eed);
    // The first and last byte of every tensor, what lies just outside, the header, and bytes anywhere.
    let mut places: Vec<usize> = vec![0, 4, 8, 16, 24, size - 1];
    places.extend(tensors.iter().flat_map(|(_, start, end)| [*start, end - 1]));
    places.extend(tensors.iter().map(|(_, start, _)| start - 1));
    places.extend((0..40).map(|_| random.below(size)));
    let first = tensors.iter().map(|(_, start, _)| *start).min().unwrap();
    places.extend((0..10).map(|_| random.below(first)));
    for at in places {
        let bit = random.below(8) as u32;
        flip(&target.output, at, bit);
        let found = problems(&target, &[]);
        flip(&target.output, at, bit);
        let all = || format!("bit {bit} of byte {at}: {found:?}");
        assert!(
            found.iter().any(|it| it.place.is_empty() && it.what.contains("blake3")),
            "{}",
            all()
        );
        assert!(
            found.iter().any(|it| it.place.is_empty() && it.what.contains("sha256")),
            "{}",
            all()
        );
        let named = |place: &str| found.iter().any(|it| it.part == Part::Output && it.place == place);
        match place_of(at) {
            Some(tensor) => {
                assert!(named(&tensor), "{}", all());
                assert_eq!(found.len(), 3, "{}", all());
            }
            // Between header and tensors lie zeros.
            None => assert!(named("header") || named("padding"), "{}", all()),
        }
    }
    assert_eq!(problems(&target, &[]), []);

    let whole = std::fs::read(&target.output).unwrap();
    let (last, ..) = tensors.iter().max_by_key(|(_, start, _)| *start).unwrap();
    std::fs::write(&target.output, &whole[..size - 7]).unwrap();
    let found = problems(&target, &[]);
    assert!(found.iter().any(|it| it.place == format!("tensor {last}")), "{found:?}");
    assert!(
        found.iter().any(|it| it.what.contains(&format!("{} bytes", size - 7))),
        "{found:?}"
    );
    std::fs::write(&target.output, [&whole[..], &[0]].concat()).unwrap();
    let found = problems(&target, &[]);
    assert!(
        found.iter().any(|it| it.what.contains(&format!("{} bytes", size + 1))),
        "{found:?}"
    );
    std::fs::write(&target.output, b"").unwrap();
    assert!(problems(&target, &[]).len() > tensors.len());

    // The command says so, too.
    std::fs::write(&target.output, &whole).unwrap();
    let (name, start, _) = &tensors[3];
    flip(&target.output, start + 1, 0);
    let run = forge.run(&["verify", "out/small/a.gguf"]).status(1);
    assert!(
        run.stdout.contains(&format!("output, tensor {name}: ")),
        "{}",
        run.stdout
    );
    let lines = forge
        .run(&["verify", "--message-format", "json"])
        .status(1)
        .json_lines();
    assert_eq!(lines[0]["problems"][0]["place"], format!("tensor {name}"));
    assert_eq!(lines[1]["good"], true);
}

/// What a manifest's bytes say against each other and against the signature; the output is not read.
fn document_problems(manifest: &[u8], envelope: &Envelope, key: &PublicKey) -> (bool, Vec<Problem>) {
    let found = envelope.problems(manifest, std::slice::from_ref(key));
    let problems = match Manifest::parse(manifest) {
        Ok(parsed) => verify::check_document(&parsed, manifest).1,
        Err(_) => return (!found.is_empty(), Vec::new()),
    };
    (!found.is_empty(), problems)
}

#[test]
fn a_change_of_any_byte_of_a_manifest_or_signature_is_found() {
    let forge = signed();
    let target = target(&forge, "b");
    let key = PublicKey::load(&forge.path("key.pub")).unwrap();
    let manifest = std::fs::read(&target.manifest).unwrap();
    let signature = std::fs::read(target.signatures()).unwrap();
    let envelope = Envelope::parse(&signature).unwrap();
    assert_eq!(document_problems(&manifest, &envelope, &key), (false, Vec::new()));
    let mut random = Random(0xfade);
    for _ in 0..500 {
        let (at, bit) = (random.below(manifest.len()), random.below(8));
        let mut changed = manifest.clone();
        changed[at] ^= 1 << bit;
        let (signature_says, _) = document_problems(&changed, &envelope, &key);
        assert!(signature_says, "bit {bit} of byte {at}");
    }
    // All of the signature's part that is not the payload, and bytes anywhere.
    let text = String::from_utf8(signature.clone()).unwrap();
    let after = text.find("\",\"payloadType\"").unwrap();
    let mut places: Vec<usize> = (0..12).chain(after..signature.len()).collect();
    places.extend((0..500).map(|_| random.below(signature.len())));
    for at in places {
        let bit = random.below(8);
        let mut changed = signature.clone();
        changed[at] ^= 1 << bit;
        let found = Envelope::parse(&changed).map(|envelope| envelope.problems(&manifest, std::slice::from_ref(&key)));
        assert!(
            found.is_err() || found.as_ref().is_ok_and(|found| !found.is_empty()),
            "bit {bit} of byte {at}"
        );
    }

    // The command, for one of each.
    std::fs::write(&target.manifest, [&manifest[..], b"\n"].concat()).unwrap();
    let run = forge.run(&["verify", "out/small/b.gguf", "--key", "key.pub"]).status(1);
    assert!(
        run.stdout.contains("signature, payload: it signs bytes other than"),
        "{}",
        run.stdout
    );
    assert!(
        run.stdout.contains("manifest: it is not as forge writes it"),
        "{}",
        run.stdout
    );
    std::fs::write(&target.manifest, &manifest).unwrap();
    flip(&target.signatures(), signature.len() - 20, 0);
    let run = forge.run(&["verify", "out/small/b.gguf", "--key", "key.pub"]).status(1);
    assert!(
        run.stdout.contains("signature, signatures: the signature by key"),
        "{}",
        run.stdout
    );
    std::fs::remove_file(target.signatures()).unwrap();
    let run = forge.run(&["verify", "out/small/b.gguf", "--key", "key.pub"]).status(1);
    assert!(run.stdout.contains("the manifest is not signed"), "{}", run.stdout);
    let run = forge.run(&["verify", "out/small/b.gguf"]).success();
    assert!(run.stdout.contains("not signed"), "{}", run.stdout);
    let _ = forge.run(&["key", "new", "another"]).success();
    let run = forge
        .run(&["verify", "out/small/a.gguf", "--key", "another.pub"])
        .status(1);
    assert!(run.stdout.contains("has not signed it"), "{}", run.stdout);
}

/// A place in a manifest, what is put there, and the place that is named (its start).
type Edit = (&'static str, fn(&mut Json), &'static str);

#[test]
fn a_manifest_that_is_edited_names_the_field() {
    let forge = project();
    build_well(&forge, &[]);
    let path = target(&forge, "a").manifest;
    let bytes = std::fs::read(&path).unwrap();
    let other = "0123456789abcdef".repeat(4);
    let edits: &[Edit] = &[
        ("/subject/0/name", |it| *it = "b.gguf".into(), "subject[0].name"),
        (
            "/subject/0/digest/sha256",
            |it| *it = "0123456789abcdef".repeat(4).into(),
            "predicate.forge.tensors",
        ),
        ("/subject/0/digest/blake3", |it| *it = "x".into(), "subject[0]"),
        ("/subject/0/annotations/bytes", |it| *it = "007".into(), "subject[0]"),
        ("/subject", |it| *it = Json::Array(Vec::new()), "subject"),
        (
            "/predicate/buildDefinition/externalParameters/step",
            |it| *it = "promote.b".into(),
            "subject[0].name",
        ),
        (
            "/predicate/buildDefinition/externalParameters/recipeToml",
            |it| *it = it.as_str().unwrap().replace("Q6_K", "Q5_K").into(),
            "predicate.buildDefinition.externalParameters.recipe",
        ),
        (
            "/predicate/buildDefinition/externalParameters/recipe/name",
            |it| *it = "large".into(),
            "predicate.buildDefinition.externalParameters.recipe",
        ),
        (
            "/predicate/buildDefinition/resolvedDependencies/0/digest/blake3",
            |it| *it = "0123456789abcdef".repeat(4).into(),
            "predicate.forge.actions[",
        ),
        (
            "/predicate/buildDefinition/resolvedDependencies/0/annotations/node",
            |it| *it = "corpus.held-out".into(),
            "predicate.buildDefinition.resolvedDependencies",
        ),
        (
            "/predicate/buildDefinition/resolvedDependencies/0/name",
            |it| *it = "../up.gguf".into(),
            "predicate.buildDefinition.resolvedDependencies[0].name",
        ),
        (
            "/predicate/forge/action",
            |it| *it = "0".repeat(64).into(),
            "predicate.forge.action",
        ),
        (
            "/predicate/forge/tensors/1/name",
            |it| *it = "blk.7".into(),
            "predicate.forge.tensors",
        ),
        (
            "/predicate/forge/tensors/1/type",
            |it| *it = "Q3_K".into(),
            "predicate.forge.tensors",
        ),
        (
            "/predicate/forge/tensors/1/start",
            |it| *it = 1.into(),
            "predicate.forge.tensors",
        ),
        (
            "/predicate/forge/tensors/1/dims",
            |it| *it = serde_json::json!([1, 2]),
            "predicate.forge.tensors",
        ),
        (
            "/predicate/forge/tensors/1/action",
            |it| *it = "1".repeat(64).into(),
            "predicate.forge.tensors[1].action",
        ),
        (
            "/predicate/forge/engines",
            |it| {
                let identity = it.as_object_mut().unwrap().values_mut().next().unwrap();
                identity["facts"]["cpu"] = "none".into();
            },
            "predicate.forge.engines[",
        ),
        (
            "/predicate/forge/actions",
            |it| {
                let records = it.as_object_mut().unwrap().values_mut();
                let collect = records
                    .into_iter()
                    .find(|it| it["document"]["kind"] == "imatrix-collect")
                    .unwrap();
                collect["document"]["inputs"]["context"] = 65.into();
            },
            "predicate.forge.actions[",
        ),
        (
            "/predicate/forge/actions",
            |it| {
                let records = it.as_object_mut().unwrap().values_mut();
                let policy = records
                    .into_iter()
                    .find(|it| it["document"]["kind"] == "policy")
                    .unwrap();
                policy["outputs"]["policy"] = format!("{}:7", "2".repeat(64)).into();
            },
            "predicate.forge.actions[",
        ),
        (
            "/predicate/forge/actions",
            |it| {
                let record = it.as_object_mut().unwrap().values_mut().next().unwrap();
                record["document"]["inputs"]["more"] = "unnoticed".into();
            },
            "predicate.forge.actions[",
        ),
        (
            "/predicate/forge/actions",
            |it| {
                let records = it.as_object_mut().unwrap().values_mut();
                let join = records.into_iter().find(|it| it["document"]["kind"] == "join").unwrap();
                join["step"] = "join.other".into();
            },
            "predicate.forge.actions[",
        ),
        // What no other field says is held by the form, and by the signature.
        (
            "/predicate/forge/command",
            |it| *it = Json::Array(vec!["rm".into()]),
            "",
        ),
    ];
    for (at, (pointer, edit, place)) in edits.iter().enumerate() {
        let mut manifest: Json = serde_json::from_slice(&bytes).unwrap();
        edit(manifest.pointer_mut(pointer).unwrap());
        // In forge's own form, so that the edit is the only difference; the last one has another form.
        let parsed: Manifest = serde_json::from_value(manifest.clone()).unwrap();
        let text = if place.is_empty() {
            manifest.to_string().into_bytes()
        } else {
            parsed.to_bytes().unwrap()
        };
        let (_, problems) = verify::check_document(&parsed, &text);
        assert!(
            problems.iter().any(|problem| problem.place.starts_with(place)),
            "{at} {pointer}: {problems:#?}"
        );
        std::fs::write(&path, &text).unwrap();
        let run = forge.run(&["verify", "out/small/a.gguf"]).status(1);
        assert!(
            run.stdout
                .contains(&format!("manifest{}{place}", if place.is_empty() { ":" } else { ", " })),
            "{at} {pointer}: {}",
            run.stdout
        );
    }
    // Fields that manifests do not have, and fields that are not there.
    for (from, to) in [
        ("\"forge\": {", "\"forge\": { \"more\": 1,"),
        ("\"predicateType\"", "\"predicatetype\""),
        ("https://slsa.dev/provenance/v1", "https://slsa.dev/provenance/v2"),
        ("forge.manifest.v1", "forge.manifest.v2"),
    ] {
        let text = String::from_utf8(bytes.clone()).unwrap();
        std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
        let run = forge.run(&["verify", "out/small/a.gguf"]).status(1);
        assert!(run.stdout.contains("manifest: it"), "{to}: {}", run.stdout);
    }
    // One that agrees with itself, but not with the file: its header tells.
    let forged = forged_type(&path, &bytes);
    std::fs::write(&path, forged.to_bytes().unwrap()).unwrap();
    let run = forge.run(&["verify", "out/small/a.gguf"]).status(1);
    assert!(!run.stdout.contains("      manifest"), "{}", run.stdout);
    assert!(run.stdout.contains("the header says ["), "{}", run.stdout);
    assert_ne!(other, "");
}

fn forged_type(path: &Path, bytes: &[u8]) -> Manifest {
    std::fs::write(path, bytes).unwrap();
    forged(path, |manifest| {
        let tensor = manifest
            .predicate
            .forge
            .tensors
            .iter_mut()
            .find(|tensor| tensor.action.is_none())
            .unwrap();
        tensor.dims.push(1);
        tensor.dims[0] /= 2;
        tensor.dims[1] = 2;
    })
}

#[test]
fn keys_of_openssl_and_openssh_sign_and_a_new_key_is_read_by_openssl() {
    let forge = project();
    build_well(&forge, &[]);
    let tool = |program: &str, args: &[&str]| {
        let run = Command::new(program).args(args).current_dir(forge.dir()).output();
        run.is_ok_and(|run| run.status.success())
    };
    let _ = forge.run(&["key", "new", "mine"]).success();
    let again = forge.run(&["key", "new", "mine"]).status(3);
    assert!(again.stderr.contains("never overwritten"), "{}", again.stderr);
    let shown = forge.run(&["key", "show", "mine"]).success();
    assert_eq!(shown.stdout, forge.run(&["key", "show", "mine.pub"]).success().stdout);
    let mut keys = vec![("mine", "mine.pub")];
    if tool("openssl", &["genpkey", "-algorithm", "ed25519", "-out", "ssl"])
        && tool("openssl", &["pkey", "-in", "ssl", "-pubout", "-out", "ssl.pub"])
    {
        keys.push(("ssl", "ssl.pub"));
        assert!(tool(
            "openssl",
            &["pkey", "-in", "mine", "-pubout", "-out", "mine.openssl"]
        ));
        assert_eq!(
            std::fs::read(forge.path("mine.openssl")).unwrap(),
            std::fs::read(forge.path("mine.pub")).unwrap()
        );
        // What a key is called, by other means.
        assert!(tool(
            "sh",
            &["-c", "openssl pkey -pubin -in ssl.pub -outform DER | sha256sum > sum"]
        ));
        let sum = std::fs::read_to_string(forge.path("sum")).unwrap();
        let shown = forge.run(&["key", "show", "ssl"]).success();
        assert_eq!(shown.stdout[..64], sum[..64]);
    } else {
        eprintln!("skipped in part: there is no openssl");
    }
    if tool(
        "ssh-keygen",
        &["-q", "-t", "ed25519", "-N", "", "-C", "me@here", "-f", "ssh"],
    ) {
        keys.push(("ssh", "ssh.pub"));
        assert!(tool(
            "ssh-keygen",
            &["-q", "-t", "ed25519", "-N", "secret", "-f", "locked"]
        ));
        let run = forge.run(&["sign", "out/small/a.gguf", "--key", "locked"]).status(3);
        assert!(run.stderr.contains("passphrase"), "{}", run.stderr);
        assert!(tool("ssh-keygen", &["-q", "-t", "ecdsa", "-N", "", "-f", "ecdsa"]));
        let run = forge.run(&["sign", "out/small/a.gguf", "--key", "ecdsa"]).status(3);
        assert!(run.stderr.contains("not an Ed25519 key"), "{}", run.stderr);
    } else {
        eprintln!("skipped in part: there is no ssh-keygen");
    }
    for (secret, public) in &keys {
        let run = forge.run(&["sign", "out/small/a.gguf", "--key", secret]).success();
        assert!(run.stderr.contains("signed by"), "{}", run.stderr);
        let _ = forge.run(&["verify", "out/small/a.gguf", "--key", public]).success();
        let run = forge.run(&["sign", "out/small/a.gguf", "--key", secret]).success();
        assert!(run.stderr.contains("was already signed"), "{}", run.stderr);
        let run = forge.run(&["sign", "out/small/a.gguf", "--key", public]).status(3);
        assert!(run.stderr.contains("public key"), "{}", run.stderr);
    }
    let envelope = Envelope::parse(&std::fs::read(target(&forge, "a").signatures()).unwrap()).unwrap();
    assert_eq!(envelope.signatures.len(), keys.len());
    let mut args = vec!["verify", "out/small/a.gguf"];
    args.extend(keys.iter().flat_map(|(_, public)| ["--key", public]));
    let run = forge.run(&args).success();
    assert!(
        run.stdout.contains(&format!("signed by {} given key", keys.len())),
        "{}",
        run.stdout
    );
    let run = forge.run(&["sign", "out/small/a.gguf"]).status(2);
    assert!(run.stderr.contains("forge key new"), "{}", run.stderr);
    let run = forge
        .run(&["sign", "out/small/a.gguf", "--key", "recipe.toml"])
        .status(3);
    assert!(run.stderr.contains("not an Ed25519 key"), "{}", run.stderr);
}

#[test]
fn a_build_signs_its_manifests_and_reports_outdated_signatures() {
    let forge = project();
    let _ = forge.run(&["key", "new", "keys.pem"]).success();
    forge.write(".config/forge/forge.toml", "[signing]\nkey = \"../../keys.pem\"\n");
    let run = forge.run(&["build", "-j", "1"]).success();
    assert_eq!(run.stderr.matches("signed by").count(), 2, "{}", run.stderr);
    let _ = forge.run(&["verify", "--key", "keys.pem.pub"]).success();
    let again = forge.run(&["build", "-j", "1"]).success();
    assert!(
        again.stderr.contains("nothing to do") && !again.stderr.contains("signed"),
        "{}",
        again.stderr
    );
    // A key that cannot be read stops the build before it begins.
    let run = forge.run(&["build", "-j", "1", "--sign", "nothing.pem"]).status(3);
    assert!(
        run.stderr.contains("nothing.pem") && !run.stderr.contains("nothing to do"),
        "{}",
        run.stderr
    );
    // Without the key, a new manifest leaves the signature of the old one beside it: that is said, and found.
    std::fs::remove_file(forge.path(".config/forge/forge.toml")).unwrap();
    let recipe = crate::one_layer_project::edited(crate::one_layer_project::RECIPE, "\"Q6_K\"", "\"Q5_K\"");
    let run = forge.recipe(&recipe).run(&["build", "-j", "1"]).success();
    assert!(run.stderr.contains("signs an earlier manifest"), "{}", run.stderr);
    let run = forge.run(&["verify", "out/small/a.gguf"]).status(1);
    assert!(run.stdout.contains("signature, payload"), "{}", run.stdout);
    let run = forge.run(&["sign", "out/small/a.gguf", "--key", "keys.pem"]).success();
    assert!(run.stderr.contains("signed again"), "{}", run.stderr);
    let _ = forge
        .run(&["verify", "out/small/a.gguf", "--key", "keys.pem.pub"])
        .success();
}

#[test]
fn bundles_hold_the_very_bytes_and_check_out_by_other_means() {
    let forge = signed();
    let run = forge.run(&[
        "bundle",
        "out/small/a.gguf",
        "out/small/b.gguf.manifest.json",
        "-o",
        "all.intoto.jsonl",
    ]);
    let _ = run.success();
    let text = std::fs::read_to_string(forge.path("all.intoto.jsonl")).unwrap();
    let lines: Vec<Envelope> = text
        .lines()
        .map(|line| Envelope::parse(line.as_bytes()).unwrap())
        .collect();
    let manifest = std::fs::read(forge.path("out/small/a.gguf.manifest.json")).unwrap();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0].payload().unwrap(), manifest);
    let run = forge.run(&[
        "bundle",
        "out/small/a.gguf",
        "--format",
        "sigstore",
        "-o",
        "a.sigstore.json",
    ]);
    let _ = run.success();
    let bundle: Json = serde_json::from_slice(&std::fs::read(forge.path("a.sigstore.json")).unwrap()).unwrap();
    let key = SecretKey::load(&forge.path("key")).unwrap();
    assert_eq!(
        bundle["verificationMaterial"]["publicKey"]["hint"],
        key.public().id().as_str()
    );
    let inner: Envelope = serde_json::from_value(bundle["dsseEnvelope"].clone()).unwrap();
    assert_eq!(inner, lines[0]);
    let run = forge.run(&[
        "bundle",
        "out/small/a.gguf",
        "out/small/b.gguf",
        "--format",
        "sigstore",
        "-o",
        "x",
    ]);
    assert!(run.status(2).stderr.contains("--format in-toto"));
    assert!(!forge.path("x").exists());

    // OpenSSL agrees on what was signed.
    let pae = forge::sign::pae(&inner.payload_type, &manifest);
    forge.write("pae", &pae);
    let script = "sed 's/.*\"sig\":\"\\([^\"]*\\)\".*/\\1/' out/small/a.gguf.manifest.json.sig.json | base64 -d > raw && \
                  openssl pkeyutl -verify -pubin -inkey key.pub -rawin -in pae -sigfile raw";
    if Command::new("openssl").arg("version").output().is_ok() {
        let run = Command::new("sh")
            .args(["-c", script])
            .current_dir(forge.dir())
            .output()
            .unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    } else {
        eprintln!("skipped in part: there is no openssl");
    }
    let unsigned: PathBuf = forge.path("out/small/b.gguf.manifest.json.sig.json");
    std::fs::remove_file(unsigned).unwrap();
    let run = forge.run(&["bundle", "out/small/b.gguf", "-o", "x"]).status(1);
    assert!(run.stderr.contains("forge sign"), "{}", run.stderr);
    std::fs::write(
        forge.path("out/small/a.gguf.manifest.json"),
        [&manifest[..], b" "].concat(),
    )
    .unwrap();
    let run = forge.run(&["bundle", "out/small/a.gguf", "-o", "x"]).status(1);
    assert!(run.stderr.contains("bytes other than"), "{}", run.stderr);
    assert!(!forge.path("x").exists());
}
