//! Types of tensors as the recipes of forgequant (JSON) have them, and back.
//!
//! A recipe names types by *family* (`quant`: kinds of tensors that its quantizer has a flag for), by the beginning of names
//! (`tensor_types`: the longest that fits decides) and by layers of experts (`boost`). An entry for a tensor
//! takes precedence over one for its family; tensors without an entry keep their type. Its quantizer writes seven types only.

use std::fmt;
use std::ops::RangeInclusive;

use regex::Regex;
use serde::Deserialize;
use serde::Deserializer;
use serde::de::MapAccess;
use serde::de::Visitor;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use crate::policy::ModelFacts;
use crate::policy::Rule;
use crate::policy::Target;
use crate::policy::TensorFacts;
use crate::policy::quantizable::quantizable;
use crate::tensor_type::TensorType;

/// The types that forgequant takes.
pub const PRODUCIBLE: &[TensorType] = &[
    TensorType::IQ2_XXS,
    TensorType::Q2_K,
    TensorType::Q4_K,
    TensorType::Q8_0,
    TensorType::F16,
    TensorType::F32,
    TensorType::BF16,
];

/// Layers are counted from 0, and no engine takes more.
const LAYERS: RangeInclusive<u32> = 0..=511;

/// A family of tensors: its key, and a pattern for their names. The first whose pattern is found in a name has the tensor.
struct Family {
    key: &'static str,
    pattern: &'static str,
}

const FAMILIES: &[Family] = &[
    Family {
        key: "routed_w1",
        pattern: r"^blk\.[0-9]+\.ffn_gate_exps\.weight$",
    },
    Family {
        key: "routed_w2",
        pattern: r"^blk\.[0-9]+\.ffn_down_exps\.weight$",
    },
    Family {
        key: "routed_w3",
        pattern: r"^blk\.[0-9]+\.ffn_up_exps\.weight$",
    },
    Family {
        key: "embedding",
        pattern: r"^token_embd\.weight$",
    },
    Family {
        key: "output",
        pattern: r"^output\.",
    },
    Family {
        key: "shared",
        pattern: r"_shexp\.",
    },
    Family {
        key: "attn_proj",
        pattern: r"\.attn_(?:kv|q_a|q_b|output_a|output_b)\.weight",
    },
    Family {
        key: "attention",
        pattern: r"attn_|\.attn|indexer_|\.indexer",
    },
    Family {
        key: "dense",
        pattern: "",
    },
];

/// The name for all three families of routed experts.
const EXPERTS: &str = "experts";
const ROUTED: [&str; 3] = ["routed_w1", "routed_w2", "routed_w3"];
/// Experts' tensors are never of the family `dense`.
const EXPERT_PATTERN: &str = r"_exps\.";

/// Tensors whose types forgequant cannot write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("forgequant only writes {}; other types: {}", list(PRODUCIBLE), tensors_of(.tensors))]
pub struct Unproducible {
    /// Each with its type.
    pub tensors: Vec<(String, TensorType)>,
}

fn list(types: &[TensorType]) -> String {
    let names: Vec<&str> = types.iter().map(|ty| ty.name()).collect();
    names.join(", ")
}

fn tensors_of(tensors: &[(String, TensorType)]) -> String {
    const NAMED: usize = 4;
    let named: Vec<String> = tensors
        .iter()
        .take(NAMED)
        .map(|(name, ty)| format!("`{name}` ({ty})"))
        .collect();
    match tensors.len().saturating_sub(NAMED) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

/// Returns the types of a model's tensors as a recipe of forgequant: a family where all its tensors have one type, else a line for
/// each tensor. Nothing else stands in it but the name.
///
/// # Errors
/// [`Unproducible`] names all tensors of types that forgequant cannot write.
pub fn forgequant_of(model: &ModelFacts, name: &str) -> Result<String, Unproducible> {
    let is_open = |tensor: &&TensorFacts| quantizable(model, &tensor.name, &tensor.dims).is_ok();
    let open: Vec<&TensorFacts> = model.tensors.iter().filter(is_open).collect();
    let foreign: Vec<(String, TensorType)> = open
        .iter()
        .filter(|tensor| !PRODUCIBLE.contains(&tensor.ty))
        .map(|tensor| (tensor.name.clone(), tensor.ty))
        .collect();
    if !foreign.is_empty() {
        return Err(Unproducible { tensors: foreign });
    }
    // forgequant looks at the rank only, so a family must not reach what is never quantized.
    let closed: Vec<&TensorFacts> = model
        .tensors
        .iter()
        .filter(|tensor| tensor.dims.iter().filter(|dim| **dim > 1).count() > 1 && !is_open(tensor))
        .collect();
    let has = |family: &Family, name: &str| {
        Regex::new(family.pattern).is_ok_and(|pattern| pattern.is_match(name))
            && (family.key != "dense" || !name.contains("_exps."))
    };
    let mut families = Map::new();
    let mut tensors = Map::new();
    let mut rest = open;
    for family in FAMILIES {
        let (mine, others): (Vec<&TensorFacts>, Vec<&TensorFacts>) =
            rest.into_iter().partition(|tensor| has(family, &tensor.name));
        rest = others;
        let Some(first) = mine.first() else { continue };
        let word = |ty: TensorType| Value::from(ty.name().to_ascii_lowercase());
        if mine.iter().all(|tensor| tensor.ty == first.ty) && !closed.iter().any(|tensor| has(family, &tensor.name)) {
            families.insert(family.key.to_owned(), word(first.ty));
        } else {
            tensors.extend(mine.iter().map(|tensor| (tensor.name.clone(), word(tensor.ty))));
        }
    }
    let word = |ty: TensorType| Value::from(ty.name().to_ascii_lowercase());
    tensors.extend(rest.iter().map(|tensor| (tensor.name.clone(), word(tensor.ty))));
    let recipe = json!({ "name": name, "quant": families, "tensor_types": tensors });
    // `{:#}` of a value is JSON on several lines.
    Ok(format!("{recipe:#}\n"))
}

/// What is wrong with a recipe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ForgequantError(pub String);

fn wrong(message: impl Into<String>) -> ForgequantError {
    ForgequantError(message.into())
}

/// An object's pairs in the order in which they stand.
#[derive(Debug, Default)]
struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of names and types")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Visit)
    }
}

#[derive(Deserialize)]
struct Recipe {
    #[serde(default)]
    quant: Pairs,
    #[serde(default)]
    tensor_types: Pairs,
    boost: Option<Boost>,
}

#[derive(Deserialize)]
struct Boost {
    layers: Layers,
    r#type: String,
    families: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Layers {
    List(Vec<u32>),
    Text(String),
}

/// Reads the types of a recipe of forgequant as rules, the first of which decides that is found in a name. What none of them
/// names is to keep its type. Keys that are not about types are ignored.
///
/// # Errors
/// All that is wrong with it: unknown families and types, layers that depend on an imatrix.
pub fn rules_of_forgequant(text: &str) -> Result<Vec<Rule>, Vec<ForgequantError>> {
    let recipe: Recipe =
        serde_json::from_str(text).map_err(|error| vec![wrong(format!("it is not a forgequant recipe: {error}"))])?;
    let mut errors = Vec::new();
    // Beginnings of names: the longest first, and of equal ones the user's before a boost's.
    let mut named: Vec<(String, TensorType)> = Vec::new();
    for (name, ty) in &recipe.tensor_types.0 {
        match type_of(ty) {
            Ok(ty) => named.push((name.clone(), ty)),
            Err(error) => errors.push(wrong(format!("`tensor_types`, `{name}`: {error}"))),
        }
    }
    if let Some(boost) = &recipe.boost {
        match boosted(boost) {
            Ok(pairs) => named.extend(pairs),
            Err(more) => errors.extend(more),
        }
    }
    named.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
    let mut families: [Option<TensorType>; FAMILIES.len()] = [None; FAMILIES.len()];
    for (key, ty) in &recipe.quant.0 {
        let keys: &[&str] = match key.as_str() {
            EXPERTS => &ROUTED,
            other => &[other],
        };
        let ty = match type_of(ty) {
            Ok(ty) => Some(ty),
            Err(error) => {
                errors.push(wrong(format!("`quant`, `{key}`: {error}")));
                None
            }
        };
        for key in keys {
            // Of two that speak of the same, the later one counts.
            match FAMILIES.iter().position(|family| family.key == *key) {
                Some(at) => families[at] = ty,
                None => errors.push(wrong(format!("`quant`: there is no family `{key}`"))),
            }
        }
    }
    let patterns = named
        .iter()
        .map(|(name, ty)| (format!("^{}", regex::escape(name)), Target::Type(*ty)));
    let mut patterns: Vec<(String, Target)> = patterns.collect();
    for (family, ty) in FAMILIES.iter().zip(families) {
        let Some(ty) = ty else { continue };
        if family.key == "dense" {
            patterns.push((EXPERT_PATTERN.to_owned(), Target::Keep));
        }
        patterns.push((family.pattern.to_owned(), Target::Type(ty)));
    }
    let mut rules = Vec::new();
    for (pattern, to) in patterns {
        match Regex::new(&pattern) {
            Ok(pattern) => rules.push(Rule { pattern, to }),
            Err(error) => errors.push(wrong(format!("`{pattern}`: {error}"))),
        }
    }
    if errors.is_empty() { Ok(rules) } else { Err(errors) }
}

fn type_of(name: &str) -> Result<TensorType, String> {
    let ty: TensorType = name
        .parse()
        .map_err(|error: crate::tensor_type::ParseTensorTypeError| error.to_string())?;
    if ty.quantizable_target() {
        Ok(ty)
    } else {
        Err(format!("the engine can't quantize tensors to {ty}"))
    }
}

fn boosted(boost: &Boost) -> Result<Vec<(String, TensorType)>, Vec<ForgequantError>> {
    let mut errors = Vec::new();
    let ty = type_of(&boost.r#type).map_err(|error| errors.push(wrong(format!("`boost`, `type`: {error}"))));
    let mut parts = Vec::new();
    let all = ["w1", "w2", "w3"].map(str::to_owned);
    for family in boost.families.as_deref().unwrap_or(&all) {
        match family.as_str() {
            "w1" => parts.push("gate"),
            "w2" => parts.push("down"),
            "w3" => parts.push("up"),
            other => errors.push(wrong(format!(
                "`boost`, `families`: expected `w1`, `w2` or `w3`, found `{other}`"
            ))),
        }
    }
    let layers = match &boost.layers {
        Layers::List(list) => Ok(list.clone()),
        Layers::Text(text) => layers_of(text),
    };
    let layers = layers.map_err(|error| errors.push(wrong(format!("`boost`, `layers`: {error}"))));
    if let Ok(layers) = &layers
        && let Some(beyond) = layers.iter().find(|layer| !LAYERS.contains(layer))
    {
        errors.push(wrong(format!("`boost`, `layers`: there is no layer {beyond}")));
    }
    match (ty, layers) {
        (Ok(ty), Ok(layers)) if errors.is_empty() => Ok(layers
            .iter()
            .flat_map(|layer| {
                parts
                    .iter()
                    .map(move |part| (format!("blk.{layer}.ffn_{part}_exps.weight"), ty))
            })
            .collect()),
        _ => Err(errors),
    }
}

/// Reads `3,7, 20-24`.
fn layers_of(text: &str) -> Result<Vec<u32>, String> {
    if text.trim_start().starts_with("auto:") {
        return Err(format!(
            "`{text}` depends on an imatrix: replace it with the layers that `forgequant show` prints"
        ));
    }
    let number = |text: &str| -> Result<u32, String> {
        let layer = text.trim().parse().ok().filter(|layer| LAYERS.contains(layer));
        layer.ok_or_else(|| format!("expected layers as `3,7,20-24`, found `{}`", text.trim()))
    };
    let mut layers = Vec::new();
    for part in text.split(',').filter(|part| !part.trim().is_empty()) {
        match part.split_once('-') {
            None => layers.push(number(part)?),
            Some((first, last)) => {
                let (first, last) = (number(first)?, number(last)?);
                if first > last {
                    return Err(format!("`{}` has no layers", part.trim()));
                }
                layers.extend(first..=last);
            }
        }
    }
    if layers.is_empty() {
        return Err("no layer is given".to_owned());
    }
    layers.sort_unstable();
    layers.dedup();
    Ok(layers)
}

#[cfg(test)]
mod tests;
