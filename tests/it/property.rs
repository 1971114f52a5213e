//! The promise of the cache, asked of random recipes and random edits: what a build with a cache gives is what a build
//! without one gives, byte for byte. `FORGE_TEST_EDITS` (12) says how many edits, `FORGE_TEST_SEED` (1) with which random
//! numbers: `FORGE_TEST_EDITS=500 FORGE_TEST_SEED=$RANDOM cargo test --test it property` searches for longer.

#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;

use forge::gguf::Value;

use crate::crash::Damage;
use crate::crash::damage;
use crate::small_model;
use crate::small_model::InMemory;
use crate::small_model::Random;
use crate::small_model::assert_same_products;
use crate::small_model::keys;
use crate::small_model::number_from;
use crate::small_model::sharded;
use crate::support::Forge;
use crate::support::Run;

const MIXES: &[&str] = &["Q4_0", "Q5_1", "Q8_0", "IQ4_NL", "Q4_K_S", "F16"];
const TYPES: &[&str] = &["Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "Q4_K", "keep"];
const PATTERNS: &[&str] = &[
    "attn_[qk]",
    "attn_v",
    "ffn_down",
    "ffn_(up|gate)",
    "token_embd",
    "attn_output",
];

/// A recipe of the random kind. Everything that an edit can change is a field.
#[derive(Debug, Clone)]
struct Recipe {
    mixes: Vec<&'static str>,
    rules: Vec<(&'static str, &'static str)>,
    otherwise: &'static str,
    keep: Option<&'static str>,
    chunks: [usize; 2],
    mode: Option<&'static str>,
    eval_chunks: usize,
    kld: bool,
    chunking: &'static str,
}

impl Recipe {
    fn of(random: &mut Random) -> Self {
        let mut recipe = Self {
            mixes: vec!["Q4_0"],
            rules: vec![("attn_v", "Q8_0")],
            otherwise: "Q8_0",
            keep: None,
            chunks: [2, 2],
            mode: None,
            eval_chunks: 2,
            kld: true,
            chunking: "per-file",
        };
        for _ in 0..6 {
            recipe.edit(random);
        }
        recipe
    }

    /// Changes one thing, and says what.
    fn edit(&mut self, random: &mut Random) -> String {
        match random.below(9) {
            0 => {
                let mix = random.pick(MIXES);
                match self.mixes.iter().position(|known| *known == mix) {
                    Some(at) if self.mixes.len() > 1 => {
                        self.mixes.remove(at);
                    }
                    Some(_) => {}
                    // Two at the most, so that a case takes moments.
                    None if self.mixes.len() < 2 => self.mixes.push(mix),
                    None => self.mixes[0] = mix,
                }
                format!("mixes {:?}", self.mixes)
            }
            1 => {
                let rule = (random.pick(PATTERNS), random.pick(TYPES));
                // Two rules of one expression are an error of the recipe.
                self.rules.retain(|(pattern, _)| *pattern != rule.0);
                self.rules.insert(random.below(self.rules.len() + 1), rule);
                format!("rules {:?}", self.rules)
            }
            2 => {
                if self.rules.len() > 1 {
                    self.rules.remove(random.below(self.rules.len()));
                }
                format!("rules {:?}", self.rules)
            }
            3 => {
                self.otherwise = random.pick(TYPES);
                format!("otherwise {}", self.otherwise)
            }
            4 => {
                self.keep = if self.keep.is_some() {
                    None
                } else {
                    Some(random.pick(PATTERNS))
                };
                format!("keep {:?}", self.keep)
            }
            5 => {
                let which = random.below(2);
                self.chunks[which] = 1 + random.below(4);
                format!("chunks {:?}", self.chunks)
            }
            6 => {
                self.mode = random.pick(&[None, Some("sum"), Some("mean"), Some("max")]);
                format!("mode {:?}", self.mode)
            }
            7 => {
                self.eval_chunks = 2 + random.below(2);
                self.kld = random.below(3) > 0;
                format!("eval of {} chunks, kld {}", self.eval_chunks, self.kld)
            }
            _ => {
                self.chunking = random.pick(&["per-file", "joined"]);
                format!("chunking {}", self.chunking)
            }
        }
    }

    fn text(&self) -> String {
        let mut text = format!(
            r#"schema = 1
name = "random"
[source.model]
path = "small.gguf"
[corpus.a]
files = ["prose.txt", "code.txt"]
chunking = "{}"
[corpus.b]
files = ["code.txt"]
[corpus.held-out]
files = ["held-out.txt"]
[imatrix.a]
corpus = "a"
context = 64
chunks = {}
block = 1
[imatrix.b]
corpus = "b"
context = 64
chunks = {}
block = 2
"#,
            self.chunking, self.chunks[0], self.chunks[1]
        );
        let mut imatrix = "a";
        if let Some(mode) = self.mode {
            writeln!(text, "[imatrix.merged]\nmerge = [\"a\", \"b\"]\nmode = \"{mode}\"").unwrap();
            imatrix = "merged";
        }
        writeln!(
            text,
            "[policy.mix]\nmethod = \"mix\"\nimatrix = \"{imatrix}\"\nmix = {:?}",
            self.mixes
        )
        .unwrap();
        if let Some(keep) = self.keep {
            writeln!(text, "keep = [{keep:?}]").unwrap();
        }
        writeln!(text, "[policy.manual]\nmethod = \"manual\"\nimatrix = \"b\"").unwrap();
        let rules: Vec<String> = self
            .rules
            .iter()
            .map(|(pattern, ty)| format!("{{ match = {pattern:?}, type = {ty:?} }}"))
            .collect();
        writeln!(text, "rules = [{}]\notherwise = {:?}", rules.join(", "), self.otherwise).unwrap();
        writeln!(
            text,
            "[promote.mix]\npolicy = \"mix\"\n[promote.manual]\npolicy = \"manual\"\n\
             [eval.quality]\nreference = \"model\"\ncorpus = \"held-out\"\ncontext = 64\nblock = 1\nchunks = {}\nkld = {}",
            self.eval_chunks, self.kld
        )
        .unwrap();
        text
    }
}

/// Changes something that is not the recipe, and says what.
fn edit_files(forge: &Forge, model: &mut InMemory, random: &mut Random) -> String {
    match random.below(7) {
        0 => {
            let name = random.pick(&["prose.txt", "code.txt", "held-out.txt"]);
            let mut text = std::fs::read_to_string(forge.path(name)).unwrap();
            let at = random.below(200);
            text.insert_str(at, random.pick(&["a", " word", "\n\n", "1"]));
            forge.write(name, text);
            format!("text {name} at {at}")
        }
        1 => {
            let name = format!("model {}", random.below(1000));
            model
                .metadata
                .set("general.name", &Value::String(name.clone().into_bytes()))
                .unwrap();
            model.write(&forge.path("small.gguf"));
            format!("metadata {name}")
        }
        2 => {
            model.change(random);
            model.write(&forge.path("small.gguf"));
            "a number of a tensor".to_owned()
        }
        3 => {
            // The same bytes in a new file: nothing may depend on when it was written.
            model.write(&forge.path("small.gguf"));
            "the model written again".to_owned()
        }
        4 => {
            let out = forge.path("out/random");
            let all: Vec<String> = small_model::names(&out).into_iter().collect();
            let name = &all[random.below(all.len())];
            if random.below(2) == 0 {
                std::fs::remove_file(out.join(name)).unwrap();
                format!("output {name} removed")
            } else {
                damage(&out.join(name), Damage::Flip, random);
                format!("output {name} changed")
            }
        }
        5 => {
            // As a collection of garbage does, or somebody who frees space.
            let results: Vec<_> = sharded(forge.store(), "actions-v1").into_values().collect();
            for _ in 0..results.len().div_ceil(4) {
                std::fs::remove_file(&results[random.below(results.len())]).ok();
            }
            "results removed".to_owned()
        }
        _ => {
            let directory = random.pick(&["cas-v1", "cas-v1", "actions-v1", "stat-v1"]);
            let files: Vec<_> = sharded(forge.store(), directory).into_values().collect();
            let how = random.pick(&[Damage::Flip, Damage::Truncate, Damage::Delete]);
            let mut count = 0;
            for _ in 0..files.len().div_ceil(8) {
                let file = &files[random.below(files.len())];
                // Cut to nothing or removed before, it cannot be damaged more.
                if std::fs::metadata(file).is_ok_and(|facts| facts.len() > 0) {
                    damage(file, how, random);
                    count += 1;
                }
            }
            format!("{count} files of {directory}: {how:?}")
        }
    }
}

#[test]
fn a_cached_build_is_a_clean_build() {
    let edits = number_from("FORGE_TEST_EDITS", 12);
    let mut random = Random(number_from("FORGE_TEST_SEED", 1) as u64);
    let mut forge = small_model::project();
    let mut model = InMemory::small();
    let mut recipe = Recipe::of(&mut random);
    let mut history = vec![format!("{recipe:?}")];
    for number in 0..=edits {
        if number > 0 {
            if number % 40 == 0 {
                // A new start now and then, so that many edits are many cases.
                forge = small_model::project();
                model = InMemory::small();
                recipe = Recipe::of(&mut random);
                history = vec![format!("{recipe:?}")];
            } else if random.below(2) == 0 {
                history.push(recipe.edit(&mut random));
            } else {
                history.push(edit_files(&forge, &mut model, &mut random));
            }
        }
        forge.recipe(&recipe.text());
        let what = format!("edit {number} of {history:#?}");
        let cached = Run::of(small_model::build(&forge, &[]).output().unwrap());
        assert_eq!(cached.status, Some(0), "{what}\n{}\n{}", cached.stdout, cached.stderr);
        let (clean, _) = small_model::build_clean(&forge, &[]);
        assert_same_products(&forge.path("out/random"), &clean.path().join("out"), &what);
        let again = Run::of(small_model::build(&forge, &[]).output().unwrap()).success();
        assert_eq!(keys(&again.json_lines(), "ran"), [""; 0], "{what}");
    }
}
