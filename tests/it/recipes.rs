//! The language of recipes, by samples: good ones parse and round-trip, bad ones are refused with the messages kept
//! beside them, and the JSON Schema that editors use agrees with the parser.

// Helpers of tests may unwrap too.
#![allow(clippy::unwrap_used, clippy::format_push_string)]

use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;

use forge::cli::diagnostic::Diagnostic;
use forge::cli::diagnostic::Style;
use forge::mix;
use forge::policy;
use forge::recipe;
use forge::recipe::LoadError;
use forge::recipe::Parsed;
use forge::recipe::Recipe;
use forge::recipe::RecipeError;
use forge::recipe::names;
use forge::requirement::Figure;
use forge::tensor_type::TensorType;
use forge::text::Source;
use proptest::prelude::*;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn samples(directory: &str) -> Vec<(String, PathBuf)> {
    let files = std::fs::read_dir(root().join(directory)).unwrap();
    let paths = files
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "toml"));
    let mut samples: Vec<_> = paths
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), path))
        .collect();
    samples.sort();
    assert!(!samples.is_empty(), "{directory} is empty");
    samples
}

fn parse(path: &Path) -> Result<Parsed, Vec<RecipeError>> {
    let name = path.file_name().unwrap().to_str().unwrap();
    let text = std::fs::read_to_string(path).unwrap();
    recipe::parse(&Source::new(name, text), &mut |extended| {
        let text = std::fs::read_to_string(path.parent().unwrap().join(extended));
        let text = text.map_err(|_| LoadError {
            message: "there is no such file".to_owned(),
        })?;
        Ok(Source::new(extended, text))
    })
}

fn parse_text(text: &str) -> Result<Recipe, String> {
    let parsed = recipe::parse_alone(&Source::new("text.toml", text));
    parsed.map(|parsed| parsed.recipe).map_err(|errors| rendered(&errors))
}

fn rendered(errors: &[RecipeError]) -> String {
    let all: Vec<_> = errors
        .iter()
        .map(|error| Diagnostic::recipe(error).render(Style::PLAIN))
        .collect();
    all.join("\n")
}

fn good(path: &Path) -> Parsed {
    parse(path).unwrap_or_else(|errors| panic!("{}:\n{}", path.display(), rendered(&errors)))
}

fn schema() -> jsonschema::Validator {
    let text = std::fs::read_to_string(root().join("recipes/schema.json")).unwrap();
    let schema = serde_json::from_str(&text).unwrap();
    assert!(jsonschema::draft202012::meta::is_valid(&schema));
    jsonschema::draft202012::new(&schema).unwrap()
}

fn as_json(path: &Path) -> Option<serde_json::Value> {
    let table: toml::Table = std::fs::read_to_string(path).unwrap().parse().ok()?;
    Some(serde_json::to_value(table).unwrap())
}

#[test]
fn good_recipes_parse_and_agree_with_the_schema() {
    let schema = schema();
    for (name, path) in samples("tests/fixtures/recipes/valid") {
        good(&path);
        let errors: Vec<_> = schema
            .iter_errors(&as_json(&path).unwrap())
            .map(|error| error.to_string())
            .collect();
        assert!(errors.is_empty(), "{name}: {errors:?}");
    }
}

#[test]
fn init_and_schema_give_editors_the_schema_without_an_address() {
    let forge = crate::support::Forge::new();
    crate::one_layer_project::furnish(&forge);
    let _ = forge.run(&["init", "new"]).success();
    let written = std::fs::read_to_string(forge.path("new/recipe.schema.json")).unwrap();
    assert_eq!(forge.run(&["schema"]).success().stdout, written);
    assert_eq!(
        written,
        std::fs::read_to_string(root().join("recipes/schema.json")).unwrap()
    );
    let recipe = std::fs::read_to_string(forge.path("new/recipe.toml")).unwrap();
    assert!(recipe.starts_with("#:schema recipe.schema.json\n"), "{recipe}");
    assert!(!recipe.contains("https://"), "{recipe}");
    // One that is there stays.
    forge.write("other/recipe.schema.json", "{}");
    let _ = forge.run(&["init", "other"]).success();
    assert_eq!(
        std::fs::read_to_string(forge.path("other/recipe.schema.json")).unwrap(),
        "{}"
    );
}

#[test]
fn the_schema_has_the_same_words() {
    let text = std::fs::read_to_string(root().join("recipes/schema.json")).unwrap();
    let schema: serde_json::Value = serde_json::from_str(&text).unwrap();
    let words = |name: &str| -> BTreeSet<String> {
        let words = schema["$defs"][name]["enum"].as_array().unwrap();
        words.iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    let set = |words: &mut dyn Iterator<Item = &str>| words.map(str::to_owned).collect::<BTreeSet<_>>();
    let types = |types: &[TensorType]| types.iter().map(|ty| ty.name()).collect::<Vec<_>>();
    let aliases = mix::ALIASES.iter().map(|(alias, _)| *alias);
    let mixes = names::MIXES.iter().map(|mix| mix.name());
    assert_eq!(words("mix"), set(&mut mixes.chain(aliases)));
    assert_eq!(words("type"), set(&mut types(names::TYPES).into_iter()));
    let rules = types(names::TYPES).into_iter().chain(["keep"]);
    assert_eq!(words("ruleType"), set(&mut { rules }));
    let known = policy::CURVE.iter().map(|(ty, _)| ty.name());
    assert_eq!(words("priorType"), set(&mut { known }));
    assert_eq!(words("ladderType"), set(&mut types(policy::ASHQ1_TYPES).into_iter()));
    let pattern = schema["$defs"]["requirement"]["pattern"].as_str().unwrap();
    for figure in Figure::ALL {
        assert!(
            pattern.contains(&format!("{figure}|")) || pattern.contains(&format!("{figure})")),
            "{figure}"
        );
    }
}

#[test]
fn example_recipes_are_valid() {
    let schema = schema();
    let samples = samples("recipes");
    assert!(samples.len() >= 3);
    for (name, path) in samples {
        let parsed = good(&path);
        assert_eq!(parsed.warnings, [], "{name}");
        assert_eq!(parsed.recipe.name, name);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("#:schema "), "{name}");
        let errors: Vec<_> = schema
            .iter_errors(&as_json(&path).unwrap())
            .map(|error| error.to_string())
            .collect();
        assert!(errors.is_empty(), "{name}: {errors:?}");
    }
}

#[test]
fn shown_recipes_read_back_the_same() {
    let schema = schema();
    for (name, path) in samples("tests/fixtures/recipes/valid")
        .into_iter()
        .chain(samples("recipes"))
    {
        let parsed = good(&path);
        let shown = parsed.recipe.to_toml();
        let again = parse_text(&shown).unwrap_or_else(|errors| panic!("{name}:\n{shown}\n{errors}"));
        assert_eq!(again, parsed.recipe, "{name}");
        assert_eq!(again.to_toml(), shown, "{name}");
        let json = serde_json::to_value(shown.parse::<toml::Table>().unwrap()).unwrap();
        let errors: Vec<_> = schema.iter_errors(&json).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{name}: {errors:?}\n{shown}");
    }
}

#[test]
fn the_resolved_form_matches_its_snapshot() {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../fixtures/recipes/valid");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| {
        for name in ["full", "extends", "gate-defaults"] {
            let parsed = good(&root().join(format!("tests/fixtures/recipes/valid/{name}.toml")));
            insta::assert_snapshot!(format!("{name}.shown"), parsed.recipe.to_toml());
            let json = serde_json::to_string_pretty(&parsed.recipe).unwrap();
            insta::assert_snapshot!(format!("{name}.json"), json);
        }
    });
}

#[test]
fn bad_recipes_are_refused_with_these_words() {
    let schema = schema();
    let samples = samples("tests/fixtures/recipes/invalid");
    assert!(samples.len() >= 40);
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../fixtures/recipes/invalid");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    for (name, path) in samples {
        let errors = parse(&path).expect_err(&name);
        assert!(!errors.is_empty(), "{name}");
        settings.bind(|| insta::assert_snapshot!(name.as_str(), rendered(&errors)));
        let Some(json) = as_json(&path) else { continue };
        let accepts = std::fs::read_to_string(&path).unwrap().starts_with("# schema: accepts");
        assert_eq!(
            schema.is_valid(&json),
            accepts,
            "{name}: what the schema thinks of it changed"
        );
    }
}

#[test]
fn every_error_has_json_with_its_place() {
    for (name, path) in samples("tests/fixtures/recipes/invalid") {
        for error in parse(&path).expect_err(&name) {
            let json = Diagnostic::recipe(&error).to_json();
            let code = json["code"].as_str().unwrap();
            assert!(code.starts_with("recipe::"), "{name}: {code}");
            assert!(json["line"].as_u64().unwrap() > 0, "{name}");
            assert!(
                json["rendered"]
                    .as_str()
                    .unwrap()
                    .starts_with(&format!("error[{code}]: ")),
                "{name}"
            );
        }
    }
}

#[test]
fn errors_come_in_the_order_of_the_text() {
    let path = root().join("tests/fixtures/recipes/invalid/many-errors.toml");
    let starts: Vec<_> = parse(&path)
        .unwrap_err()
        .iter()
        .map(|error| error.place().span.start)
        .collect();
    assert!(starts.is_sorted(), "{starts:?}");
    assert!(starts.len() >= 8, "{starts:?}");
}

#[test]
fn variants_are_named_after_their_values() {
    let parsed = good(&root().join("tests/fixtures/recipes/valid/full.toml"));
    let labels: Vec<_> = parsed.recipe.candidates().map(|step| step.id.label()).collect();
    assert_eq!(
        labels,
        [
            "all-hand-otherwise-Q4_K",
            "all-hand-otherwise-keep",
            "all-draft",
            "mix-Q4_K_M",
            "mix-IQ2_XXS"
        ]
    );
    let sweeps = good(&root().join("tests/fixtures/recipes/valid/sweeps.toml"));
    let one: Vec<_> = sweeps
        .recipe
        .find("imatrix.one")
        .iter()
        .map(|step| step.id.to_string())
        .collect();
    assert_eq!(one.len(), 8);
    assert_eq!(one[0], "imatrix.one@text-context256-process_output");
    assert_eq!(one[7], "imatrix.one@code-context512-no-process_output");
    assert_eq!(sweeps.recipe.find("imatrix.both").len(), 16);
    assert_eq!(sweeps.recipe.candidates().count(), 17 * 2 * 2 * 2);
}

#[test]
fn steps_are_after_the_steps_that_they_refer_to() {
    for (name, path) in samples("tests/fixtures/recipes/valid") {
        let recipe = good(&path).recipe;
        for (at, step) in recipe.steps.iter().enumerate() {
            for input in step.body.inputs() {
                assert!(
                    recipe.steps[..at].iter().any(|earlier| earlier.id == *input),
                    "{name}: {input}"
                );
            }
            for source in step.body.sources() {
                assert!(recipe.sources.contains_key(source), "{name}: {source}");
            }
            assert_eq!(step.id.to_string().parse::<recipe::StepId>().unwrap(), step.id);
        }
    }
}

#[test]
fn extended_files_fill_in_keys_and_keep_their_directories() {
    let recipe = good(&root().join("tests/fixtures/recipes/valid/extends.toml")).recipe;
    assert_eq!(recipe.name, "child");
    assert_eq!(recipe.sources["model"].path.resolved, "../base/deeper/m.gguf");
    let shown = recipe.to_toml();
    assert!(shown.contains("mix = \"Q5_K_M\"\npure = true\n"), "{shown}");
    assert!(shown.contains("files = [\"../base/texts/*.txt\"]"), "{shown}");
}

#[test]
fn files_that_extend_each_other_are_named() {
    let text = |next: &str| format!("schema = 1\nname = \"x\"\nextends = \"{next}\"\n");
    let errors = recipe::parse(&Source::new("a.toml", text("b.toml")), &mut |name| match name {
        "b.toml" => Ok(Source::new("b.toml", text("c.toml"))),
        _ => Ok(Source::new("c.toml", text("b.toml"))),
    });
    let words = rendered(&errors.unwrap_err());
    assert!(words.contains("b.toml -> c.toml -> b.toml"), "{words}");
    let mut number = 0;
    let endless = recipe::parse(&Source::new("a.toml", text("0.toml")), &mut |name| {
        number += 1;
        Ok(Source::new(name, text(&format!("{number}.toml"))))
    });
    assert!(rendered(&endless.unwrap_err()).contains("more than 16 files"));
}

#[test]
fn likely_mistakes_are_warnings() {
    let text = "schema = 1\nname = \"w\"\n[source.model]\npath = \"m.gguf\"\n[corpus.text]\nfiles = [\"a\"]\n\
                [corpus.unused]\nfiles = [\"b\"]\n[imatrix.i]\ncorpus = \"text\"\n\
                [policy.p]\nimatrix = \"i\"\nmethod = \"mix\"\nmix = \"Q4_K_M\"\n[promote.p]\npolicy = \"p\"\n\
                [eval.e]\ncorpus = \"text\"\n";
    let parsed = recipe::parse_alone(&Source::new("w.toml", text)).unwrap();
    let words: Vec<_> = parsed
        .warnings
        .iter()
        .map(|warning| Diagnostic::recipe_warning(warning).render(Style::PLAIN))
        .collect();
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../fixtures/recipes");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!("warnings", words.join("\n")));
}

/// Writes a recipe anew: other order of keys and sections, other table styles, other white space, comments.
fn reformat(table: &toml::Table, random: &mut dyn FnMut(usize) -> usize) -> String {
    fn shuffled<'t>(
        table: &'t toml::Table,
        random: &mut dyn FnMut(usize) -> usize,
    ) -> Vec<(&'t String, &'t toml::Value)> {
        let mut entries: Vec<_> = table.iter().collect();
        for at in (1..entries.len()).rev() {
            entries.swap(at, random(at + 1));
        }
        entries
    }
    let key = |key: &str| toml::Value::from(key).to_string();
    let mut text = String::from("# a comment\n");
    let (mut sections, mut lines) = (String::new(), String::new());
    for (kind, value) in shuffled(table, random) {
        let Some(named) = value.as_table() else {
            lines.push_str(&format!("{kind}{}= {value} # why\n", " ".repeat(random(3))));
            continue;
        };
        for (name, section) in shuffled(named, random) {
            let entries = shuffled(section.as_table().unwrap(), random);
            match random(3) {
                0 => {
                    let all: Vec<_> = entries.iter().map(|(key, value)| format!("{key}={value}")).collect();
                    lines.push_str(&format!("{kind}.{} = {{ {} }}\n", key(name), all.join(" , ")));
                }
                1 if !entries.is_empty() => {
                    for (entry, value) in entries {
                        lines.push_str(&format!("  {kind} . {}.{entry} = {value}\n\n", key(name)));
                    }
                }
                _ => {
                    sections.push_str(&format!("# about {name}\n[ {kind}.{} ]\n", key(name)));
                    for (entry, value) in entries {
                        sections.push_str(&format!("\t{entry}  =  {value}\n"));
                    }
                }
            }
        }
    }
    text.push_str(&lines);
    text.push_str(&sections);
    text
}

/// Writes a text as TOML with every character escaped.
fn escaped(text: &str) -> String {
    let escapes: Vec<String> = text.chars().map(|c| format!("\\U{:08X}", c as u32)).collect();
    let escapes = escapes.concat();
    format!("\"{escapes}\"")
}

/// Returns a recipe with this text, which is not empty and has no NUL, wherever a recipe may have any text.
fn with_text(name: &str, text: &str) -> String {
    let (pattern, files) = (regex::escape(text), glob::Pattern::escape(text));
    let (text, pattern, files) = (escaped(text), escaped(&pattern), escaped(&files));
    let name = escaped(name);
    format!(
        "schema = 1\nname = \"odd\"\ndescription = {text}\n\
         [source.{name}]\npath = {text}\n\
         [corpus.{name}]\nfiles = [\"a\", {files}]\n\
         [imatrix.{name}]\ncorpus = {name}\n\
         [policy.{name}]\nmethod = \"prior\"\nimatrix = {name}\nbudget = [\"1 GiB\", {{ candidate = \"whole\" }}]\n\
         floors = [{{ match = {pattern}, type = \"Q4_K\" }}]\n\
         [policy.{name}.device.{name}]\ntensors = [\"a\", {pattern}]\nmemory = \"24 GiB\"\n\
         [policy.rules]\nmethod = \"manual\"\nkeep = [{pattern}]\n\
         rules = [{{ match = {pattern}, type = \"Q4_K\" }}, {{ match = \".\", type = \"keep\" }}]\n\
         [promote.{name}]\npolicy = {name}\n[promote.whole]\npolicy = \"rules\"\n"
    )
}

fn assert_shown_reads_back(text: &str) {
    let recipe = parse_text(text).unwrap_or_else(|errors| panic!("{text}\n{errors}"));
    let shown = recipe.to_toml();
    let again = parse_text(&shown).unwrap_or_else(|errors| panic!("{shown}\n{errors}"));
    assert_eq!(again, recipe, "{shown}");
    assert_eq!(again.to_toml(), shown);
}

#[test]
fn recipes_with_odd_texts_and_names_read_back_when_shown() {
    for text in [
        "\"",
        "'",
        "'''\"\"\"",
        "\"\"\"\\",
        "\\",
        "C:\\models\\new",
        "\n",
        "\r\na\tb\r",
        "\u{1}\u{8}\u{b}\u{1b}[0m\u{7f}\u{85}",
        "ä \u{1f600} \u{202e}\u{feff}\u{2028}",
        " ",
        "a = [b] # c",
    ] {
        assert_shown_reads_back(&with_text("a", text));
    }
    for name in ["1", "1.5", "a.b", "2026-01-01", "true", "inf", "_", "a-", "a..b"] {
        assert_shown_reads_back(&with_text(name, "a"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn how_a_recipe_is_written_does_not_matter(seed: u64, which in 0usize..4) {
        let name = ["full", "sweeps", "gate-defaults", "names-with-dots"][which];
        let path = root().join(format!("tests/fixtures/recipes/valid/{name}.toml"));
        let original = good(&path).recipe;
        let table: toml::Table = std::fs::read_to_string(&path).unwrap().parse().unwrap();
        // xorshift: enough to shuffle
        let mut state = seed | 1;
        let mut random = |limit: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % limit as u64) as usize
        };
        let text = reformat(&table, &mut random);
        let again = parse_text(&text);
        prop_assert!(again.is_ok(), "{text}\n{}", again.unwrap_err());
        let again = again.unwrap();
        prop_assert_eq!(&again, &original);
        prop_assert_eq!(again.to_toml(), original.to_toml());
    }

    #[test]
    fn recipes_with_any_text_read_back_when_shown(name in "[A-Za-z0-9_][A-Za-z0-9._-]{0,9}", text in "[^\0]{1,20}") {
        assert_shown_reads_back(&with_text(&name, &text));
    }

    #[test]
    fn no_edit_makes_the_reader_panic(at in 0usize..4000, cut in 0usize..12, put in "[\\[\\]{}=\",.a-z0-9\n é-]{0,6}", which in 0usize..3) {
        let name = ["full", "sweeps", "gate-defaults"][which];
        let mut text = std::fs::read_to_string(root().join(format!("tests/fixtures/recipes/valid/{name}.toml"))).unwrap();
        let start = at % text.len();
        let end = (start + cut).min(text.len());
        text.replace_range(start..end, &put);
        match recipe::parse_alone(&Source::new("edited.toml", text.as_str())) {
            Ok(parsed) => {
                let again = parse_text(&parsed.recipe.to_toml());
                prop_assert_eq!(again.as_ref(), Ok(&parsed.recipe));
            }
            Err(errors) => {
                prop_assert!(!errors.is_empty());
                prop_assert!(!rendered(&errors).is_empty());
            }
        }
    }
}

#[test]
fn weights_keep_every_digit() {
    for weight in ["0.000001", "0.1", "1000000", "999999.999999", "2", "0.333333", "1e0"] {
        let text = format!(
            "schema = 1\nname = \"w\"\n[source.m]\npath = \"m\"\n[corpus.c]\nfiles = [\"c\"]\n[imatrix.a]\ncorpus = \"c\"\n\
             [imatrix.b]\nmerge = [\"a\"]\nweights = [{weight}]\n"
        );
        let read = parse_text(&text);
        if weight.contains('e') {
            assert!(read.unwrap_err().contains("at most six decimal places"), "no exponents");
            continue;
        }
        let recipe = read.unwrap();
        let shown = recipe.to_toml();
        assert_eq!(parse_text(&shown).as_ref(), Ok(&recipe), "{shown}");
        assert!(
            serde_json::to_string(&recipe)
                .unwrap()
                .contains(&format!("\"weight\":\"{weight}\""))
        );
    }
}

#[test]
fn deep_texts_are_refused_quickly() {
    for text in [
        "a.".repeat(50_000) + "a = 1",
        "[".to_owned() + &"a.".repeat(50_000) + "a]",
        "a=".to_owned() + &"{a=".repeat(50_000),
    ] {
        assert!(parse_text(&text).is_err());
    }
}
