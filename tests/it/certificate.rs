//! Certificates: what the solver writes is found true, and nothing else is.

use std::time::Instant;

use forge::allocation::Base;
use forge::allocation::Effort;
use forge::allocation::Problem;
use forge::allocation::Scale;
use forge::allocation::Solver;
use forge::allocation::Status;
use forge::allocation::document;
use forge::certificate::CertificateError;
use forge::certificate::DEFAULT_STATES;
use forge::certificate::Verdict;
use forge::certificate::check;
use proptest::prelude::*;
use serde_json::Value;
use serde_json::json;

use crate::allocation::Numbers;
use crate::allocation::like_a_model;
use crate::allocation::problem_of;
use crate::support::Forge;

/// The certificate of a problem under limits.
fn certify(problem: &Problem, limits: &[Vec<u64>], states: u64) -> String {
    let solver = Solver::new(problem);
    let effort = Effort { states, stop: None };
    let answers: Vec<_> = limits
        .iter()
        .map(|limits| solver.solve(limits, &effort).unwrap())
        .collect();
    assert!(answers.iter().all(|answer| answer.status != Status::NothingFound));
    document(problem, Scale::from_exponent(40).unwrap(), None, &answers).unwrap()
}

fn verdicts(text: &str) -> Result<Vec<Verdict>, CertificateError> {
    check(text, DEFAULT_STATES).map(|checked| checked.iter().map(|checked| checked.verdict).collect())
}

/// A small document with an answer of every claim.
pub(crate) fn sample() -> Value {
    let mut groups = like_a_model(12, 5, 1.0, 11);
    groups.push(vec![(0, vec![64])]);
    let problem = problem_of(&[4096], &groups);
    let (least, most) = problem.range(0).unwrap();
    let middle = least + (most - least) / 3;
    let text = certify(&problem, &[vec![middle], vec![least - 1], vec![most + 7]], 1 << 20);
    let short = certify(&problem, &[vec![middle]], 0);
    let mut document: Value = serde_json::from_str(&text).unwrap();
    let short: Value = serde_json::from_str(&short).unwrap();
    document["answers"]
        .as_array_mut()
        .unwrap()
        .push(short["answers"][0].clone());
    seal(&mut document);
    document
}

/// The digest of a document as `cache-schema/README.md` tells it.
fn seal(document: &mut Value) {
    let mut text = String::new();
    let mut line = |kind: &str, fields: Vec<String>| {
        text += &[vec![kind.to_owned()], fields].concat().join("\t");
        text.push('\n');
    };
    let list = |value: &Value| -> Vec<String> { value.as_array().unwrap().iter().map(Value::to_string).collect() };
    let problem = &document["problem"];
    line("unit", vec![problem["unit_exponent"].to_string()]);
    if let Some(losses) = problem["losses"].as_str() {
        line("losses", vec![losses.to_owned()]);
    }
    if let Some(base) = problem["base"].as_object() {
        line("base", list(&base["choice"]));
        line("base-loss", vec![base["loss"].as_str().unwrap().to_owned()]);
        line("penalty", vec![base["penalty"].to_string()]);
    }
    for capacity in problem["capacities"].as_array().unwrap() {
        line(
            "capacity",
            vec![capacity["name"].to_string(), capacity["constant"].to_string()],
        );
    }
    for group in problem["groups"].as_array().unwrap() {
        line("group", vec![group["name"].to_string()]);
        for option in group["options"].as_array().unwrap() {
            let head = vec![option["name"].to_string(), option["loss"].to_string()];
            line("option", [head, list(&option["uses"])].concat());
        }
    }
    for answer in document["answers"].as_array().unwrap() {
        line("answer", vec![answer["claim"].as_str().unwrap().to_owned()]);
        line("limits", list(&answer["limits"]));
        line("choice", list(&answer["choice"]));
        line("loss", vec![answer["loss"].to_string()]);
        line("uses", list(&answer["uses"]));
        line("multipliers", list(&answer["multipliers"]["numerators"]));
        line("denominator", vec![answer["multipliers"]["denominator"].to_string()]);
        line("bound", vec![answer["bound"].as_str().unwrap().to_owned()]);
        line("least", vec![answer["least"].to_string()]);
        line("gap", vec![answer["gap"].to_string()]);
        if let Some(predicted) = answer["predicted"].as_str() {
            line("predicted", vec![predicted.to_owned()]);
        }
    }
    document["digest"] = json!(blake3::hash(text.as_bytes()).to_string());
}

/// The places of all numbers of a document, those that are written as strings too.
fn numbers(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Number(_) => found.push(at.to_owned()),
        Value::String(text) if text.parse::<i128>().is_ok() => found.push(at.to_owned()),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .for_each(|(index, item)| numbers(item, &format!("{at}/{index}"), found)),
        Value::Object(fields) => fields
            .iter()
            .for_each(|(key, item)| numbers(item, &format!("{at}/{key}"), found)),
        _ => {}
    }
}

fn changed(value: &Value, by: i64) -> Value {
    match value {
        Value::String(text) => json!((text.parse::<i128>().unwrap() + i128::from(by)).to_string()),
        number => number.as_u64().map_or_else(
            || json!(number.as_i64().unwrap().wrapping_add(by)),
            |number| json!(number.wrapping_add_signed(by)),
        ),
    }
}

#[test]
fn what_the_solver_writes_is_what_the_schema_says_and_is_true() {
    let document = sample();
    let schema = include_str!("../../cache-schema/certificate.v2.json");
    let schema: Value = serde_json::from_str(schema).unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let errors: Vec<String> = validator
        .iter_errors(&document)
        .map(|error| error.to_string())
        .collect();
    assert!(errors.is_empty(), "{errors:#?}");
    let found = verdicts(&document.to_string()).unwrap();
    assert!(
        matches!(
            found[..],
            [
                Verdict::Optimal,
                Verdict::BelowMinimum,
                Verdict::Optimal,
                Verdict::Gap { gap: 1.. }
            ]
        ),
        "{found:?}"
    );
}

#[test]
fn any_changed_number_is_refused() {
    let document = sample();
    let mut places = Vec::new();
    numbers(&document, "", &mut places);
    assert!(places.len() > 150, "{}", places.len());
    for place in &places {
        for by in [1, -1, 2, 1 << 20] {
            let mut copy = document.clone();
            let number = copy.pointer_mut(place).unwrap();
            *number = changed(number, by);
            assert!(verdicts(&copy.to_string()).is_err(), "{place} changed by {by}");
        }
    }
}

#[test]
fn any_changed_number_of_an_answer_is_refused_even_with_a_new_digest() {
    let document = sample();
    let mut places = Vec::new();
    numbers(&document["answers"], "/answers", &mut places);
    let mut refused = 0;
    for place in &places {
        for by in [1, -1, 2, 1 << 20] {
            let mut copy = document.clone();
            let number = copy.pointer_mut(place).unwrap();
            *number = changed(number, by);
            seal(&mut copy);
            let found = verdicts(&copy.to_string());
            // A limit may be another one if it says nothing: below the minimum, or above everything.
            let free = place == "/answers/1/limits/0" || place == "/answers/2/limits/0";
            if !free {
                assert!(found.is_err(), "{place} changed by {by}");
                refused += 1;
            }
        }
    }
    assert!(refused > 90, "{refused}");
}

#[test]
fn a_certificate_of_another_problem_is_rejected() {
    let document = sample();
    // An option that is not chosen, and so good that it should have been.
    let mut copy = document.clone();
    let chosen = &document["answers"][0]["choice"][0];
    let options = copy["problem"]["groups"][0]["options"].as_array_mut().unwrap();
    let other = options.iter_mut().find(|option| option["name"] != *chosen).unwrap();
    other["loss"] = json!(-1);
    other["uses"] = json!([1]);
    seal(&mut copy);
    assert!(matches!(
        verdicts(&copy.to_string()),
        Err(CertificateError::Fact { fact: "bound", .. })
    ));

    // Claims exchanged.
    let claim = |at: usize, claim: &str, gap: Option<u64>| {
        let mut copy = document.clone();
        copy["answers"][at]["claim"] = json!(claim);
        if let Some(gap) = gap {
            copy["answers"][at]["gap"] = json!(gap);
        }
        copy["answers"] = json!([copy["answers"][at]]);
        seal(&mut copy);
        verdicts(&copy.to_string())
    };
    assert!(matches!(
        claim(3, "optimal", Some(0)),
        Err(CertificateError::NotOptimal { .. })
    ));
    assert!(matches!(
        claim(0, "below-minimum", None),
        Err(CertificateError::NotBelow { .. })
    ));
    assert!(matches!(
        claim(1, "optimal", Some(0)),
        Err(CertificateError::OverLimit { .. })
    ));
    assert!(matches!(
        claim(0, "gap", None),
        Err(CertificateError::Fact { fact: "gap", .. })
    ));

    // Names.
    let mut copy = document.clone();
    copy["answers"][0]["choice"][0] = json!("no such option");
    seal(&mut copy);
    assert!(matches!(
        verdicts(&copy.to_string()),
        Err(CertificateError::Choice { .. })
    ));
    let mut copy = document.clone();
    copy["problem"]["groups"][1]["name"] = copy["problem"]["groups"][0]["name"].clone();
    seal(&mut copy);
    assert!(matches!(
        verdicts(&copy.to_string()),
        Err(CertificateError::Problem { .. })
    ));
    let mut copy = document.clone();
    copy["answers"][0]["multipliers"]["denominator"] = json!(0);
    seal(&mut copy);
    assert!(matches!(
        verdicts(&copy.to_string()),
        Err(CertificateError::Choice { .. })
    ));
    let mut copy = document;
    copy["answers"][0]["multipliers"] = json!({ "numerators": [u64::MAX], "denominator": u64::MAX - 1 });
    seal(&mut copy);
    assert!(verdicts(&copy.to_string()).is_err());
    for text in ["", "{}", "[]", "{\"schema\":\"forge.certificate.v2\"}"] {
        assert!(matches!(verdicts(text), Err(CertificateError::Form { .. })));
    }
}

#[test]
fn a_certificate_that_takes_too_long_to_check_is_rejected() {
    let text = sample().to_string();
    assert!(matches!(
        check(&text, 1),
        Err(CertificateError::NotShown { states: 1, .. })
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_certificate_of_the_solver_is_valid(seed: u64, share in 0.0..1.0_f64, several: bool) {
        let mut numbers = Numbers(seed);
        let wide = [6, 1000, 1 << 40][(seed % 3) as usize];
        let option = |numbers: &mut Numbers| {
            let uses = (0..=usize::from(several)).map(|_| numbers.below(wide)).collect();
            (numbers.below(wide).cast_signed(), uses)
        };
        let group = |numbers: &mut Numbers| (0..=numbers.below(6)).map(|_| option(numbers)).collect();
        let groups: Vec<_> = (0..=numbers.below(12)).map(|_| group(&mut numbers)).collect();
        let problem = problem_of(&[5, 7][..=usize::from(several)], &groups);
        let limit = |at: usize| {
            let (least, most) = problem.range(at).unwrap();
            least + ((most - least) as f64 * share) as u64
        };
        let limits: Vec<u64> = (0..=usize::from(several)).map(limit).collect();
        let answer = Solver::new(&problem).solve(&limits, &Effort::default()).unwrap();
        prop_assume!(answer.status != Status::NothingFound);
        let text = document(&problem, Scale::from_exponent(0).unwrap(), None, std::slice::from_ref(&answer)).unwrap();
        let found = verdicts(&text);
        let expected = match answer.status {
            Status::Optimal => Verdict::Optimal,
            Status::Gap => Verdict::Gap { gap: answer.gap() },
            _ => Verdict::BelowMinimum,
        };
        prop_assert_eq!(found, Ok(vec![expected]));
    }
}

#[test]
fn large_certificates_are_checked() {
    let sizes = [
        (1000, 20, 0.0, 1),
        (1000, 20, 0.3, 2),
        (1000, 20, 1.9, 4),
        (43, 18, 0.5, 5),
        (200, 18, 1.9, 6),
        (12, 40, 1.0, 7),
    ];
    for (groups, types, noise, seed) in sizes {
        let problem = problem_of(&[4096], &like_a_model(groups, types, noise, seed));
        let (least, most) = problem.range(0).unwrap();
        let limits: Vec<Vec<u64>> = [2, 10, 30, 50, 90]
            .iter()
            .map(|percent| vec![least + (most - least) / 100 * percent])
            .collect();
        let text = certify(&problem, &limits, forge::allocation::DEFAULT_STATES);
        let begin = Instant::now();
        let found = verdicts(&text);
        eprintln!(
            "{groups} groups, noise {noise}: {} bytes, {:?}",
            text.len(),
            begin.elapsed()
        );
        assert_eq!(found, Ok(vec![Verdict::Optimal; 5]), "{groups} groups, noise {noise}");
    }
}

/// A certificate of differences: the first option of each group is that of the base.
fn differences() -> Value {
    let groups = like_a_model(6, 4, 1.0, 5).into_iter().map(|options| {
        let own = options[0].0;
        let differences = options.into_iter().enumerate();
        let with_penalty = differences.map(|(at, (loss, uses))| (loss - own + if at == 0 { 0 } else { 7 }, uses));
        with_penalty.collect::<Vec<_>>()
    });
    let problem = problem_of(&[4096], &groups.collect::<Vec<_>>());
    let (least, most) = problem.range(0).unwrap();
    let solver = Solver::new(&problem);
    let effort = Effort {
        states: 1 << 20,
        stop: None,
    };
    let answers = [
        solver.solve(&[least + (most - least) / 3], &effort).unwrap(),
        solver.solve(&[most], &effort).unwrap(),
    ];
    let base = Base {
        choice: problem
            .groups()
            .iter()
            .map(|group| {
                group
                    .options
                    .iter()
                    .find(|option| option.loss == 0)
                    .unwrap()
                    .name
                    .as_str()
            })
            .collect(),
        loss: 0.012_345,
        penalty: 7,
    };
    let text = document(&problem, Scale::from_exponent(70).unwrap(), Some(&base), &answers).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn differences_name_their_base_and_the_predicted_loss() {
    let good = differences();
    let schema: Value = serde_json::from_str(include_str!("../../cache-schema/certificate.v2.json")).unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    assert!(validator.is_valid(&good), "{good}");
    let checked = check(&good.to_string(), DEFAULT_STATES).unwrap();
    for (answer, found) in good["answers"].as_array().unwrap().iter().zip(&checked) {
        let predicted = found.predicted.unwrap();
        let chosen = answer["choice"].as_array().unwrap().iter();
        let base = good["problem"]["base"]["choice"].as_array().unwrap();
        let changes = chosen.zip(base).filter(|(own, base)| own != base).count();
        assert_eq!(predicted.changes, changes);
        let units = answer["loss"].as_i64().unwrap() - 7 * i64::try_from(changes).unwrap();
        assert_eq!(predicted.loss, 0.012_345 + units as f64 * 2_f64.powi(-70));
        assert_eq!(answer["predicted"], format!("{:e}", predicted.loss));
    }
    assert!(checked.iter().any(|found| found.predicted.unwrap().changes > 0));

    // Sealed again, so that only the claims are wrong.
    let refused = |change: &dyn Fn(&mut Value), expected: &str| {
        let mut document = good.clone();
        change(&mut document);
        seal(&mut document);
        let error = check(&document.to_string(), DEFAULT_STATES).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    };
    refused(
        &|it| it["answers"][0]["predicted"] = json!("1e-2"),
        "answer 1: `predicted` is stated as 1e-2",
    );
    refused(
        &|it| it["answers"][0]["predicted"] = json!(null),
        "`predicted` is stated as null",
    );
    refused(
        &|it| it["problem"]["base"]["penalty"] = json!(1_u64 << 45),
        "`predicted` is stated as",
    );
    refused(
        &|it| it["problem"]["base"]["loss"] = json!("1.2e-2"),
        "`predicted` is stated as",
    );
    refused(
        &|it| it["problem"]["base"]["loss"] = json!("0.012345"),
        "no finite number",
    );
    refused(&|it| it["problem"]["base"]["loss"] = json!("NaN"), "no finite number");
    refused(
        &|it| it["problem"]["base"]["choice"][0] = json!("none"),
        "has no option `none`",
    );
    refused(
        &|it| {
            let options = it["problem"]["groups"][0]["options"].as_array().unwrap();
            let other = options.iter().find(|option| option["loss"] != 0).unwrap();
            it["problem"]["base"]["choice"][0] = other["name"].clone();
        },
        "has the difference",
    );
    refused(
        &|it| {
            it["problem"]["base"]["choice"].as_array_mut().unwrap().pop();
        },
        "`base` has 5 options for 6 groups",
    );
    refused(&|it| it["problem"]["base"] = json!(null), "it has no `base`");
    refused(
        &|it| it["problem"]["losses"] = json!("absolute"),
        "its losses are not differences",
    );
    refused(&|it| it["problem"]["losses"] = json!(null), "`losses` is a field of");

    // The digest covers every one of these.
    let mut document = good.clone();
    document["problem"]["base"]["penalty"] = json!(6);
    let error = check(&document.to_string(), DEFAULT_STATES).unwrap_err().to_string();
    assert!(error.contains("`digest` is stated as"), "{error}");

    let forge = Forge::new();
    forge.write("differences.json", good.to_string());
    let run = forge.run(&["policy", "check", "differences.json"]).success();
    assert!(
        run.stdout.contains(" is optimal: predicted loss 1.2")
            && run
                .stdout
                .contains(" to the measured loss 1.234500e-2; 6 types differ) in "),
        "{}",
        run.stdout
    );
}

#[test]
fn certificates_of_version_1_are_checked() {
    let mut old = sample();
    old["schema"] = json!("forge.certificate.v1");
    let problem = old["problem"].as_object_mut().unwrap();
    problem.remove("losses");
    problem.remove("base");
    for answer in old["answers"].as_array_mut().unwrap() {
        answer.as_object_mut().unwrap().remove("predicted");
    }
    seal(&mut old);
    let schema: Value = serde_json::from_str(include_str!("../../cache-schema/certificate.v1.json")).unwrap();
    assert!(jsonschema::draft202012::new(&schema).unwrap().is_valid(&old));
    let checked = check(&old.to_string(), DEFAULT_STATES).unwrap();
    assert!(
        checked
            .iter()
            .all(|found| found.losses.is_none() && found.predicted.is_none())
    );
    // One that says what its losses are is of version 2.
    old["problem"]["losses"] = json!("absolute");
    seal(&mut old);
    assert!(check(&old.to_string(), DEFAULT_STATES).is_err());
}

#[test]
fn policy_check_accepts_valid_certificates_only() {
    let forge = Forge::new();
    let good = sample();
    forge.write("good.json", good.to_string());
    let run = forge.run(&["policy", "check", "good.json"]).success();
    let lines: Vec<&str> = run.stdout.lines().collect();
    assert_eq!(lines.len(), 4, "{}", run.stdout);
    assert!(
        lines[0].starts_with("good.json: answer 1 is optimal: loss "),
        "{}",
        lines[0]
    );
    assert!(
        lines[1].starts_with("good.json: answer 2 is the smallest possible: "),
        "{}",
        lines[1]
    );
    assert!(lines[3].contains(" above the least possible loss: "), "{}", lines[3]);

    let mut bad = good;
    bad["answers"][2]["loss"] = json!(1);
    forge.write("bad.json", bad.to_string());
    seal(&mut bad);
    forge.write("sealed.json", bad.to_string());
    let run = forge
        .run(&["policy", "check", "good.json", "bad.json", "sealed.json", "none.json"])
        .status(1);
    assert_eq!(run.stdout.lines().count(), 4);
    assert!(
        run.stderr.contains("error[policy::certificate]: `bad.json` is refused"),
        "{}",
        run.stderr
    );
    assert!(
        run.stderr.contains("the document: `digest` is stated as "),
        "{}",
        run.stderr
    );
    assert!(
        run.stderr.contains("answer 3: `loss` is stated as 1, but is "),
        "{}",
        run.stderr
    );
    assert!(run.stderr.contains("can't read `none.json`"), "{}", run.stderr);
    let run = forge.run(&["policy", "check", "--states", "1", "good.json"]).status(1);
    assert!(
        run.stderr.contains("a search of 1 states did not suffice"),
        "{}",
        run.stderr
    );
    let _ = forge.run(&["policy", "check"]).status(2);
}
