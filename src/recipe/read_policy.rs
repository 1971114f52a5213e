//! `[policy.NAME]`: how types are chosen.

use crate::recipe::decl::Data;
use crate::recipe::decl::Method;
use crate::recipe::decl::Policy;
use crate::recipe::error::RecipeError;
use crate::recipe::field::Reader;
use crate::recipe::field::Sweep;
use crate::recipe::model::Rule;
use crate::recipe::names::Mix;
use crate::recipe::names::TypeName;
use crate::recipe::read_boost::boost;
use crate::recipe::read_budget::ashq1;
use crate::recipe::read_budget::density;
use crate::recipe::read_budget::error;
use crate::recipe::read_budget::measured;
use crate::recipe::read_budget::prior;
use crate::recipe::read_rules::put_rules;
use crate::recipe::read_rules::rule_type;
use crate::recipe::read_rules::rules;
use crate::recipe::read_rules::unreachable_rules;
use crate::recipe::read_shared::Context;
use crate::recipe::read_shared::mixes_need_data;
use crate::recipe::read_shared::model;
use crate::recipe::read_shared::names_of;
use crate::recipe::read_shared::needs_data;
use crate::recipe::read_shared::text;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Mix,
    Manual,
    Ashq1,
    Density,
    Prior,
    Measured,
    Error,
    Boost,
}

impl Kind {
    /// The line of a recipe that names it.
    const fn line(self) -> &'static str {
        match self {
            Self::Mix => "method = \"mix\"",
            Self::Manual => "method = \"manual\"",
            Self::Ashq1 => "method = \"ashq1\"",
            Self::Density => "method = \"density\"",
            Self::Prior => "method = \"prior\"",
            Self::Measured => "method = \"measured\"",
            Self::Error => "method = \"error\"",
            Self::Boost => "method = \"boost\"",
        }
    }
}

/// The methods, and the keys that are theirs.
const METHODS: &[(&str, Kind, &[&str])] = &[
    ("mix", Kind::Mix, &["mix", "pure", "output_type", "embedding_type"]),
    ("manual", Kind::Manual, &["rules", "otherwise"]),
    (
        "ashq1",
        Kind::Ashq1,
        &["budget", "depth", "free", "qat", "floors", "ceilings"],
    ),
    ("density", Kind::Density, &["budget", "base", "promotion", "anchors"]),
    (
        "prior",
        Kind::Prior,
        &["budget", "types", "fuse", "floors", "ceilings", "device"],
    ),
    (
        "measured",
        Kind::Measured,
        &[
            "budget",
            "corpus",
            "context",
            "chunks",
            "block",
            "screen",
            "max_probes",
            "refine",
            "types",
            "fuse",
            "floors",
            "ceilings",
            "device",
        ],
    ),
    (
        "boost",
        Kind::Boost,
        &["mix", "base", "promotion", "layers", "ranking", "baseline", "families"],
    ),
    (
        "error",
        Kind::Error,
        &[
            "budget", "probes", "corpus", "context", "chunks", "block", "types", "fuse", "floors", "ceilings", "device",
        ],
    ),
];

/// Returns the method of a section that names none: `measured`, but if there are keys that it does not have, the first that has them.
fn meant(reader: &mut Reader<'_, '_>) -> Kind {
    let keys = METHODS.iter().flat_map(|(_, _, keys)| *keys);
    let there: Vec<&str> = keys.copied().filter(|key| reader.has(key)).collect();
    let has = |method: &&(&str, Kind, &[&str]), wanted: &[&str]| wanted.iter().all(|key| method.2.contains(key));
    let measured = METHODS.iter().filter(|(_, kind, _)| *kind == Kind::Measured);
    let found = measured.chain(METHODS).find(|method| has(method, &there));
    // Keys of several methods: the first tells.
    let found = found.or_else(|| METHODS.iter().find(|method| has(method, &there[..1])));
    found.map_or(Kind::Measured, |(_, kind, _)| *kind)
}

pub(crate) fn policy(reader: &mut Reader<'_, '_>, context: &Context<'_>) -> Option<Policy> {
    let model = model(reader, "model", context.names);
    let data = data(reader, context);
    let keep = reader.list("keep", "a list of regular expressions", |field| field.pattern());
    let methods: Vec<(&str, Kind)> = METHODS.iter().map(|(word, kind, _)| (*word, *kind)).collect();
    let kind = match meant(reader) {
        _ if reader.has("method") => reader.read("method", |field| field.word(&methods, &[])),
        Kind::Measured => Some(Kind::Measured),
        other => {
            reader.need("method", other.line());
            None
        }
    };
    let method_place = reader.entry("method").map(|entry| entry.value.place.clone());
    let Some(kind) = kind else {
        for key in METHODS.iter().flat_map(|(_, _, keys)| *keys) {
            reader.has(key);
        }
        // Keys of a method that does not exist (yet) are not the user's mistake.
        reader.any_key = reader.has("method");
        return None;
    };
    let (model, data) = (model, data);
    if let Some(model) = &model {
        reader.put("model", model.as_str());
    }
    match &data {
        Some(Data::Imatrix(names)) => reader.put("imatrix", names.to_toml(text)),
        Some(Data::Join(names)) => reader.put("join", names.to_toml(text)),
        _ => {}
    }
    let own = METHODS.iter().find(|(_, other, _)| *other == kind);
    let (word, own) = own.map_or(("", &[][..]), |(word, _, keys)| (*word, *keys));
    reader.put("method", word);
    let mut seen: Vec<&str> = own.to_vec();
    for key in METHODS.iter().flat_map(|(_, _, keys)| *keys) {
        if !seen.contains(key) {
            seen.push(key);
            let theirs = METHODS.iter().filter(|(_, _, keys)| keys.contains(key));
            let words: Vec<String> = theirs.map(|(word, ..)| format!("`method = \"{word}\"`")).collect();
            reader.misplaced(&[key], &words.join(" or "), method_place.as_ref());
        }
    }
    let no_data = matches!(data, Some(Data::None));
    let method = match kind {
        Kind::Mix => mix(reader, no_data, context),
        Kind::Manual => manual(reader),
        Kind::Ashq1 => {
            needs_data(reader, no_data, method_place.as_ref());
            ashq1(reader)
        }
        Kind::Density => {
            needs_data(reader, no_data, method_place.as_ref());
            density(reader)
        }
        Kind::Prior => prior(reader),
        Kind::Measured => measured(reader, context),
        Kind::Error => error(reader, context),
        Kind::Boost => boost(reader, no_data, context),
    };
    let keep: Vec<_> = keep.into_iter().flatten().map(|(pattern, _)| pattern).collect();
    if !keep.is_empty() {
        let list: Vec<_> = keep.iter().map(|pattern| toml::Value::from(pattern.as_str())).collect();
        reader.put("keep", list);
    }
    Some(Policy {
        model: model?,
        data: data?,
        method: method?,
        keep,
    })
}

fn data(reader: &mut Reader<'_, '_>, context: &Context<'_>) -> Option<Data> {
    let places = |reader: &mut Reader<'_, '_>| {
        Some((
            reader.entry("imatrix")?.key_place.clone(),
            reader.entry("join")?.key_place.clone(),
        ))
    };
    if let Some((imatrix, join)) = places(reader) {
        let mut pair = [("imatrix", imatrix), ("join", join)];
        pair.sort_by_key(|(_, place)| place.span);
        let [(first_key, first), (second_key, second)] = pair;
        let section = reader.words.clone();
        reader.errors.push(RecipeError::Conflict {
            section,
            first,
            first_key,
            second,
            second_key,
        });
        return None;
    }
    if reader.has("join") {
        return names_of(reader, "join", context.names, "join", "a join").map(Data::Join);
    }
    if reader.has("imatrix") {
        return names_of(reader, "imatrix", context.names, "imatrix", "an imatrix").map(Data::Imatrix);
    }
    Some(Data::None)
}

fn type_toml(name: &TypeName) -> toml::Value {
    toml::Value::from(name.as_str())
}

fn mix(reader: &mut Reader<'_, '_>, no_data: bool, context: &Context<'_>) -> Option<Method> {
    reader.need("mix", "mix = \"Q4_K_M\"");
    let head = reader.head.clone();
    let mix = reader.sweep("mix", |mix: &Mix| mix.as_str().to_owned(), |field| field.mix());
    let pure = reader.sweep("pure", bool::to_string, |field| field.boolean());
    let pure = pure.unwrap_or_else(|| Sweep::one(false, &head));
    let types = |reader: &mut Reader<'_, '_>, key| {
        reader.sweep(
            key,
            |name: &TypeName| name.as_str().to_owned(),
            |field| field.type_name(),
        )
    };
    let output_type = types(reader, "output_type");
    let embedding_type = types(reader, "embedding_type");
    let mix = mix?;
    if no_data {
        mixes_need_data(reader, &mix, context);
    }
    reader.put("mix", mix.to_toml(|mix| toml::Value::from(mix.as_str())));
    reader.put("pure", pure.to_toml(|value| toml::Value::from(*value)));
    for (key, types) in [("output_type", &output_type), ("embedding_type", &embedding_type)] {
        if let Some(types) = types {
            reader.put(key, types.to_toml(type_toml));
        }
    }
    Some(Method::Mix {
        mix,
        pure,
        output_type,
        embedding_type,
    })
}

fn manual(reader: &mut Reader<'_, '_>) -> Option<Method> {
    if !reader.has("rules") && !reader.has("otherwise") {
        reader.need("rules", "rules = [{ match = \"ffn_down\", type = \"Q6_K\" }]");
    }
    let rules = if reader.has("rules") {
        rules(reader, "rules", rule_type)
    } else {
        Some(Vec::new())
    };
    let otherwise = reader.sweep("otherwise", |to| to.as_str().to_owned(), rule_type);
    let rules = rules?;
    unreachable_rules(&rules, reader.errors);
    let rules: Vec<Rule> = rules.into_iter().map(|(rule, _)| rule).collect();
    put_rules(reader, "rules", &rules);
    if let Some(otherwise) = &otherwise {
        reader.put("otherwise", otherwise.to_toml(|to| toml::Value::from(to.as_str())));
    }
    Some(Method::Manual { rules, otherwise })
}
