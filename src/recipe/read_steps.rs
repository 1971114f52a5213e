//! Sections of steps, read key by key: one function per kind.

use std::collections::HashMap;

use crate::quantity::Decimal;
use crate::recipe::decl::Corpus;
use crate::recipe::decl::Decl;
use crate::recipe::decl::Decls;
use crate::recipe::decl::Imatrix;
use crate::recipe::decl::Join;
use crate::recipe::decl::Promote;
use crate::recipe::model::Place;
use crate::recipe::model::ResolvedSection;
use crate::recipe::model::SourceKind;
use crate::recipe::read::Context;
use crate::recipe::read::Section;
use crate::recipe::read::engine;
use crate::recipe::read::file_pattern;
use crate::recipe::read_evals::eval;
use crate::recipe::read_evals::gate;
use crate::recipe::read_evals::metrics;
use crate::recipe::read_moments::moments;
use crate::recipe::read_policy::policy;
use crate::syntax::error::RecipeError;
use crate::syntax::field::Reader;
use crate::syntax::shared::BLOCKS;
use crate::syntax::shared::CONTEXTS;
use crate::syntax::shared::COUNTS;
use crate::syntax::shared::model;
use crate::syntax::shared::names_of;
use crate::syntax::shared::number;
use crate::syntax::shared::or_default;
use crate::syntax::shared::text;
use crate::syntax::sweep::Sweep;
use crate::vocab::Chunking;
use crate::vocab::MergeMode;
use crate::vocab::Severity;

/// Reads the sections of all steps.
pub(crate) fn steps(
    sections: &[Section<'_>],
    context: &Context<'_>,
    errors: &mut Vec<RecipeError>,
) -> (Decls, Vec<ResolvedSection>) {
    let mut decls = Decls::default();
    let mut resolved = Vec::new();
    for section in sections {
        let mut reader = Reader::new(
            section.words(),
            section.place.clone(),
            (section.kind, section.name),
            section.entries,
            errors,
        );
        macro_rules! read {
            ($list:ident, $read:ident) => {{
                let body = $read(&mut reader, context);
                let engine = reads_engine(section.kind)
                    .then(|| reader.read("engine", engine))
                    .flatten();
                if let Some(engine) = engine {
                    reader.put("engine", engine.name.as_str());
                    decls
                        .engines
                        .insert((section.kind.to_owned(), section.name.to_owned()), engine);
                }
                if let (Some(section_resolved), Some(body)) = (reader.finish(), body) {
                    let place = section.place.clone();
                    decls.$list.push(Decl {
                        name: section.name.to_owned(),
                        place,
                        body,
                    });
                    resolved.push(section_resolved);
                }
            }};
        }
        match section.kind {
            "corpus" => read!(corpora, corpus),
            "moments" => read!(moments, moments),
            "imatrix" => read!(matrices, imatrix),
            "join" => read!(joins, join),
            "policy" => read!(policies, policy),
            "promote" => read!(promotes, promote),
            "eval" => read!(evals, eval),
            "metrics" => read!(metrics, metrics),
            "gate" => read!(gates, gate),
            _ => {}
        }
    }
    (decls, resolved)
}

/// Says whether steps of a kind use an engine.
fn reads_engine(kind: &str) -> bool {
    matches!(kind, "moments" | "imatrix" | "policy" | "promote" | "eval")
}

fn corpus(reader: &mut Reader<'_, '_>, context: &Context<'_>) -> Option<Corpus> {
    reader.need("files", "files = [\"texts/*.txt\"]");
    let files = reader.list("files", "a list of paths and patterns", |field| {
        file_pattern(field, context.files)
    });
    let chunkings = [("per-file", Chunking::PerFile), ("joined", Chunking::Joined)];
    let chunking = reader.read("chunking", |field| field.word(&chunkings, &[]));
    let chunking = chunking.unwrap_or(Chunking::PerFile);
    let parse_special = reader.read("parse_special", |field| field.boolean()).unwrap_or(false);
    let files: Vec<_> = files?.into_iter().map(|(path, _)| path).collect();
    let list: Vec<_> = files
        .iter()
        .map(|path| toml::Value::from(path.resolved.as_str()))
        .collect();
    reader.put("files", list);
    reader.put(
        "chunking",
        if chunking == Chunking::PerFile {
            "per-file"
        } else {
            "joined"
        },
    );
    reader.put("parse_special", parse_special);
    Some(Corpus {
        files,
        chunking,
        parse_special,
    })
}

fn imatrix(reader: &mut Reader<'_, '_>, context: &Context<'_>) -> Option<Imatrix> {
    const COLLECT: &[&str] = &["model", "corpus", "context", "chunks", "process_output", "block"];
    const MERGE: &[&str] = &["merge", "mode", "weights"];
    let forms: Vec<(&'static str, Place)> = ["corpus", "merge", "source", "moments"]
        .into_iter()
        .filter_map(|key| reader.entry(key).map(|entry| (key, entry.key_place.clone())))
        .collect();
    if let [(one, _), (other, _), ..] = forms.as_slice() {
        reader.conflict(one, other);
        for key in COLLECT.iter().chain(MERGE) {
            reader.has(key);
        }
        return None;
    }
    match forms.first() {
        Some(("merge", place)) => {
            reader.misplaced(COLLECT, "`corpus` (a collected imatrix)", Some(place));
            merge(reader, context)
        }
        Some(("source", place)) => {
            reader.misplaced(COLLECT, "`corpus` (a collected imatrix)", Some(place));
            reader.misplaced(&["mode", "weights"], "`merge` (a merged imatrix)", Some(place));
            let words = reader.words.clone();
            let source = reader.read("source", |field| {
                context.names.source(field, SourceKind::Imatrix, &words)
            })?;
            reader.put("source", source.as_str());
            Some(Imatrix::Import { source })
        }
        Some(("moments", place)) => {
            let collected: Vec<&'static str> = COLLECT.iter().copied().filter(|key| *key != "process_output").collect();
            reader.misplaced(&collected, "`corpus` (a collected imatrix)", Some(place));
            reader.misplaced(&["mode", "weights"], "`merge` (a merged imatrix)", Some(place));
            let moments = names_of(reader, "moments", context.names, "moments", "second moments");
            let process_output = process_output(reader);
            let moments = moments?;
            reader.put("moments", moments.to_toml(text));
            reader.put(
                "process_output",
                process_output.to_toml(|value| toml::Value::from(*value)),
            );
            Some(Imatrix::Moments {
                moments,
                process_output,
            })
        }
        Some((_, place)) => {
            reader.misplaced(&["mode", "weights"], "`merge` (a merged imatrix)", Some(place));
            collect(reader, context)
        }
        None => {
            for key in COLLECT.iter().chain(MERGE) {
                reader.has(key);
            }
            if reader.has("model") {
                reader.need("corpus", "corpus = \"calibration\"");
            } else {
                reader.needs_one_of(&["corpus", "merge", "source", "moments"]);
            }
            None
        }
    }
}

fn collect(reader: &mut Reader<'_, '_>, context: &Context<'_>) -> Option<Imatrix> {
    let model = model(reader, "model", context.names);
    let corpus = names_of(reader, "corpus", context.names, "corpus", "a corpus");
    let context = or_default(reader, "context", 512, |reader| {
        reader.sweep("context", u32::to_string, |field| field.integer32(CONTEXTS))
    });
    let chunks = reader.sweep("chunks", u64::to_string, |field| field.integer(COUNTS));
    let process_output = process_output(reader);
    let block = reader.read("block", |field| field.integer32(BLOCKS)).unwrap_or(8);
    let (model, corpus) = (model?, corpus?);
    reader.put("model", model.as_str());
    reader.put("corpus", corpus.to_toml(text));
    reader.put("context", context.to_toml(|value| number(u64::from(*value))));
    if let Some(chunks) = &chunks {
        reader.put("chunks", chunks.to_toml(|value| number(*value)));
    }
    reader.put(
        "process_output",
        process_output.to_toml(|value| toml::Value::from(*value)),
    );
    reader.put("block", number(u64::from(block)));
    Some(Imatrix::Collect {
        model,
        corpus,
        context,
        chunks,
        process_output,
        block,
    })
}

fn process_output(reader: &mut Reader<'_, '_>) -> Sweep<bool> {
    let head = reader.head.clone();
    reader
        .sweep("process_output", bool::to_string, |field| field.boolean())
        .unwrap_or_else(|| Sweep::one(false, &head))
}

fn merge(reader: &mut Reader<'_, '_>, context: &Context<'_>) -> Option<Imatrix> {
    let words = reader.words.clone();
    let inputs = reader.list("merge", "a list of imatrix names", |field| {
        context.names.reference(field, "imatrix", "an imatrix", &words)
    });
    let weights = reader.list("weights", "a list of numbers", |field| {
        let weight = field.decimal("a number that is not negative")?;
        // Up to a million, so that a float keeps every digit.
        if (1..=1_000_000_000_000).contains(&weight.millionths()) {
            return Ok(weight);
        }
        let (place, key, found) = (field.place(), "weights".to_owned(), weight.to_string());
        Err(RecipeError::OutOfRange {
            place,
            key,
            expected: "a number above 0, at most 1000000".to_owned(),
            found,
        })
    });
    let modes = [MergeMode::Sum, MergeMode::Mean, MergeMode::Max].map(|mode| (mode.as_str(), mode));
    let mode = or_default(reader, "mode", MergeMode::Sum, |reader| {
        reader.sweep(
            "mode",
            |mode: &MergeMode| mode.as_str().to_owned(),
            |field| field.word(&modes, &[]),
        )
    });
    let inputs = inputs?;
    if let (Some(weights), Some(entry), Some(other)) = (&weights, reader.entry("weights"), reader.entry("merge"))
        && weights.len() != inputs.len()
    {
        reader.errors.push(RecipeError::WrongLength {
            place: entry.value.place.clone(),
            key: "weights",
            found: weights.len(),
            expected: inputs.len(),
            other: "merge",
            other_place: other.value.place.clone(),
        });
    }
    let mut seen: HashMap<&str, &Place> = HashMap::new();
    for (name, second) in &inputs {
        let first = *seen.entry(name.as_str()).or_insert(second);
        if first != second {
            reader.errors.push(RecipeError::Duplicate {
                what: "part",
                name: name.clone(),
                first: first.clone(),
                second: second.clone(),
                only_case: false,
            });
        }
    }
    let weighted = weights
        .iter()
        .flatten()
        .find(|(weight, _)| Some(weight) != weights.iter().flatten().map(|(first, _)| first).next());
    if let Some((weight, place)) = weighted
        && mode.values.iter().any(|(mode, _)| *mode == MergeMode::Max)
    {
        reader.errors.push(RecipeError::OutOfRange {
            place: place.clone(),
            key: "weights".to_owned(),
            expected: "equal weights, or none, with `mode = \"max\"`: a maximum cannot be weighted".to_owned(),
            found: weight.to_string(),
        });
    }
    let weights = match weights {
        Some(weights) => weights.into_iter().map(|(weight, _)| weight).collect(),
        None => vec![Decimal::ONE; inputs.len()],
    };
    let list: Vec<_> = inputs.iter().map(|(name, _)| text(name)).collect();
    reader.put("merge", list);
    // Read back with `Decimal::from_str`, so that nothing is lost: a float literal has the digits of the decimal.
    let list: Vec<_> = weights
        .iter()
        .map(|weight: &Decimal| toml::Value::from(weight.as_f64()))
        .collect();
    reader.put("weights", list);
    reader.put("mode", mode.to_toml(|mode| toml::Value::from(mode.as_str())));
    Some(Imatrix::Merge { inputs, weights, mode })
}

fn join(reader: &mut Reader<'_, '_>, context: &Context<'_>) -> Option<Join> {
    let model = model(reader, "model", context.names);
    reader.need("imatrix", "imatrix = \"general\"");
    let imatrix = names_of(reader, "imatrix", context.names, "imatrix", "an imatrix");
    let words = [("warn", Severity::Warn), ("fail", Severity::Fail)];
    let missing = reader
        .read("missing", |field| field.word(&words, &[]))
        .unwrap_or(Severity::Warn);
    let unrouted = reader
        .read("unrouted", |field| field.word(&words, &[]))
        .unwrap_or(Severity::Warn);
    let min_count = reader.read("min_count", |field| field.integer(COUNTS));
    let join = Join {
        model: model?,
        imatrix: imatrix?,
        missing,
        unrouted,
        min_count,
    };
    reader.resolved.entries.extend(join_entries(&join));
    Some(join)
}

/// Returns the keys of a join as the resolved recipe has them.
pub(crate) fn join_entries(join: &Join) -> Vec<(&'static str, toml::Value)> {
    let word = |on: Severity| toml::Value::from(if on == Severity::Warn { "warn" } else { "fail" });
    let mut entries = vec![
        ("model", toml::Value::from(join.model.as_str())),
        ("imatrix", join.imatrix.to_toml(text)),
        ("missing", word(join.missing)),
        ("unrouted", word(join.unrouted)),
    ];
    entries.extend(join.min_count.map(|count| ("min_count", number(count))));
    entries
}

fn promote(reader: &mut Reader<'_, '_>, context: &Context<'_>) -> Option<Promote> {
    reader.need("policy", "policy = \"small\"");
    let policy = names_of(reader, "policy", context.names, "policy", "a policy");
    let allow_requantize = reader
        .read("allow_requantize", |field| field.boolean())
        .unwrap_or(false);
    let policy = policy?;
    reader.put("policy", policy.to_toml(text));
    reader.put("allow_requantize", allow_requantize);
    Some(Promote {
        policy,
        allow_requantize,
    })
}
