//! The words a recipe may use for types and mixes, and what a name may look like.

use serde::{Serialize, Serializer};

/// The longest name, in bytes: names become file names, with a suffix.
pub const MAX_NAME: usize = 100;

/// A named recipe of types of llama.cpp (what `llama-quantize` takes), by its canonical name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mix(&'static str);

/// Canonical names of mixes, in the order in which suggestions list them.
pub const MIXES: &[&str] = &[
    "Q2_K",
    "Q2_K_S",
    "Q3_K_S",
    "Q3_K_M",
    "Q3_K_L",
    "Q4_K_S",
    "Q4_K_M",
    "Q5_K_S",
    "Q5_K_M",
    "Q6_K",
    "Q8_0",
    "IQ1_S",
    "IQ1_M",
    "IQ2_XXS",
    "IQ2_XS",
    "IQ2_S",
    "IQ2_M",
    "IQ3_XXS",
    "IQ3_XS",
    "IQ3_S",
    "IQ3_M",
    "IQ4_XS",
    "IQ4_NL",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "TQ1_0",
    "TQ2_0",
    "MXFP4_MOE",
    "F16",
    "BF16",
    "F32",
    "COPY",
];

/// Other names of mixes and what they stand for.
pub const MIX_ALIASES: &[(&str, &str)] = &[("Q3_K", "Q3_K_M"), ("Q4_K", "Q4_K_M"), ("Q5_K", "Q5_K_M")];

/// Mixes whose base type llama.cpp refuses to quantize to without an importance matrix.
pub const MIXES_THAT_NEED_IMATRIX: &[&str] = &[
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "Q2_K_S",
];

impl Mix {
    /// Returns the mix of this name (an alias too), in exactly this spelling.
    pub fn from_name(name: &str) -> Option<Self> {
        let name = MIX_ALIASES
            .iter()
            .find(|(alias, _)| *alias == name)
            .map_or(name, |(_, canonical)| canonical);
        MIXES.iter().find(|known| **known == name).map(|known| Self(known))
    }

    /// Returns the canonical name.
    pub const fn as_str(self) -> &'static str {
        self.0
    }

    /// Returns whether the mix can't be made without an importance matrix.
    pub fn needs_imatrix(self) -> bool {
        MIXES_THAT_NEED_IMATRIX.contains(&self.0)
    }
}

impl Serialize for Mix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0)
    }
}

/// The name of a tensor type that a candidate's tensors may have, in ggml's spelling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TypeName(&'static str);

/// Names of tensor types.
pub const TYPES: &[&str] = &[
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "IQ4_XS", "IQ4_NL", "IQ3_S", "IQ3_XXS",
    "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "TQ2_0", "TQ1_0", "MXFP4",
];

/// The types that `ashq1` gives, lowest first.
pub const ASHQ1_LADDER: &[&str] = &["Q3_K", "IQ4_XS", "IQ4_NL", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "F16"];

/// The types for which `prior` has a loss, by size.
pub const PRIOR_TYPES: &[&str] = &[
    "IQ1_S", "IQ2_XXS", "IQ2_S", "Q2_K", "IQ3_XXS", "Q3_K", "IQ3_S", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_K", "Q5_K",
    "Q6_K", "Q8_0", "F16",
];

/// The types that `measured` tries if the recipe names none, by size.
pub const MEASURED_TYPES: &[&str] = &[
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "Q2_K", "IQ3_XXS", "IQ3_S", "Q3_K", "IQ4_XS", "IQ4_NL", "Q4_0",
    "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0",
];

/// The types that a cache of keys and values can have, as llama.cpp's options spell them.
pub const CACHE_TYPES: &[&str] = &["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"];

impl TypeName {
    /// Returns the type of this name, in exactly this spelling.
    pub fn from_name(name: &str) -> Option<Self> {
        TYPES.iter().find(|known| **known == name).map(|known| Self(known))
    }

    /// Returns the name.
    pub const fn as_str(self) -> &'static str {
        self.0
    }
}

impl Serialize for TypeName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0)
    }
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
    fn mixes_are_found_by_name_and_alias_in_exact_spelling() {
        assert_eq!(Mix::from_name("Q4_K_M").unwrap().as_str(), "Q4_K_M");
        assert_eq!(Mix::from_name("Q4_K").unwrap().as_str(), "Q4_K_M");
        assert_eq!(Mix::from_name("q4_k_m"), None);
        assert!(Mix::from_name("IQ2_XXS").unwrap().needs_imatrix());
        assert!(!Mix::from_name("IQ4_XS").unwrap().needs_imatrix());
        assert!(MIXES_THAT_NEED_IMATRIX.iter().all(|name| MIXES.contains(name)));
        assert!(
            MIX_ALIASES
                .iter()
                .all(|(alias, name)| MIXES.contains(name) && !MIXES.contains(alias))
        );
    }

    #[test]
    fn every_mix_and_type_is_a_name() {
        assert!(MIXES.iter().chain(TYPES).all(|name| name_problem(name).is_none()));
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
