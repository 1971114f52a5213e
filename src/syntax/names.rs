//! The words a recipe may use for types and mixes, and what a name may look like.

use crate::mix::ALIASES;
use crate::mix::Mix;
use crate::tensor_type::TensorType;

/// The longest name, in bytes: names become file names, with a suffix.
pub const MAX_NAME: usize = 100;

/// Mixes that a recipe may ask for, in the order in which suggestions list them. The others of llama.cpp are for models that
/// were trained for them.
pub const MIXES: &[Mix] = &[
    Mix::Q2_K,
    Mix::Q2_K_S,
    Mix::Q3_K_S,
    Mix::Q3_K_M,
    Mix::Q3_K_L,
    Mix::Q4_K_S,
    Mix::Q4_K_M,
    Mix::Q5_K_S,
    Mix::Q5_K_M,
    Mix::Q6_K,
    Mix::Q8_0,
    Mix::IQ1_S,
    Mix::IQ1_M,
    Mix::IQ2_XXS,
    Mix::IQ2_XS,
    Mix::IQ2_S,
    Mix::IQ2_M,
    Mix::IQ3_XXS,
    Mix::IQ3_XS,
    Mix::IQ3_S,
    Mix::IQ3_M,
    Mix::IQ4_XS,
    Mix::IQ4_NL,
    Mix::Q4_0,
    Mix::Q4_1,
    Mix::Q5_0,
    Mix::Q5_1,
    Mix::TQ1_0,
    Mix::TQ2_0,
    Mix::MXFP4_MOE,
    Mix::F16,
    Mix::BF16,
    Mix::F32,
    Mix::COPY,
];

/// Tensor types that a recipe may ask for, in the order in which suggestions list them.
pub const TYPES: &[TensorType] = &[
    TensorType::F32,
    TensorType::F16,
    TensorType::BF16,
    TensorType::Q8_0,
    TensorType::Q6_K,
    TensorType::Q5_K,
    TensorType::Q4_K,
    TensorType::Q3_K,
    TensorType::Q2_K,
    TensorType::IQ4_XS,
    TensorType::IQ4_NL,
    TensorType::IQ3_S,
    TensorType::IQ3_XXS,
    TensorType::IQ2_S,
    TensorType::IQ2_XS,
    TensorType::IQ2_XXS,
    TensorType::IQ1_M,
    TensorType::IQ1_S,
    TensorType::Q5_1,
    TensorType::Q5_0,
    TensorType::Q4_1,
    TensorType::Q4_0,
    TensorType::TQ2_0,
    TensorType::TQ1_0,
    TensorType::MXFP4,
];

/// The types that a cache of keys and values can have, as llama.cpp's options spell them.
pub const CACHE_TYPES: &[&str] = &["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"];

/// Returns the mix that recipes call so (an alias too), in exactly this spelling.
pub fn mix_of(name: &str) -> Option<Mix> {
    let alias = ALIASES.iter().find(|(alias, _)| *alias == name).map(|(_, mix)| *mix);
    alias.or_else(|| MIXES.iter().find(|mix| mix.name() == name).copied())
}

/// Returns the one of some tensor types that has this name, in exactly this spelling.
pub fn type_of(name: &str, types: &[TensorType]) -> Option<TensorType> {
    types.iter().find(|ty| ty.name() == name).copied()
}

/// Why a text can't be a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameProblem {
    /// There is nothing.
    #[error("it is empty")]
    Empty,
    /// It begins with a dot or a dash.
    #[error("it begins with `{0}`")]
    BadStart(char),
    /// It has a character that names can't have.
    #[error("it contains {0:?}")]
    BadCharacter(char),
    /// It is too long.
    #[error("it has {0} bytes, more than {MAX_NAME}")]
    TooLong(usize),
}

/// Returns why `name` can't be a name, if so. Names become parts of file names: letters, digits, `.`, `_` and `-`, not
/// beginning with `.` or `-`, at most [`MAX_NAME`] bytes.
pub fn name_problem(name: &str) -> Option<NameProblem> {
    if let Some(bad) = name
        .chars()
        .find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')))
    {
        return Some(NameProblem::BadCharacter(bad));
    }
    match name.chars().next() {
        None => Some(NameProblem::Empty),
        Some(start @ ('.' | '-')) => Some(NameProblem::BadStart(start)),
        Some(_) if name.len() > MAX_NAME => Some(NameProblem::TooLong(name.len())),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixes_and_types_are_found_by_name_and_alias_in_exact_spelling() {
        assert_eq!(mix_of("Q4_K_M"), Some(Mix::Q4_K_M));
        assert_eq!(mix_of("Q4_K"), Some(Mix::Q4_K_M));
        assert_eq!(mix_of("q4_k_m"), None);
        assert_eq!(mix_of("Q1_0"), None);
        assert_eq!(type_of("Q4_K", TYPES), Some(TensorType::Q4_K));
        assert_eq!(type_of("q4_k", TYPES), None);
        assert_eq!(type_of("Q8_K", TYPES), None);
    }

    #[test]
    fn every_mix_and_type_can_be_part_of_a_file_name() {
        let names = MIXES
            .iter()
            .map(|mix| mix.name())
            .chain(TYPES.iter().map(|ty| ty.name()));
        assert!(names.into_iter().all(|name| name_problem(name).is_none()));
    }

    #[test]
    fn names_are_safe_as_file_names() {
        assert_eq!(name_problem("small-Q4_K_M.v2"), None);
        assert_eq!(name_problem(""), Some(NameProblem::Empty));
        assert_eq!(name_problem(".."), Some(NameProblem::BadStart('.')));
        assert_eq!(name_problem("-x"), Some(NameProblem::BadStart('-')));
        assert_eq!(name_problem("a/b"), Some(NameProblem::BadCharacter('/')));
        assert_eq!(name_problem("größe"), Some(NameProblem::BadCharacter('ö')));
        assert_eq!(name_problem(&"x".repeat(101)), Some(NameProblem::TooLong(101)));
    }
}
