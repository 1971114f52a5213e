//! The named mixes of llama.cpp: their names and numbers, and how one is applied to a model.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;
use serde::de::Error as _;

use crate::policy::ModelFacts;
use crate::policy::PolicyError;
use crate::policy::role::counting_order;
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

/// Names that stand for another.
const ALIASES: &[(&str, Mix)] = &[("Q3_K", Mix::Q3_K_M), ("Q4_K", Mix::Q4_K_M), ("Q5_K", Mix::Q5_K_M)];

/// Added by llama.cpp to a file type that it guessed.
const GUESSED: u32 = 1024;

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

    /// Returns the number that `llama-quantize` writes as `general.file_type`: the mix's own, or for COPY that of the
    /// source, guessed as llama.cpp guesses it where the source has none.
    pub fn file_type(self, model: &ModelFacts) -> u32 {
        self.ftype().or(model.file_type).unwrap_or_else(|| {
            let mut counts = BTreeMap::<TensorType, usize>::new();
            let mut most = (0, TensorType::F32);
            for index in counting_order(model.tensors.iter().map(|tensor| tensor.name.as_str())) {
                let ty = model.tensors[index].ty;
                let count = counts.entry(ty).or_default();
                *count += 1;
                if *count > most.0 {
                    most = (*count, ty);
                }
            }
            usual_file_type(most.1).unwrap_or(0) | GUESSED
        })
    }
}

/// Returns the file type that llama.cpp takes for a file mostly of one type.
pub(crate) fn usual_file_type(ty: TensorType) -> Option<u32> {
    use TensorType as T;
    let mix = match ty {
        T::Q3_K => Mix::Q3_K_M,
        T::Q4_K => Mix::Q4_K_M,
        T::Q5_K => Mix::Q5_K_M,
        T::IQ2_S => Mix::IQ2_S,
        T::MXFP4 => return None,
        // The quantizer has no mix of this name, but the number is defined.
        T::NVFP4 => return Some(39),
        other => Mix::from_name(other.name())?,
    };
    mix.ftype()
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Mix {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(mix) = Self::from_name(text) {
            return Ok(mix);
        }
        Err(PolicyError::UnknownMix {
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
