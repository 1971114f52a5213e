//! The named mixes of llama.cpp (what `llama-quantize` takes as its TYPE): names, numbers and base types.
//!
//! The table is llama.cpp's `enum llama_ftype`, with the base types of `llama_ftype_get_default_type`.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;
use serde::de::Error as _;

use crate::prose;
use crate::tensor_type::TensorType;

macro_rules! mixes {
    ($($variant:ident $ftype:literal $base:ident,)*) => {
        /// A mix: what `llama-quantize` takes as its TYPE.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[allow(non_camel_case_types, missing_docs)]
        pub enum Mix {
            $($variant,)*
            /// Every tensor as it is.
            COPY,
        }

        impl Mix {
            /// Every mix, in the order of their numbers; COPY, which has none, is the last.
            pub const ALL: &[Self] = &[$(Self::$variant,)* Self::COPY];

            /// Returns llama.cpp's name, as `Q4_K_M`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => stringify!($variant),)*
                    Self::COPY => "COPY",
                }
            }

            /// Returns the number that stands for the mix in `general.file_type` (`enum llama_ftype`).
            pub const fn ftype(self) -> Option<u32> {
                match self {
                    $(Self::$variant => Some($ftype),)*
                    Self::COPY => None,
                }
            }

            /// Returns the type that a tensor has in this mix where no rule says otherwise.
            pub const fn default_type(self) -> Option<TensorType> {
                match self {
                    $(Self::$variant => Some(TensorType::$base),)*
                    Self::COPY => None,
                }
            }
        }
    };
}

mixes! {
    F32 0 F32,
    F16 1 F16,
    Q4_0 2 Q4_0,
    Q4_1 3 Q4_1,
    Q8_0 7 Q8_0,
    Q5_0 8 Q5_0,
    Q5_1 9 Q5_1,
    Q2_K 10 Q2_K,
    Q3_K_S 11 Q3_K,
    Q3_K_M 12 Q3_K,
    Q3_K_L 13 Q3_K,
    Q4_K_S 14 Q4_K,
    Q4_K_M 15 Q4_K,
    Q5_K_S 16 Q5_K,
    Q5_K_M 17 Q5_K,
    Q6_K 18 Q6_K,
    IQ2_XXS 19 IQ2_XXS,
    IQ2_XS 20 IQ2_XS,
    Q2_K_S 21 Q2_K,
    IQ3_XS 22 IQ3_S,
    IQ3_XXS 23 IQ3_XXS,
    IQ1_S 24 IQ1_S,
    IQ4_NL 25 IQ4_NL,
    IQ3_S 26 IQ3_S,
    IQ3_M 27 IQ3_S,
    IQ2_S 28 IQ2_XS,
    IQ2_M 29 IQ2_S,
    IQ4_XS 30 IQ4_XS,
    IQ1_M 31 IQ1_M,
    BF16 32 BF16,
    TQ1_0 36 TQ1_0,
    TQ2_0 37 TQ2_0,
    MXFP4_MOE 38 MXFP4,
    Q1_0 40 Q1_0,
    Q2_0 41 Q2_0,
}

/// Aliases of mixes.
pub const ALIASES: &[(&str, Mix)] = &[("Q3_K", Mix::Q3_K_M), ("Q4_K", Mix::Q4_K_M), ("Q5_K", Mix::Q5_K_M)];

impl Mix {
    /// Returns the mix of a name in any case, aliases included.
    pub fn from_name(name: &str) -> Option<Self> {
        let named = Self::ALL
            .iter()
            .map(|mix| (mix.name(), *mix))
            .chain(ALIASES.iter().copied());
        named
            .into_iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, mix)| mix)
    }

    /// Returns whether `llama-quantize` refuses to make the mix without an importance matrix.
    pub const fn needs_imatrix(self) -> bool {
        matches!(
            self,
            Self::IQ1_S
                | Self::IQ1_M
                | Self::IQ2_XXS
                | Self::IQ2_XS
                | Self::IQ2_S
                | Self::IQ2_M
                | Self::IQ3_XXS
                | Self::Q2_K_S
        )
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A text that names no mix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is not a mix{}", prose::did_you_mean(.candidates))]
pub struct ParseMixError {
    /// The text.
    pub found: String,
    /// The most similar names; at most three.
    pub candidates: Vec<&'static str>,
}

impl FromStr for Mix {
    type Err = ParseMixError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(mix) = Self::from_name(text) {
            return Ok(mix);
        }
        Err(ParseMixError {
            found: text.to_owned(),
            candidates: prose::all_nearest(text, Self::ALL.iter().map(|mix| mix.name())),
        })
    }
}

impl Serialize for Mix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Mix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixes_are_found_by_name_and_alias_in_any_case() {
        for mix in Mix::ALL {
            assert_eq!(Mix::from_name(mix.name()), Some(*mix));
        }
        assert_eq!(Mix::from_name("q4_k"), Some(Mix::Q4_K_M));
        assert_eq!(Mix::from_name("iq3_xxs"), Some(Mix::IQ3_XXS));
        let error = "Q4_KM".parse::<Mix>().unwrap_err();
        assert!(error.candidates.contains(&"Q4_K_M"), "{error}");
        assert!(error.to_string().starts_with("`Q4_KM` is not a mix"), "{error}");
    }

    #[test]
    fn a_mix_needs_an_imatrix_where_its_base_type_does() {
        for mix in Mix::ALL {
            assert!(
                mix.needs_imatrix() || !mix.default_type().is_some_and(TensorType::needs_imatrix),
                "{mix}"
            );
        }
        assert!(Mix::IQ2_XXS.needs_imatrix() && !Mix::IQ4_XS.needs_imatrix());
    }
}
