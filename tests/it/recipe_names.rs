//! Words that recipes, the algorithms of policies and llama.cpp share are the same.

use forge::container;
use forge::policy::Mix;
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
    for name in names::TYPES {
        let ty = TensorType::from_name(name).unwrap_or_else(|| panic!("`{name}` is no type"));
        assert_eq!(ty.name(), *name);
        assert!(ty.quantizable_target(), "nothing can be quantized to `{name}`");
    }
    for ty in TensorType::ALL {
        let listed = names::TYPES.contains(&ty.name());
        let left_out = NO_TARGETS.iter().any(|(name, _)| *name == ty.name());
        assert!(listed != left_out, "`{ty}` is listed: {listed}, left out: {left_out}");
    }
    assert_eq!(names::TYPES.len() + NO_TARGETS.len(), TensorType::ALL.len());
}

#[test]
fn every_mix_is_allowed_in_recipes_or_listed_as_an_exception() {
    for name in names::MIXES {
        let mix = Mix::from_name(name).unwrap_or_else(|| panic!("`{name}` is no mix"));
        assert_eq!(mix.name(), *name);
    }
    for mix in Mix::ALL {
        let listed = names::MIXES.contains(&mix.name());
        let left_out = NO_MIXES.iter().any(|(name, _)| *name == mix.name());
        assert!(listed != left_out, "`{mix}` is listed: {listed}, left out: {left_out}");
    }
    for (alias, name) in names::MIX_ALIASES {
        assert_eq!(Mix::from_name(alias).map(Mix::name), Some(*name), "{alias}");
    }
}

#[test]
fn recipes_and_policies_agree_which_mixes_need_an_imatrix() {
    // llama-quantize itself refuses these without an imatrix, beside those whose own type needs one.
    for name in names::MIXES {
        let mix = Mix::from_name(name).unwrap();
        let needs = mix.default_type().is_some_and(TensorType::needs_imatrix);
        if needs {
            assert!(
                names::MIXES_THAT_NEED_IMATRIX.contains(name),
                "`{name}` needs an imatrix, and recipes do not know"
            );
        }
    }
}

#[test]
fn the_types_of_methods_are_the_same_for_recipes() {
    let rungs: Vec<&str> = forge::policy::LADDER.iter().map(|rung| rung.name()).collect();
    assert_eq!(names::ASHQ1_LADDER, rungs);
    let known: Vec<&str> = forge::policy::CURVE.iter().map(|(ty, _)| ty.name()).collect();
    assert_eq!(names::PRIOR_TYPES, known);
    assert!(rungs.iter().all(|rung| names::TYPES.contains(rung)));
    let held: Vec<&str> = container::OF_CANDIDATES.types().iter().map(|ty| ty.name()).collect();
    assert!(names::TYPES.iter().all(|name| held.contains(name)));
}
