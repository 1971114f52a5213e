//! Words that recipes, the algorithms of policies and llama.cpp share are the same.

use forge::container;
use forge::mix;
use forge::mix::Mix;
use forge::recipe::names;
use forge::tensor_type::TensorType;

/// Types of ggml that no recipe can ask for, and why.
const NO_TARGETS: &[(&str, &str)] = &[
    ("Q8_1", "holds activations, is never in a file"),
    ("Q8_K", "holds activations, is never in a file"),
    ("I8", "an integer, nothing is quantized to it"),
    ("I16", "an integer, nothing is quantized to it"),
    ("I32", "an integer, nothing is quantized to it"),
    ("I64", "an integer, nothing is quantized to it"),
    ("F64", "nothing is quantized to it"),
    ("NVFP4", "llama-quantize offers no mix of it"),
    ("Q1_0", "for models trained for it: of no use to others"),
    ("Q2_0", "for models trained for it: of no use to others"),
];

/// Mixes of llama-quantize that no recipe can ask for, and why.
const NO_MIXES: &[(&str, &str)] = &[
    ("Q1_0", "for models trained for it: of no use to others"),
    ("Q2_0", "for models trained for it: of no use to others"),
];

#[test]
fn every_type_is_allowed_in_recipes_or_listed_as_an_exception() {
    for ty in names::TYPES {
        assert!(ty.quantizable_target(), "nothing can be quantized to `{ty}`");
    }
    for ty in TensorType::ALL {
        let listed = names::TYPES.contains(ty);
        let left_out = NO_TARGETS.iter().any(|(name, _)| *name == ty.name());
        assert!(listed != left_out, "`{ty}` is listed: {listed}, left out: {left_out}");
    }
    assert_eq!(names::TYPES.len() + NO_TARGETS.len(), TensorType::ALL.len());
}

#[test]
fn every_mix_is_allowed_in_recipes_or_listed_as_an_exception() {
    for mix in Mix::ALL {
        let listed = names::MIXES.contains(mix);
        let left_out = NO_MIXES.iter().any(|(name, _)| *name == mix.name());
        assert!(listed != left_out, "`{mix}` is listed: {listed}, left out: {left_out}");
    }
    for (alias, mix) in mix::ALIASES {
        assert_eq!(Mix::from_name(alias), Some(*mix), "{alias}");
        assert_eq!(names::mix_of(alias), Some(*mix), "{alias}");
    }
}

#[test]
fn recipes_can_name_the_types_of_every_method_and_of_candidates() {
    let known: Vec<TensorType> = forge::policy::CURVE.iter().map(|(ty, _)| *ty).collect();
    for types in [forge::policy::ASHQ1_TYPES, &known] {
        assert!(types.iter().all(|ty| names::TYPES.contains(ty)));
    }
    let held = container::OF_CANDIDATES.types();
    assert!(names::TYPES.iter().all(|ty| held.contains(ty)));
}
