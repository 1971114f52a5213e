//! Keys of the policies that keep to a budget.

use crate::quantity::Quantity;
use crate::recipe::decl::Budget;
use crate::recipe::decl::Method;
use crate::recipe::decl::Probes;
use crate::recipe::error::RecipeError;
use crate::recipe::field::Field;
use crate::recipe::field::Reader;
use crate::recipe::field::Sweep;
use crate::recipe::model::Device;
use crate::recipe::model::Rule;
use crate::recipe::model::RuleType;
use crate::recipe::names::ASHQ1_LADDER;
use crate::recipe::names::FUSES;
use crate::recipe::names::MEASURED_TYPES;
use crate::recipe::names::PRIOR_TYPES;
use crate::recipe::names::TYPES;
use crate::recipe::names::TypeName;
use crate::recipe::raw::RawValue;
use crate::recipe::read_devices::devices;
use crate::recipe::read_devices::put_devices;
use crate::recipe::read_rules::put_rules;
use crate::recipe::read_rules::rules;
use crate::recipe::read_rules::unreachable_rules;
use crate::recipe::read_shared::BLOCKS;
use crate::recipe::read_shared::CONTEXTS;
use crate::recipe::read_shared::COUNTS;
use crate::recipe::read_shared::Context;
use crate::recipe::read_shared::names_of;
use crate::recipe::read_shared::number;
use crate::recipe::read_shared::text;
use crate::recipe::read_shared::word_of;
use crate::tensor_type::TensorType;

/// The chunks that `measured` probes with if the recipe does not say.
const PROBE_CHUNKS: u64 = 16;

/// The chunks of one of its actions.
const PROBE_BLOCK: u32 = 4;

/// How often at most moves around the choice are measured, if the recipe does not say.
const DEFAULT_ROUNDS: u32 = 10;

/// How often a recipe may ask for that.
const ROUNDS: std::ops::RangeInclusive<u32> = 0..=100;

const BUDGET: &str = "a size (`5700 MiB`), bits per weight (`4.5 bpw`) or `{ candidate = \"NAME\" }`";

pub(crate) fn ashq1(reader: &mut Reader<'_, '_>) -> Option<Method> {
    reader.need("budget", "budget = \"4.5 bpw\"");
    let head = reader.head.clone();
    let budget = budgets(reader);
    let mut flag = |key| {
        let absent = !reader.has(key);
        let value = reader.sweep(key, bool::to_string, |field| field.boolean());
        if absent { Some(Sweep::one(false, &head)) } else { value }
    };
    let (depth, free) = (flag("depth"), flag("free"));
    let qat = if reader.has("qat") {
        reader.read("qat", |field| field.boolean())
    } else {
        Some(false)
    };
    let (floors, ceilings) = (spans(reader, "floors", rung), spans(reader, "ceilings", rung));
    let (budget, depth, free, qat) = (budget?, depth?, free?, qat?);
    reader.put("budget", budget.to_toml(Budget::to_toml));
    reader.put("depth", depth.to_toml(|value| toml::Value::from(*value)));
    reader.put("free", free.to_toml(|value| toml::Value::from(*value)));
    reader.put("qat", qat);
    let (floors, ceilings) = (floors?, ceilings?);
    put_rules(reader, "floors", &floors);
    put_rules(reader, "ceilings", &ceilings);
    Some(Method::Ashq1 {
        budget,
        depth,
        free,
        qat,
        floors,
        ceilings,
    })
}

pub(crate) fn density(reader: &mut Reader<'_, '_>) -> Option<Method> {
    reader.need("budget", "budget = \"5.5 bpw\"");
    let budget = budgets(reader);
    let base = reader.required("base", "base = \"Q4_K\"", |field| field.type_name());
    let promotion = reader.required("promotion", "promotion = \"Q8_0\"", |field| field.type_name());
    let anchors = if reader.has("anchors") {
        reader.read("anchors", |field| field.boolean())
    } else {
        Some(false)
    };
    let (budget, base, promotion, anchors) = (budget?, base?, promotion?, anchors?);
    let bpw = |name: TypeName| TensorType::from_name(name.as_str()).map_or(0.0, TensorType::bpw);
    if bpw(promotion) <= bpw(base) {
        let place = reader.entry("promotion").map(|entry| entry.value.place.clone());
        reader.errors.push(RecipeError::OutOfRange {
            place: place.unwrap_or_else(|| reader.head.clone()),
            key: "promotion".to_owned(),
            expected: format!("a type of more bits per weight than `base`, which is {}", base.as_str()),
            found: promotion.as_str().to_owned(),
        });
        return None;
    }
    reader.put("budget", budget.to_toml(Budget::to_toml));
    reader.put("base", base.as_str());
    reader.put("promotion", promotion.as_str());
    reader.put("anchors", anchors);
    Some(Method::Density {
        budget,
        base,
        promotion,
        anchors,
    })
}

/// What all methods that solve for losses have.
struct Solving {
    budget: Sweep<Budget>,
    types: Vec<TypeName>,
    fuse: Vec<&'static str>,
    floors: Vec<Rule>,
    ceilings: Vec<Rule>,
    devices: Vec<Device>,
}

/// Reads what all methods that solve for losses have; `known` are the types that the method knows, `usual` those that it takes
/// if none are named.
fn solving(
    reader: &mut Reader<'_, '_>,
    what: &'static str,
    known: &'static [&'static str],
    usual: &'static [&'static str],
) -> Option<Solving> {
    reader.need("budget", "budget = \"4.5 bpw\"");
    let budget = budgets(reader);
    let types = if reader.has("types") {
        let types = reader.list("types", "a list of tensor types", |field| word_of(&field, what, known));
        types.map(|types| types.into_iter().map(|(name, _)| name).collect::<Vec<_>>())
    } else {
        Some(usual.to_vec())
    };
    let fuse = if reader.has("fuse") {
        let fuse = reader.list("fuse", "a list of rules", |field| {
            word_of(&field, "a rule that fuses", FUSES)
        });
        fuse.map(|fuse| fuse.into_iter().map(|(name, _)| name).collect::<Vec<_>>())
    } else {
        Some(Vec::new())
    };
    let plain = |field: Field<'_>| field.type_name().map(RuleType::Type);
    let (floors, ceilings) = (spans(reader, "floors", plain), spans(reader, "ceilings", plain));
    let devices = devices(reader);
    let (budget, types, fuse, floors, ceilings) = (budget?, types?, fuse?, floors?, ceilings?);
    let devices = devices?;
    let list = |words: &[&'static str]| words.iter().map(|word| toml::Value::from(*word)).collect::<Vec<_>>();
    reader.put("budget", budget.to_toml(Budget::to_toml));
    reader.put("types", list(&types));
    if !fuse.is_empty() {
        reader.put("fuse", list(&fuse));
    }
    put_rules(reader, "floors", &floors);
    put_rules(reader, "ceilings", &ceilings);
    put_devices(reader, &devices);
    Some(Solving {
        budget,
        types: types.into_iter().filter_map(TypeName::from_name).collect(),
        fuse,
        floors,
        ceilings,
        devices,
    })
}

pub(crate) fn prior(reader: &mut Reader<'_, '_>) -> Option<Method> {
    let solving = solving(reader, "a type that `prior` knows", PRIOR_TYPES, PRIOR_TYPES)?;
    Some(Method::Prior {
        budget: solving.budget,
        types: solving.types,
        fuse: solving.fuse,
        floors: solving.floors,
        ceilings: solving.ceilings,
        devices: solving.devices,
    })
}

pub(crate) fn measured(reader: &mut Reader<'_, '_>, context: &Context<'_>) -> Option<Method> {
    let measured = chunks_of(reader, context);
    let screen = reader.read("screen", |field| field.integer(COUNTS));
    let max_probes = reader.read("max_probes", |field| field.integer(COUNTS));
    let refine = reader
        .read("refine", |field| field.integer32(ROUNDS))
        .unwrap_or(DEFAULT_ROUNDS);
    let solving = solving(reader, "a tensor type", TYPES, MEASURED_TYPES);
    let ((corpus, context, chunks, block), solving) = (measured?, solving?);
    put_chunks(reader, &corpus, context, &chunks, block);
    for (key, value) in [("screen", screen), ("max_probes", max_probes)] {
        if let Some(value) = value {
            reader.put(key, number(value));
        }
    }
    reader.put("refine", number(u64::from(refine)));
    Some(Method::Measured {
        budget: solving.budget,
        corpus,
        context,
        chunks,
        block,
        screen,
        max_probes,
        refine,
        types: solving.types,
        fuse: solving.fuse,
        floors: solving.floors,
        ceilings: solving.ceilings,
        devices: solving.devices,
    })
}

/// What `probes` may be: of each group at least none, and no more types than there are.
const PROBES: std::ops::RangeInclusive<u32> = 0..=64;

pub(crate) fn error(reader: &mut Reader<'_, '_>, context: &Context<'_>) -> Option<Method> {
    let absent = !reader.has("probes");
    let count = reader.read("probes", |field| field.integer32(PROBES));
    let place = reader.entry("probes").map(|entry| entry.value.place.clone());
    let probes = if count == Some(0) {
        reader.misplaced(
            &["corpus", "context", "chunks", "block"],
            "`probes` above 0",
            place.as_ref(),
        );
        Some(None)
    } else {
        let measured = chunks_of(reader, context);
        let count = if absent { Some(1) } else { count };
        measured.zip(count).map(|((corpus, context, chunks, block), count)| {
            Some(Probes {
                count,
                corpus,
                context,
                chunks,
                block,
            })
        })
    };
    let solving = solving(reader, "a tensor type", TYPES, MEASURED_TYPES);
    let (probes, solving) = (probes?, solving?);
    reader.put(
        "probes",
        number(probes.as_ref().map_or(0, |probes| u64::from(probes.count))),
    );
    if let Some(probes) = &probes {
        put_chunks(reader, &probes.corpus, probes.context, &probes.chunks, probes.block);
    }
    Some(Method::Error {
        budget: solving.budget,
        probes,
        types: solving.types,
        fuse: solving.fuse,
        floors: solving.floors,
        ceilings: solving.ceilings,
        devices: solving.devices,
    })
}

/// What is measured on: texts, tokens in a chunk, chunks, chunks in one action.
type Chunks = (Sweep<String>, u32, Sweep<u64>, u32);

/// Reads what losses are measured on.
fn chunks_of(reader: &mut Reader<'_, '_>, context: &Context<'_>) -> Option<Chunks> {
    reader.need("corpus", "corpus = \"calibration\"");
    let corpus = names_of(reader, "corpus", context.names, "corpus", "a corpus");
    let head = reader.head.clone();
    let context = reader.read("context", |field| field.integer32(CONTEXTS)).unwrap_or(512);
    let chunks = if reader.has("chunks") {
        reader.sweep("chunks", u64::to_string, |field| field.integer(COUNTS))
    } else {
        Some(Sweep::one(PROBE_CHUNKS, &head))
    };
    let block = reader
        .read("block", |field| field.integer32(BLOCKS))
        .unwrap_or(PROBE_BLOCK);
    Some((corpus?, context, chunks?, block))
}

fn put_chunks(reader: &mut Reader<'_, '_>, corpus: &Sweep<String>, context: u32, chunks: &Sweep<u64>, block: u32) {
    reader.put("corpus", corpus.to_toml(text));
    reader.put("context", number(u64::from(context)));
    reader.put("chunks", chunks.to_toml(|value| number(*value)));
    reader.put("block", number(u64::from(block)));
}

/// Reads what a file may have at most: one budget, or several that make a sweep.
fn budgets(reader: &mut Reader<'_, '_>) -> Option<Sweep<Budget>> {
    // A table may have several errors, and a value of a sweep gives one: the others are gathered apart.
    let mut more = Vec::new();
    let budgets = reader.sweep(
        "budget",
        |budget: &Budget| budget.to_toml().to_string(),
        |field| match &field.raw.value {
            RawValue::Table(entries) => {
                let mut errors = Vec::new();
                let mut table = Reader::new("a budget".to_owned(), field.place(), ("", ""), entries, &mut errors);
                let name = table.required("candidate", "candidate = \"small-Q4_K_M\"", |field| {
                    Ok((field.string("the name of a candidate")?.to_owned(), field.place()))
                });
                let fine = table.finish().is_some();
                match (name.filter(|_| fine), errors.is_empty()) {
                    (Some((name, place)), _) => Ok(Budget::Candidate(name, place)),
                    (None, true) => Err(field.wrong_type(BUDGET)),
                    (None, false) => {
                        let first = errors.remove(0);
                        more.append(&mut errors);
                        Err(first)
                    }
                }
            }
            RawValue::String(_) => quantity(field).map(Budget::Quantity),
            _ => Err(field.wrong_type(BUDGET)),
        },
    );
    reader.errors.append(&mut more);
    budgets
}

fn quantity(field: Field<'_>) -> Result<Quantity, RecipeError> {
    const QUANTITY: &str = "a size (`5700 MiB`) or bits per weight (`4.5 bpw`)";
    match field.quantity(QUANTITY, "4.5 bpw")? {
        Quantity::Percent(percent) => Err(RecipeError::OutOfRange {
            place: field.place(),
            key: field.key.to_owned(),
            expected: QUANTITY.to_owned(),
            found: Quantity::Percent(percent).to_string(),
        }),
        quantity => Ok(quantity),
    }
}

/// Reads floors or ceilings.
fn spans(
    reader: &mut Reader<'_, '_>,
    key: &'static str,
    read_type: fn(Field<'_>) -> Result<RuleType, RecipeError>,
) -> Option<Vec<Rule>> {
    if !reader.has(key) {
        return Some(Vec::new());
    }
    let rules = rules(reader, key, read_type)?;
    unreachable_rules(&rules, reader.errors);
    Some(rules.into_iter().map(|(rule, _)| rule).collect())
}

/// Reads a rung of the ladder.
fn rung(field: Field<'_>) -> Result<RuleType, RecipeError> {
    let rung = word_of(&field, "a rung of the ladder", ASHQ1_LADDER)?;
    TypeName::from_name(rung)
        .map(RuleType::Type)
        .ok_or_else(|| field.wrong_type("a tensor type"))
}
