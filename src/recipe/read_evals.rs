//! Reads `[eval.NAME]`, `[metrics.NAME]` and `[gate.NAME]`: how candidates are evaluated.

use crate::quantity::Decimal;
use crate::quantity::Quantity;
use crate::recipe::decl::Eval;
use crate::recipe::decl::Gate;
use crate::recipe::decl::Metrics;
use crate::recipe::model::Place;
use crate::recipe::read::Context;
use crate::requirement::Bound;
use crate::requirement::Requirement;
use crate::syntax::declared::Names;
use crate::syntax::error::RecipeError;
use crate::syntax::field::Field;
use crate::syntax::field::Reader;
use crate::syntax::names::MAX_NAME;
use crate::syntax::raw::inside;
use crate::syntax::shared::BLOCKS;
use crate::syntax::shared::CONTEXTS;
use crate::syntax::shared::COUNTS;
use crate::syntax::shared::model;
use crate::syntax::shared::number;
use crate::syntax::shared::text;

/// Reads a candidate: the name of a `promote` section, or what may be the label of one of its variants.
fn candidate(field: Field<'_>, names: &Names, user: &str) -> Result<String, RecipeError> {
    let name = field.string("the name of a candidate")?;
    let is_section = |promote: &str| names.place("promote", promote).is_some();
    // A variant is named after its section and a dash; a section's name is not longer than any name.
    let mut dashes = name.match_indices('-').take_while(|(at, _)| *at <= MAX_NAME);
    if is_section(name) || dashes.any(|(at, _)| is_section(&name[..at])) {
        return Ok(name.to_owned());
    }
    Err(RecipeError::UnknownReference {
        place: field.place(),
        name: name.to_owned(),
        user: user.to_owned(),
        wanted: "candidate".to_owned(),
        declared: names.listed("promote"),
        other: names.elsewhere("promote", name),
    })
}

pub(crate) fn eval(reader: &mut Reader<'_, '_>, context: &Context<'_>) -> Option<Eval> {
    let words = reader.words.clone();
    let candidates = reader.list("candidates", "a list of candidates", |field| {
        candidate(field, context.names, &words)
    });
    if !reader.has("candidates") && context.names.of("promote").next().is_none() {
        reader.errors.push(RecipeError::NoDefault {
            place: reader.head.clone(),
            section: words.clone(),
            key: "candidates",
            what: "candidate",
            declared: Vec::new(),
        });
    }
    let reference = model(reader, "reference", context.names);
    let corpus = reader.required("corpus", "corpus = \"held-out\"", |field| {
        context.names.reference(field, "corpus", "a corpus", &words)
    });
    let tokens = reader.read("context", |field| field.integer32(CONTEXTS)).unwrap_or(512);
    let chunks = reader.read("chunks", |field| field.integer(COUNTS));
    let kld = reader.read("kld", |field| field.boolean()).unwrap_or(true);
    let block = reader.read("block", |field| field.integer32(BLOCKS)).unwrap_or(8);
    let bootstrap = reader
        .read("bootstrap", |field| field.integer32(0..=1_000_000))
        .unwrap_or(1000);
    let seed = reader
        .read("seed", |field| field.integer(0..=i64::MAX as u64))
        .unwrap_or(0);
    let allow_overlap = reader.read("allow_overlap", |field| field.boolean()).unwrap_or(false);
    if chunks == Some(1) && bootstrap > 0 {
        let place = reader.entry("chunks").map(|entry| entry.value.place.clone());
        let head = reader.head.clone();
        reader.errors.push(RecipeError::OutOfRange {
            place: place.unwrap_or(head),
            key: "chunks".to_owned(),
            expected:
                "2 chunks or more, which the confidence intervals resample (or `bootstrap = 0`, without intervals)"
                    .to_owned(),
            found: "1".to_owned(),
        });
    }
    let (corpus, reference) = (corpus?, reference?);
    let listed: Vec<_> = match &candidates {
        Some(candidates) => candidates.iter().map(|(name, _)| text(name)).collect(),
        None => context
            .names
            .of("promote")
            .map(|(name, _)| toml::Value::from(name))
            .collect(),
    };
    reader.put("candidates", listed);
    reader.put("reference", reference.as_str());
    reader.put("corpus", corpus.as_str());
    reader.put("context", number(u64::from(tokens)));
    if let Some(chunks) = chunks {
        reader.put("chunks", number(chunks));
    }
    reader.put("kld", kld);
    reader.put("block", number(u64::from(block)));
    reader.put("bootstrap", number(u64::from(bootstrap)));
    reader.put("seed", number(seed));
    reader.put("allow_overlap", allow_overlap);
    Some(Eval {
        candidates,
        reference,
        corpus,
        context: tokens,
        chunks,
        kld,
        block,
        bootstrap,
        seed,
        allow_overlap,
    })
}

pub(crate) fn metrics(reader: &mut Reader<'_, '_>, context: &Context<'_>) -> Option<Metrics> {
    let words = reader.words.clone();
    let evals = if reader.has("evals") {
        let evals = reader.list("evals", "a list of evaluations", |field| {
            context.names.reference(field, "eval", "an evaluation", &words)
        })?;
        evals.into_iter().map(|(name, _)| name).collect()
    } else {
        all_evals(context.names)
    };
    let metrics = Metrics { evals };
    reader.resolved.entries.extend(metrics_entries(&metrics));
    Some(metrics)
}

/// Returns the keys of a metrics section as the resolved recipe has them. An empty list can't be written.
pub(crate) fn metrics_entries(metrics: &Metrics) -> Vec<(&'static str, toml::Value)> {
    let list: Vec<_> = metrics.evals.iter().map(text).collect();
    if list.is_empty() {
        Vec::new()
    } else {
        vec![("evals", toml::Value::Array(list))]
    }
}

pub(crate) fn all_evals(names: &Names) -> Vec<String> {
    names.of("eval").map(|(name, _)| name.to_owned()).collect()
}

pub(crate) fn gate(reader: &mut Reader<'_, '_>, context: &Context<'_>) -> Option<Gate> {
    let words = reader.words.clone();
    let metrics = if reader.has("metrics") {
        reader.read("metrics", |field| {
            context.names.reference(field, "metrics", "a metrics section", &words)
        })
    } else {
        let declared = context.names.listed("metrics");
        if let [(only, _)] = &*declared {
            Some(only.clone())
        } else {
            let (place, section) = (reader.head.clone(), words.clone());
            let what = "metrics section";
            reader.errors.push(RecipeError::NoDefault {
                place,
                section,
                key: "metrics",
                what,
                declared: declared.to_vec(),
            });
            None
        }
    };
    let candidates = reader.list("candidates", "a list of candidates", |field| {
        candidate(field, context.names, &words)
    });
    reader.need("require", "require = [\"kld_mean < 0.02\"]");
    let require = reader.list("require", "a list of requirements", |field| {
        let text = field.string("a requirement")?;
        Requirement::parse(text).map_err(|error| RecipeError::BadRequirement {
            place: inside(&field.raw.place, text, error.at),
            text: text.to_owned(),
            problem: error.what,
        })
    });
    let baseline = reader.read("baseline", |field| {
        Ok((candidate(field, context.names, &words)?, field.place()))
    });
    let uses = |(requirement, _): &&(Requirement, Place)| matches!(requirement.bound, Bound::Baseline { .. });
    if let Some((_, because)) = require.iter().flatten().find(uses)
        && !reader.has("baseline")
    {
        reader.errors.push(RecipeError::MissingKey {
            place: reader.head.clone(),
            section: words,
            key: "baseline",
            example: "baseline = \"small\"",
            because: Some(because.clone()),
        });
    }
    let confidence = reader.read("confidence", confidence);
    let confidence = confidence.unwrap_or(Decimal::from_millionths(95_000_000));
    let (metrics, require) = (metrics?, require?);
    reader.put("metrics", metrics.as_str());
    if let Some(candidates) = &candidates {
        let list: Vec<_> = candidates.iter().map(|(name, _)| text(name)).collect();
        reader.put("candidates", list);
    }
    let list: Vec<_> = require
        .iter()
        .map(|(requirement, _)| toml::Value::from(requirement.to_string()))
        .collect();
    reader.put("require", list);
    if let Some((name, _)) = &baseline {
        reader.put("baseline", name.as_str());
    }
    reader.put("confidence", Quantity::Percent(confidence).to_string());
    Some(Gate {
        metrics,
        candidates,
        require,
        baseline,
        confidence,
    })
}

fn confidence(field: Field<'_>) -> Result<Decimal, RecipeError> {
    let expected = "a percentage between 0 and 100";
    match field.quantity(expected, "95 %")? {
        Quantity::Percent(percent) if (1..100_000_000).contains(&percent.millionths()) => Ok(percent),
        other => Err(RecipeError::OutOfRange {
            place: field.place(),
            key: field.key.to_owned(),
            expected: expected.to_owned(),
            found: other.to_string(),
        }),
    }
}
