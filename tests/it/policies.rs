//! Policies that keep to a budget, from the recipe to the file.

use std::collections::BTreeMap;

use forge::gguf::Model;
use forge::gguf::Value;
use forge::policy::Table;
use forge::policy::Why;
use forge::tensor_type::TensorType;

use crate::one_layer_project::Gguf;
use crate::one_layer_project::build;
use crate::one_layer_project::build_well;
use crate::one_layer_project::edited;
use crate::one_layer_project::manifest;
use crate::one_layer_project::output_of;
use crate::one_layer_project::project;
use crate::support::Forge;

/// A project whose only candidates are those of one policy.
fn recipe(policy: &str) -> String {
    format!(
        r#"schema = 1
name = "small"

[source.model]
path = "model.gguf"

[corpus.calibration]
files = ["prose.txt"]

[imatrix.general]
corpus = "calibration"
chunks = 4
context = 64
block = 2

[policy.p]
imatrix = "general"
{policy}

[promote.p]
policy = "p"
"#
    )
}

/// The bytes of a candidate's file, and the type of each of its tensors.
fn candidate(forge: &Forge, name: &str) -> (u64, BTreeMap<String, TensorType>) {
    let path = forge.path(&format!("out/small/{name}.gguf"));
    let model = Model::open(&path).unwrap();
    let types = model
        .tensors()
        .iter()
        .map(|tensor| (tensor.info.name.clone(), tensor.info.ty));
    (std::fs::metadata(&path).unwrap().len(), types.collect())
}

#[test]
fn ashq1_keeps_to_its_budgets_to_the_byte() {
    let forge = project();
    let with = |budget: &str| {
        forge.recipe(&recipe(&format!("method = \"ashq1\"\nbudget = {budget}")));
    };

    // Too little: the answer is the least there is.
    with("\"10 KB\"");
    let built = build(&forge, &[]);
    assert_eq!(built.run.status, Some(1));
    let output = built.diagnostics();
    let words = "bytes is too small: the smallest file that this policy allows has ";
    let least: u64 = output
        .split_once(words)
        .unwrap()
        .1
        .split(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(output.contains("10000 bytes"), "{output}");
    with(&format!("\"{} B\"", least - 1));
    assert_eq!(build(&forge, &[]).run.status, Some(1));

    with(&format!(
        "[\"{least} B\", \"{} B\", \"7.5 bpw\", \"1 GiB\"]",
        least + 40_000
    ));
    build_well(&forge, &[]);
    let slug = |bytes: u64| forge::recipe::Quantity::Bytes(bytes).slug();
    let (bytes, floors) = candidate(&forge, &format!("p-{}", slug(least)));
    assert_eq!(bytes, least, "the file is as long as was said");
    assert_eq!(floors["blk.0.ffn_down.weight"], TensorType::Q4_K);
    let (more, _) = candidate(&forge, &format!("p-{}", slug(least + 40_000)));
    assert!(more > least && more <= least + 40_000, "{least} {more}");
    let (all, highest) = candidate(&forge, "p-1GiB");
    assert!(all > more);
    assert!(
        highest
            .iter()
            .all(|(name, ty)| *ty == TensorType::Q8_0 || name.contains("norm")),
        "{highest:?}"
    );
    let elements: u64 = Gguf::small()
        .tensors
        .iter()
        .map(|(spec, _)| spec.dims.iter().product::<u64>())
        .sum();
    let (rate, _) = candidate(&forge, "p-7.5bpw");
    assert!(rate <= elements * 15 / 16 && rate > more, "{rate}");

    // What it was decided by.
    let made = manifest(&forge.path("out/small/p-7.5bpw.gguf"));
    let table: Table = serde_json::from_slice(&output_of(&forge, &made, "policy.p@7.5bpw", "policy")).unwrap();
    let why = |name: &str| &table.get(name).unwrap().why;
    let (q, k) = (why("blk.0.attn_q.weight"), why("blk.0.attn_k.weight"));
    assert_eq!(q, k, "they have the same inputs");
    assert!(
        matches!(q, Why::Floor)
            || matches!(q, Why::Ladder { group, .. } if group == "blk.0.{attn_k,attn_q,attn_v}.weight"),
        "{q:?}"
    );
    build_well(&forge, &[]).assert_idle();

    // A longer header leaves less for tensors; what is within the budget all the same is not quantized again.
    let mut model = Gguf::small();
    model.set("tokenizer.chat_template", Value::String(vec![b'x'; 1000]));
    forge.write("model.gguf", model.bytes());
    with("\"1 GiB\"");
    let built = build_well(&forge, &[]);
    assert_eq!((built.ran_of("policy"), built.ran_of("tensor")), (1, 0));
    with(&format!("\"{least} B\""));
    let output = build(&forge, &[]).diagnostics();
    assert!(output.contains("bytes is too small"), "{output}");
}

#[test]
fn a_budget_may_be_the_bytes_of_another_candidate() {
    let forge = project();
    let mixes = "\n[policy.mixes]\nimatrix = \"general\"\nmethod = \"mix\"\nmix = [\"Q4_K_M\", \"Q8_0\", \"COPY\"]\n\
                 [promote.mixes]\npolicy = \"mixes\"\n";
    let with = |method: &str, budget: &str| format!("{}{mixes}", recipe(&format!("{method}\nbudget = {budget}")));
    let methods = [
        "method = \"prior\"",
        "method = \"ashq1\"\nfloors = [{ match = '.', type = \"Q3_K\" }]",
        "method = \"density\"\nbase = \"Q2_K\"\npromotion = \"Q6_K\"",
    ];
    for method in methods {
        forge.recipe(&with(method, "{ candidate = \"mixes\" }"));
        build_well(&forge, &[]);
        for mix in ["Q4_K_M", "Q8_0", "COPY"] {
            let (limit, _) = candidate(&forge, &format!("mixes-{mix}"));
            let (bytes, types) = candidate(&forge, &format!("p-{mix}"));
            assert!(bytes <= limit && bytes > 0, "{method}, {mix}: {bytes} of {limit}");
            // The very bytes of the file: what asks for as many is the same policy, with the same types.
            forge.recipe(&with(method, &format!("\"{limit} B\"")));
            let same = build_well(&forge, &[]);
            assert_eq!(same.ran_of("policy"), 0, "{method}, {mix}");
            assert_eq!(candidate(&forge, "p").1, types);
            forge.recipe(&with(method, &format!("\"{} B\"", limit - 1)));
            assert_eq!(build_well(&forge, &[]).ran_of("policy"), 1, "{method}, {mix}");
        }
    }

    // The size of one candidate is enough to be known: it is not quantized for that, nor measured.
    let other = project();
    other.recipe(&with(methods[0], "[{ candidate = \"mixes-Q4_K_M\" }]"));
    let built = build_well(&other, &["recipe.toml", "p-mixes-Q4_K_M"]);
    assert_eq!(built.ran_of("policy"), 2);
    assert_eq!(built.ran_of("promote"), 1);
    assert!(!other.path("out/small/mixes-Q4_K_M.gguf").exists());
    let bytes = candidate(&other, "p-mixes-Q4_K_M").0;
    assert!(bytes <= candidate(&forge, "mixes-Q4_K_M").0);
    let unchanged = build_well(&other, &["recipe.toml", "p-mixes-Q4_K_M"]);
    assert_eq!((unchanged.ran_of("policy"), unchanged.ran_of("promote")), (0, 0));
    // A candidate that grows by its header leaves as much more to those that keep to its size.
    let mut model = Gguf::small();
    model.set("tokenizer.chat_template", Value::String(vec![b'x'; 1000]));
    other.write("model.gguf", model.bytes());
    let built = build_well(&other, &["recipe.toml", "p-mixes-Q4_K_M"]);
    assert_eq!((built.ran_of("policy"), built.ran_of("tensor")), (1, 0));
    assert!(candidate(&other, "p-mixes-Q4_K_M").0 > bytes);
}

#[test]
fn ashq1_applies_floors_ceilings_and_keep() {
    let forge = project();
    forge.recipe(&recipe(
        "method = \"ashq1\"\nbudget = \"1 GiB\"\nfree = [false, true]\n\
         floors = [{ match = \"ffn_(up|gate)\", type = \"IQ4_NL\" }, { match = \"nothing\", type = \"Q5_K\" }]\n\
         ceilings = [{ match = \"ffn_(up|gate)\", type = \"Q4_K\" }, { match = \"attn\", type = \"Q6_K\" }]\n\
         keep = [\"ffn_down\"]",
    ));
    let built = build_well(&forge, &[]);
    let warned: Vec<&str> = built
        .of("warning")
        .map(|line| line["message"].as_str().unwrap())
        .collect();
    assert!(
        warned
            .iter()
            .any(|line| line.contains("the rule `nothing` matches no tensor")),
        "{warned:?}"
    );
    let source = candidate_of_source();
    for (name, up) in [("p-no-free", TensorType::IQ4_NL), ("p-free", TensorType::Q4_K)] {
        let (_, types) = candidate(&forge, name);
        assert_eq!(types["blk.0.ffn_up.weight"], up, "{name}");
        assert_eq!(types["blk.0.attn_q.weight"], TensorType::Q6_K);
        assert_eq!(types["blk.0.ffn_down.weight"], source["blk.0.ffn_down.weight"]);
    }
    let without = edited(
        &recipe("method = \"ashq1\"\nbudget = \"1 GiB\""),
        "imatrix = \"general\"\n",
        "",
    );
    forge.recipe(&without);
    let run = forge.run(&["check"]).status(1);
    assert!(
        run.stderr.contains("`policy.p` needs the key `imatrix`"),
        "{}",
        run.stderr
    );
}

fn candidate_of_source() -> BTreeMap<String, TensorType> {
    let tensors = Gguf::small().tensors.into_iter();
    tensors.map(|(spec, _)| (spec.name, spec.ty)).collect()
}

#[test]
fn groups_come_from_the_imatrix() {
    let forge = project();
    forge.recipe(&recipe("method = \"ashq1\"\nbudget = \"1 GiB\""));
    build_well(&forge, &[]);
    let made = manifest(&forge.path("out/small/p.gguf"));
    forge.write("general.gguf", output_of(&forge, &made, "imatrix.general", "imatrix"));
    let run = forge
        .run(&[
            "policy",
            "groups",
            "model.gguf",
            "--imatrix",
            "general.gguf",
            "--show-floors",
        ])
        .success();
    let tied: Vec<&str> = run.stdout.lines().filter(|line| line.starts_with("tied")).collect();
    assert_eq!(tied.len(), 2, "{}", run.stdout);
    assert!(
        tied[0].ends_with("blk.0.{attn_k,attn_q,attn_v}.weight  Q4_K to Q8_0"),
        "{}",
        tied[0]
    );
    assert!(tied[1].contains("blk.0.{ffn_gate,ffn_up}.weight"), "{}", tied[1]);
    assert!(!run.stdout.contains("norm"));
    let run = forge.run(&["policy", "groups", "prose.txt"]).status(1);
    assert!(run.stderr.contains("can't read `prose.txt`"), "{}", run.stderr);
}

#[test]
fn prior_writes_a_certificate_to_the_output_folder() {
    let forge = project();
    let plain = |policy: &str| {
        let text = recipe(policy);
        let start = text.find("[corpus.calibration]").unwrap();
        let end = text.find("[policy.p]").unwrap();
        format!("{}{}", &text[..start], &text[end..]).replace("imatrix = \"general\"\n", "")
    };
    forge.recipe(&plain(
        "method = \"prior\"\nbudget = [\"5 bpw\", \"6 bpw\", \"1 GiB\"]\nfuse = [\"attention\"]\nkeep = [\"ffn_down\"]",
    ));
    let built = build_well(&forge, &[]);
    assert_eq!(built.ran_of("policy"), 3);
    let certificates: Vec<String> = ["5bpw", "6bpw", "1GiB"]
        .map(|budget| format!("out/small/p-{budget}.certificate.json"))
        .into();
    for path in &certificates {
        let run = forge.run(&["policy", "check", path]).success();
        assert!(run.stdout.contains("answer 1 is optimal"), "{}", run.stdout);
        let text = std::fs::read_to_string(forge.path(path)).unwrap();
        let certificate: serde_json::Value = serde_json::from_str(&text).unwrap();
        let name = path
            .strip_prefix("out/small/")
            .unwrap()
            .strip_suffix(".certificate.json")
            .unwrap();
        let (bytes, types) = candidate(&forge, name);
        assert_eq!(
            certificate["answers"][0]["uses"][0], bytes,
            "the file is as long as was proved"
        );
        assert!(bytes <= certificate["answers"][0]["limits"][0].as_u64().unwrap());
        let attention: Vec<_> = ["q", "k", "v"]
            .iter()
            .map(|part| types[&format!("blk.0.attn_{part}.weight")])
            .collect();
        assert!(attention.windows(2).all(|pair| pair[0] == pair[1]), "{attention:?}");
        assert_eq!(
            types["blk.0.ffn_down.weight"],
            candidate_of_source()["blk.0.ffn_down.weight"]
        );
    }
    build_well(&forge, &[]).assert_idle();
    // What lies beside the candidates is an output like others.
    std::fs::remove_file(forge.path(&certificates[0])).unwrap();
    let again = build_well(&forge, &[]);
    assert_eq!(again.ran_of("policy") + again.ran_of("tensor"), 0);
    assert!(forge.path(&certificates[0]).exists());

    forge.recipe(&plain("method = \"prior\"\nbudget = \"1 KB\"\ntypes = [\"Q4_K\"]"));
    let output = build(&forge, &[]).diagnostics();
    assert!(
        output.contains("the smallest file that this policy allows has "),
        "{output}"
    );
    forge.recipe(&plain(
        "method = \"prior\"\nbudget = \"1 GB\"\nfloors = [{ match = \"attn_q\", type = \"F32\" }]",
    ));
    let output = build(&forge, &[]).diagnostics();
    assert!(
        output.contains("no type is possible for `blk.0.attn_q.weight`"),
        "{output}"
    );
}

#[test]
fn devices_hold_their_tensors_and_their_cache() {
    let forge = project();
    let with = |device: &str| {
        let text = recipe("method = \"prior\"\nbudget = \"1 GiB\"\ntypes = [\"Q4_K\", \"Q6_K\", \"Q8_0\"]");
        let section = format!("\n[policy.p.device.gpu0]\ntensors = ['attn_', 'ffn_down']\n{device}\n\n[promote.p]");
        forge.recipe(&edited(&text, "\n[promote.p]", &section));
    };
    let inside = |name: &str| name.contains("attn_") || name.contains("ffn_down");
    let least = |output: &str| -> u64 {
        let rest = output
            .split_once("need at least ")
            .unwrap_or_else(|| panic!("{output}"))
            .1;
        rest.split(' ').next().unwrap().parse().unwrap()
    };
    with("memory = \"1 KiB\"");
    let output = build(&forge, &[]).diagnostics();
    assert!(
        output.contains("the memory of `gpu0`, 1024 bytes, is too small"),
        "{output}"
    );
    let bare = least(&output);
    // What lies there at the least: the tensors of four and a half bits, and norms as they are.
    let aligned = |bytes: u64| bytes.next_multiple_of(32);
    let expected: u64 = Gguf::small()
        .tensors
        .iter()
        .filter(|(spec, _)| inside(&spec.name))
        .map(|(spec, bytes)| match spec.dims.as_slice() {
            [columns, rows] => aligned(TensorType::Q4_K.row_bytes(*columns).unwrap() * rows),
            _ => aligned(bytes.len() as u64),
        })
        .sum();
    assert_eq!(bare, expected);
    // The cache and the reserve are added to it.
    with("memory = \"1 KiB\"\nreserve = \"5 B\"\ncontext = 300\ncache = \"q8_0\"");
    let metadata = Gguf::small().metadata;
    let number = |name: &str| u64::from(metadata.get_u32(&format!("qwen3.attention.{name}")).unwrap());
    let row = |length| {
        TensorType::Q8_0
            .row_bytes(number("head_count_kv") * number(length))
            .unwrap()
    };
    let cache = 512 * (row("key_length") + row("value_length"));
    let output = build(&forge, &[]).diagnostics();
    assert_eq!(least(&output), bare + cache + 5, "{output}");

    // Just so much fits, to the byte, while nothing else is held to anything.
    with(&format!(
        "memory = \"{} B\"\ncontext = 300\ncache = \"q8_0\"",
        bare + cache
    ));
    build_well(&forge, &[]);
    let (_, types) = candidate(&forge, "p");
    let source = candidate_of_source();
    for (name, ty) in types.iter().filter(|(name, _)| !name.contains("norm")) {
        let expected = if inside(name) { TensorType::Q4_K } else { source[name] };
        assert_eq!(*ty, expected, "{name}");
    }
    let run = forge
        .run(&["policy", "check", "out/small/p.certificate.json"])
        .success();
    assert!(run.stdout.contains("is optimal"), "{}", run.stdout);
    let certificate = std::fs::read_to_string(forge.path("out/small/p.certificate.json")).unwrap();
    let certificate: serde_json::Value = serde_json::from_str(&certificate).unwrap();
    assert_eq!(certificate["answers"][0]["uses"][1], bare + cache);
    with("memory = \"1 GiB\"\ncontext = 300");
    build_well(&forge, &[]);
    assert_eq!(candidate(&forge, "p").1, source, "no budget could be larger");
    with("memory = \"1 GiB\"");
    let text = std::fs::read_to_string(forge.path("recipe.toml")).unwrap();
    forge.recipe(&edited(&text, "'attn_', 'ffn_down'", "'no such'"));
    let output = build(&forge, &[]).diagnostics();
    assert!(output.contains("no tensor of the model is on `gpu0`"), "{output}");
}

#[test]
fn exported_types_make_the_same_file_again() {
    let forge = project();
    forge.recipe(&recipe(
        "method = \"ashq1\"\nbudget = \"7 bpw\"\nceilings = [{ match = \"attn_output\", type = \"Q4_K\" }]",
    ));
    build_well(&forge, &[]);
    let first = std::fs::read(forge.path("out/small/p.gguf")).unwrap();
    let (_, types) = candidate(&forge, "p");
    let kinds: std::collections::BTreeSet<_> = types.values().collect();
    assert!(kinds.len() > 3, "more than one type, else it shows nothing: {types:?}");
    for format in ["tensors", "rules"] {
        let exported = forge
            .run(&["policy", "export", "--format", format, "out/small/p.gguf"])
            .success();
        let quantizable = types.keys().filter(|name| !name.contains("norm")).count();
        if format == "tensors" {
            assert_eq!(exported.stdout.lines().count(), quantizable, "{}", exported.stdout);
        }
        forge.write("types.txt", exported.stdout);
        let imported = forge.run(&["policy", "import", "--name", "p", "types.txt"]).success();
        let body = imported.stdout.strip_prefix("[policy.p]\n").unwrap();
        forge.recipe(&recipe(body));
        std::fs::remove_file(forge.path("out/small/p.gguf")).unwrap();
        build_well(&forge, &[]);
        assert!(
            std::fs::read(forge.path("out/small/p.gguf")).unwrap() == first,
            "{format}"
        );
    }
    forge.write("wrong.txt", "attn=q4_k\nffn\n(=q8_0\n");
    let run = forge.run(&["policy", "import", "wrong.txt"]).status(1);
    assert!(
        run.stderr.contains("`wrong.txt`: line 2: expected `pattern=type`"),
        "{}",
        run.stderr
    );
    assert!(
        run.stderr
            .contains("`wrong.txt`: line 3: `(` is not a regular expression"),
        "{}",
        run.stderr
    );
    forge.write("empty.txt", "# nothing\n");
    let run = forge.run(&["policy", "import", "empty.txt"]).status(1);
    assert!(run.stderr.contains("it contains no rules"), "{}", run.stderr);
    let run = forge.run(&["policy", "export", "types.txt"]).status(1);
    assert!(run.stderr.contains("can't read `types.txt`"), "{}", run.stderr);
}

#[test]
fn boost_gives_layers_a_better_type() {
    let forge = project();
    let other = "\n[imatrix.other]\ncorpus = \"calibration\"\nchunks = 1\ncontext = 64\nblock = 1\n\
                 \n[policy.plain]\nimatrix = \"general\"\nmethod = \"mix\"\nmix = \"Q4_K_M\"\n[promote.plain]\npolicy = \"plain\"\n";
    let with = |rest: &str| {
        let text = recipe(&format!(
            "method = \"boost\"\nmix = \"Q4_K_M\"\npromotion = \"Q8_0\"\n{rest}"
        ));
        forge.recipe(&format!("{text}{other}"));
    };
    with("layers = [0]\nfamilies = [\"down\", \"attention\"]\nkeep = [\"attn_k\\\\.\"]");
    build_well(&forge, &[]);
    let (_, plain) = candidate(&forge, "plain");
    let (_, boosted) = candidate(&forge, "p");
    let source = candidate_of_source();
    for (name, ty) in &boosted {
        let family = name.contains("ffn_down")
            || ["attn_q.", "attn_v.", "attn_output."]
                .iter()
                .any(|part| name.contains(part));
        let expected = match name.as_str() {
            kept if kept.contains("attn_k.") => source[name],
            _ if family => TensorType::Q8_0,
            _ => plain[name],
        };
        assert_eq!(*ty, expected, "{name}");
    }
    for ranking in ["energy\"", "sensitivity\"", "contrast\"\nbaseline = \"other\""] {
        with(&format!("layers = \"auto:2\"\nranking = \"{ranking}"));
        build_well(&forge, &[]);
        let (_, ranked) = candidate(&forge, "p");
        assert_eq!(ranked["blk.0.ffn_gate.weight"], TensorType::Q8_0, "{ranking}");
        assert_eq!(ranked["blk.0.attn_output.weight"], plain["blk.0.attn_output.weight"]);
    }
    build_well(&forge, &[]).assert_idle();
    with("layers = \"1\"");
    let output = build(&forge, &[]).diagnostics();
    assert!(
        output.contains("there is no layer [1]: layers are counted from 0, and the last one is 0"),
        "{output}"
    );
}

#[test]
fn density_promotes_what_fits_the_budget() {
    let forge = project();
    forge.recipe(&recipe(
        "method = \"density\"\nbase = \"Q4_K\"\npromotion = \"Q8_0\"\nanchors = true\nbudget = [\"6.7 bpw\", \"1 GiB\"]\n\
         keep = [\"ffn_down\"]",
    ));
    build_well(&forge, &[]);
    let (bytes, types) = candidate(&forge, "p-6.7bpw");
    let elements: u64 = Gguf::small()
        .tensors
        .iter()
        .map(|(spec, _)| spec.dims.iter().product::<u64>())
        .sum();
    assert!(bytes <= elements * 67 / 80);
    let promoted: Vec<_> = types.iter().filter(|(_, ty)| **ty == TensorType::Q8_0).collect();
    assert!(
        !promoted.is_empty() && types.values().any(|ty| *ty == TensorType::Q4_K),
        "{types:?}"
    );
    let is = |part: &str| types[&format!("blk.0.{part}.weight")] == TensorType::Q8_0;
    assert!(is("attn_q") || !(is("attn_k") || is("attn_v")), "{types:?}");
    assert!(is("ffn_gate") || !is("ffn_up"), "{types:?}");
    let (_, all) = candidate(&forge, "p-1GiB");
    assert_eq!(all["blk.0.ffn_up.weight"], TensorType::Q8_0);
    assert_eq!(
        all["blk.0.ffn_down.weight"],
        candidate_of_source()["blk.0.ffn_down.weight"]
    );
    assert_eq!(all["token_embd.weight"], TensorType::Q4_K, "there are no data for it");
    build_well(&forge, &[]).assert_idle();
}

#[test]
fn forgequant_recipes_are_exported_and_imported() {
    let forge = project();
    forge.recipe(&recipe(
        "method = \"manual\"\notherwise = \"Q8_0\"\n\
         rules = [{ match = \"ffn_down\", type = \"Q4_K\" }, { match = \"attn_v\", type = \"keep\" }]",
    ));
    build_well(&forge, &[]);
    let first = std::fs::read(forge.path("out/small/p.gguf")).unwrap();
    let run = forge
        .run(&["policy", "export", "--format", "forgequant", "out/small/p.gguf"])
        .success();
    let exported: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(exported["name"], "p");
    assert_eq!(exported["quant"]["embedding"], "q8_0");
    assert_eq!(exported["tensor_types"]["blk.0.attn_v.weight"], "f16");
    forge.write("types.json", &run.stdout);
    // What it is is seen from how it begins.
    for args in [&["types.json"][..], &["--format", "forgequant", "types.json"]] {
        let mut all = vec!["policy", "import", "--name", "p"];
        all.extend(args);
        let imported = forge.run(&all).success();
        let body = imported.stdout.strip_prefix("[policy.p]\n").unwrap();
        assert!(body.starts_with("method = \"manual\"\n"), "{body}");
        forge.recipe(&recipe(body));
        std::fs::remove_file(forge.path("out/small/p.gguf")).unwrap();
        build_well(&forge, &[]);
        assert!(std::fs::read(forge.path("out/small/p.gguf")).unwrap() == first);
    }

    // Its quantizer has no Q6_K.
    forge.recipe(&recipe(
        "method = \"manual\"\notherwise = \"Q6_K\"\nrules = [{ match = \"attn_v\", type = \"keep\" }]",
    ));
    build_well(&forge, &[]);
    let run = forge
        .run(&["policy", "export", "--format", "forgequant", "out/small/p.gguf"])
        .status(1);
    assert_eq!(run.stdout, "");
    assert!(
        run.stderr.contains("Q6_K) and") && run.stderr.contains("--format tensors"),
        "{}",
        run.stderr
    );
    forge.write("auto.json", r#"{ "boost": { "layers": "auto:6", "type": "q4_k" } }"#);
    let run = forge.run(&["policy", "import", "auto.json"]).status(1);
    assert!(
        run.stderr
            .contains("`auto.json`: `boost`, `layers`: `auto:6` depends on an imatrix"),
        "{}",
        run.stderr
    );
}
