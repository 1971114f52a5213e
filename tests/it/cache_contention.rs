//! Builders of three recipes that alternate, killed at random, with collectors and a checker in loops on the same store. At
//! the end every promise is checked that users rely on. `FORGE_TEST_STRESS_SECONDS` (10) says for how long,
//! `FORGE_TEST_SEED` (1) with which random numbers.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use crate::quick_project;
use crate::small_model;
use crate::small_model::Going;
use crate::small_model::Random;
use crate::small_model::number_from;
use crate::support::Forge;
use crate::support::Run;

const BUILDERS: usize = 3;
/// The types of the candidate that all recipes have.
const SHARED: [&str; 4] = ["Q4_0", "Q5_0", "Q4_1", "Q5_1"];
/// The limit of `forge cache gc --max-size`, in bytes: less than what all three recipes leave.
const LIMIT: u64 = 700_000;
/// One build in so many is killed.
const KILLED: usize = 5;
/// One build in so many has its output reproduced from its manifest.
const REPRODUCED: usize = 6;
/// How many examples of each kind of violation are printed.
const EXAMPLES: usize = 3;

/// What was broken: how often, by kind, with the first examples.
#[derive(Default)]
struct Violations(Mutex<BTreeMap<String, (usize, Vec<String>)>>);

impl Violations {
    fn add(&self, kind: &str, example: &str) {
        let mut all = self.0.lock().unwrap();
        let (count, examples) = all.entry(kind.to_owned()).or_default();
        *count += 1;
        if examples.len() < EXAMPLES {
            examples.push(example.to_owned());
        }
    }

    fn report(self) -> String {
        let mut text = String::new();
        for (kind, (count, examples)) in self.0.into_inner().unwrap() {
            let _ = writeln!(text, "{count} x {kind}");
            for example in examples {
                let indented = example.trim().replace('\n', "\n      ");
                let _ = writeln!(text, "    - {indented}");
            }
        }
        text
    }
}

/// Runs a command that may be expected to end with status 0, and counts a violation if it does not. Says whether it did.
fn expect(forge: &Forge, args: &[&str], kind: &str, violations: &Violations) -> bool {
    let run = forge.run(args);
    if run.status != Some(0) {
        let example = format!(
            "forge {}: {:?}\n{}{}",
            args.join(" "),
            run.status,
            run.stdout,
            run.stderr
        );
        violations.add(kind, &example);
    }
    run.status == Some(0)
}

/// Asserts what users may expect of a folder after a build: manifests that agree with the outputs and themselves, and from
/// which the outputs can be made again.
fn check_outputs(forge: &Forge, out: &str, reproduce: Option<usize>, violations: &Violations) {
    let good = expect(
        forge,
        &["verify", "-j", "1", out],
        "`forge verify` says BAD after a build",
        violations,
    );
    let Some(which) = reproduce.filter(|_| good) else {
        return;
    };
    let candidate = format!("{out}/c{}.gguf", which % 3);
    let run = forge.run(&["reproduce", "-j", "1", &candidate]);
    if run.status != Some(0) || !run.stdout.contains("identical") {
        let example = format!("{candidate}: {:?}\n{}{}", run.status, run.stdout, run.stderr);
        violations.add("`forge reproduce` does not say identical", &example);
    }
}

/// Checks the store, and counts each thing that is called damaged, by what it is.
fn check_store(forge: &Forge, when: &str, violations: &Violations) {
    let (run, lines) = quick_project::verify(forge);
    if run.status == Some(0) {
        return;
    }
    let mut blamed = false;
    for line in lines.iter().filter(|line| line["reason"] != "cache-verified") {
        let message = line["message"].as_str().unwrap_or_default();
        // `blob 0123abcd is gone: the ...` and `note `runs-v1/...` is damaged`: what differs each time is left out.
        let kind: Vec<&str> = message
            .split(' ')
            .filter(|word| !word.contains(char::is_numeric))
            .take(6)
            .collect();
        violations.add(
            &format!("`cache verify` blames {when}: {}", kind.join(" ")),
            &line.to_string(),
        );
        blamed = true;
    }
    if !blamed {
        let example = format!("{:?}\n{}{}", run.status, run.stdout, run.stderr);
        violations.add(&format!("`cache verify` fails {when}"), &example);
    }
}

#[test]
fn three_recipes_alternate_beside_collections_checks_and_kills() {
    let time = Duration::from_secs(number_from("FORGE_TEST_STRESS_SECONDS", 10) as u64);
    let seed = number_from("FORGE_TEST_SEED", 1) as u64;
    eprintln!("FORGE_TEST_SEED={seed}");
    let forge = Forge::new();
    quick_project::write_model(&forge, 32);
    // The same source and candidate names; some tensors are the same, others are not. The last candidate is the same in all
    // three: its file stays when the recipe changes, and only its manifest is written again.
    let recipes = ["first.toml", "second.toml", "third.toml"];
    let candidates = [
        [
            ["Q8_0", "Q4_0", "Q4_0", "Q5_0"],
            ["Q8_0", "Q5_1", "Q4_0", "Q5_0"],
            SHARED,
        ],
        [
            ["Q8_0", "Q4_1", "Q4_0", "Q5_0"],
            ["Q5_0", "Q5_1", "Q4_1", "Q8_0"],
            SHARED,
        ],
        [
            ["Q5_0", "Q4_1", "Q8_0", "Q5_0"],
            ["Q8_0", "Q5_1", "Q4_0", "Q4_0"],
            SHARED,
        ],
    ];
    for (name, candidates) in recipes.iter().zip(&candidates) {
        forge.write(name, quick_project::recipe(name.trim_end_matches(".toml"), candidates));
    }
    let violations = Violations::default();
    let stop = AtomicBool::new(false);
    let [builds, kills, reproduced, collections, checks] = [const { AtomicUsize::new(0) }; 5];
    let count = |counter: &AtomicUsize| counter.fetch_add(1, Ordering::Relaxed);
    let limit = format!("{LIMIT}B");
    let started = Instant::now();
    std::thread::scope(|scope| {
        for number in 0..BUILDERS {
            let (forge, violations, stop, count) = (&forge, &violations, &stop, &count);
            let (builds, kills, reproduced) = (&builds, &kills, &reproduced);
            scope.spawn(move || {
                let mut random = Random(seed * 1000 + number as u64);
                // One builder for each folder: what is in it after a build is what the build says.
                let out = format!("out-{number}");
                while !stop.load(Ordering::Relaxed) {
                    let recipe = random.pick(&recipes);
                    let mut going = Going::start(small_model::build(forge, &[recipe, "--out", &out]));
                    if random.below(KILLED) == 0 {
                        std::thread::sleep(Duration::from_millis(random.below(120) as u64));
                        going.child.kill().unwrap();
                        count(kills);
                        continue;
                    }
                    let run = going.end();
                    if run.status != Some(0) {
                        let example = format!("{recipe}: {:?}\n{}{}", run.status, run.stdout, run.stderr);
                        violations.add("a build fails", &example);
                        continue;
                    }
                    count(builds);
                    let reproduce = (random.below(REPRODUCED) == 0).then(|| count(reproduced));
                    check_outputs(forge, &out, reproduce, violations);
                }
            });
        }
        scope.spawn(|| {
            let mut random = Random(seed);
            while !stop.load(Ordering::Relaxed) {
                let args: &[&str] = if random.below(2) == 0 {
                    &["cache", "gc", "--older-than", "0d", "--yes"]
                } else {
                    &["cache", "gc", "--also-newest", "--max-size", &limit, "--yes"]
                };
                expect(&forge, args, "`cache gc` fails", &violations);
                count(&collections);
            }
        });
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                check_store(&forge, "while others build and collect", &violations);
                count(&checks);
            }
        });
        while started.elapsed() < time {
            std::thread::sleep(Duration::from_millis(50));
        }
        stop.store(true, Ordering::Relaxed);
    });

    // Nobody disturbs these builds, so nothing at all may be wrong after them.
    for (number, recipe) in recipes.iter().enumerate() {
        let out = format!("out-{number}");
        let run = Run::of(small_model::build(&forge, &[recipe, "--out", &out]).output().unwrap());
        if run.status != Some(0) {
            violations.add("a last build fails", &format!("{}{}", run.stdout, run.stderr));
        }
        check_outputs(&forge, &out, Some(number), &violations);
    }
    check_store(&forge, "at the end", &violations);
    for (args, limit) in [
        (
            ["cache", "gc", "--also-newest", "--max-size", "700000B", "--yes"],
            LIMIT,
        ),
        (
            ["cache", "gc", "--also-newest", "--max-size", "600000B", "--yes"],
            600_000,
        ),
    ] {
        expect(&forge, &args, "a last `cache gc` fails", &violations);
        let size = forge
            .run(&["cache", "size", "--message-format", "json"])
            .success()
            .json_lines();
        let space = size[0]["total"]["disk_bytes"].as_u64().unwrap();
        if space > limit + limit / 10 {
            violations.add(
                "the limit is not held within 10 %",
                &format!("{space} bytes: {}", size[0]),
            );
        }
    }
    let [builds, kills, reproduced, collections, checks] =
        [builds, kills, reproduced, collections, checks].map(AtomicUsize::into_inner);
    eprintln!(
        "{builds} builds, {reproduced} reproduced, {kills} kills, {collections} collections, {checks} checks in {time:?}"
    );
    let report = violations.report();
    assert!(report.is_empty(), "FORGE_TEST_SEED={seed}:\n{report}");
    assert!(builds > BUILDERS && kills > 0 && collections > 1 && checks > 0);
}
