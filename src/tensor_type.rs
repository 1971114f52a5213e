//! Every tensor type of ggml: its id in files, its name, its block, and what the quantizer can and needs to do for it.
//!
//! The table is ggml's `enum ggml_type` with the block sizes of `ggml-common.h`. Ids that ggml has given up (4, 5, 31 to
//! 33, 36 to 38) are no types here.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::prose;

/// What a row of the table says beyond the block: how the quantizer treats the type.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A plain float that `ggml_quantize_chunk` converts to.
    Float,
    /// Quantized; the kernel weighs errors by the imatrix if there is one.
    Weighted,
    /// Quantized; the kernel aborts the process without an imatrix.
    Needy,
    /// Quantized; the kernel ignores the imatrix.
    Unweighted,
    /// Quantized, for intermediate results only: never written to a file.
    Internal,
    /// A number that is stored and never quantized to.
    Plain,
}

macro_rules! tensor_types {
    ($($(#[$doc:meta])* $variant:ident $id:literal $name:literal $elements:literal / $bytes:literal $kind:ident,)*) => {
        /// The type of a tensor's elements.
        #[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[allow(non_camel_case_types)]
        #[repr(u32)]
        pub enum TensorType {
            $($(#[$doc])* $variant = $id,)*
        }

        impl TensorType {
            /// Every type, in the order of their ids.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Returns the type of an id found in a file, if ggml has one.
            pub const fn from_id(id: u32) -> Option<Self> {
                match id {
                    $($id => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// Returns llama.cpp's upper-case name, as `Q4_K`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// Returns how many elements of a row make one block.
            pub const fn block_elements(self) -> u64 {
                match self {
                    $(Self::$variant => $elements,)*
                }
            }

            /// Returns how many bytes one block takes.
            pub const fn block_bytes(self) -> u64 {
                match self {
                    $(Self::$variant => $bytes,)*
                }
            }

            const fn kind(self) -> Kind {
                match self {
                    $(Self::$variant => Kind::$kind,)*
                }
            }
        }
    };
}

tensor_types! {
    /// 32-bit IEEE float.
    F32 0 "F32" 1/4 Float,
    /// 16-bit IEEE float.
    F16 1 "F16" 1/2 Float,
    /// 4 bits, one scale per 32.
    Q4_0 2 "Q4_0" 32/18 Weighted,
    /// 4 bits, scale and minimum per 32.
    Q4_1 3 "Q4_1" 32/20 Weighted,
    /// 5 bits, one scale per 32.
    Q5_0 6 "Q5_0" 32/22 Weighted,
    /// 5 bits, scale and minimum per 32.
    Q5_1 7 "Q5_1" 32/24 Weighted,
    /// 8 bits, one scale per 32.
    Q8_0 8 "Q8_0" 32/34 Unweighted,
    /// 8 bits with a row sum: activations of 32-blocks.
    Q8_1 9 "Q8_1" 32/36 Internal,
    /// 2 bits, super-blocks of 256.
    Q2_K 10 "Q2_K" 256/84 Weighted,
    /// 3 bits, super-blocks of 256.
    Q3_K 11 "Q3_K" 256/110 Weighted,
    /// 4 bits, super-blocks of 256.
    Q4_K 12 "Q4_K" 256/144 Weighted,
    /// 5 bits, super-blocks of 256.
    Q5_K 13 "Q5_K" 256/176 Weighted,
    /// 6 bits, super-blocks of 256.
    Q6_K 14 "Q6_K" 256/210 Weighted,
    /// 8 bits, activations of 256-blocks.
    Q8_K 15 "Q8_K" 256/292 Internal,
    /// 2.06 bits, grid.
    IQ2_XXS 16 "IQ2_XXS" 256/66 Needy,
    /// 2.31 bits, grid.
    IQ2_XS 17 "IQ2_XS" 256/74 Needy,
    /// 3.06 bits, grid.
    IQ3_XXS 18 "IQ3_XXS" 256/98 Weighted,
    /// 1.56 bits, grid.
    IQ1_S 19 "IQ1_S" 256/50 Needy,
    /// 4 bits, non-linear, blocks of 32.
    IQ4_NL 20 "IQ4_NL" 32/18 Weighted,
    /// 3.44 bits, grid.
    IQ3_S 21 "IQ3_S" 256/110 Weighted,
    /// 2.56 bits, grid.
    IQ2_S 22 "IQ2_S" 256/82 Weighted,
    /// 4.25 bits, non-linear, super-blocks of 256.
    IQ4_XS 23 "IQ4_XS" 256/136 Weighted,
    /// 8-bit integer.
    I8 24 "I8" 1/1 Plain,
    /// 16-bit integer.
    I16 25 "I16" 1/2 Plain,
    /// 32-bit integer.
    I32 26 "I32" 1/4 Plain,
    /// 64-bit integer.
    I64 27 "I64" 1/8 Plain,
    /// 64-bit IEEE float.
    F64 28 "F64" 1/8 Plain,
    /// 1.75 bits, grid.
    IQ1_M 29 "IQ1_M" 256/56 Weighted,
    /// 16-bit brain float.
    BF16 30 "BF16" 1/2 Float,
    /// 1.69 bits, ternary.
    TQ1_0 34 "TQ1_0" 256/54 Unweighted,
    /// 2.06 bits, ternary.
    TQ2_0 35 "TQ2_0" 256/66 Unweighted,
    /// 4-bit floats with a shared exponent per 32 (OCP MX).
    MXFP4 39 "MXFP4" 32/17 Unweighted,
    /// 4-bit floats with an E4M3 scale per 16, blocks of 64.
    NVFP4 40 "NVFP4" 64/36 Unweighted,
    /// 1 bit, one scale per 128. The kernel takes an imatrix and does not read it.
    Q1_0 41 "Q1_0" 128/18 Unweighted,
    /// 2 bits, one scale per 64. The kernel takes an imatrix and does not read it.
    Q2_0 42 "Q2_0" 64/18 Unweighted,
}

impl TensorType {
    /// Returns the id that files hold.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// Returns the type of a name in any case, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|ty| ty.name().eq_ignore_ascii_case(name))
    }

    /// Returns the bits per weight. Exact: every block has a power of two of elements.
    pub fn bpw(self) -> f64 {
        (self.block_bytes() * 8) as f64 / self.block_elements() as f64
    }

    /// Returns the bytes of a row of `ncols` elements; none if the row is not whole blocks, or larger than 64 bits count.
    pub const fn row_bytes(self, ncols: u64) -> Option<u64> {
        if !ncols.is_multiple_of(self.block_elements()) {
            return None;
        }
        (ncols / self.block_elements()).checked_mul(self.block_bytes())
    }

    /// Returns the bytes of a tensor of these dimensions (fastest first); none as for [`Self::row_bytes`].
    pub fn tensor_bytes(self, dims: &[u64]) -> Option<u64> {
        let (ncols, rest) = dims.split_first()?;
        rest.iter()
            .try_fold(self.row_bytes(*ncols)?, |bytes, dim| bytes.checked_mul(*dim))
    }

    /// Returns true for block formats, false for plain floats and integers.
    pub const fn is_quantized(self) -> bool {
        matches!(
            self.kind(),
            Kind::Weighted | Kind::Needy | Kind::Unweighted | Kind::Internal
        )
    }

    /// Returns true for F64, F32, F16 and BF16.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::BF16)
    }

    /// Returns true if `ggml_quantize_chunk` writes this type.
    pub const fn quantizable_target(self) -> bool {
        matches!(
            self.kind(),
            Kind::Weighted | Kind::Needy | Kind::Unweighted | Kind::Float
        )
    }

    /// Returns true if the quantized bytes depend on the imatrix. For the others it stays out of every key.
    pub const fn uses_imatrix(self) -> bool {
        matches!(self.kind(), Kind::Weighted | Kind::Needy)
    }

    /// Returns true if the kernel aborts the process without an imatrix.
    pub const fn needs_imatrix(self) -> bool {
        matches!(self.kind(), Kind::Needy)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A text that names no tensor type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is not a tensor type{}", did_you_mean(.candidates))]
pub struct ParseTensorTypeError {
    /// The text.
    pub found: String,
    /// The types with the most similar names; at most three.
    pub candidates: Vec<TensorType>,
}

fn did_you_mean(candidates: &[TensorType]) -> String {
    let names: Vec<&str> = candidates.iter().map(|ty| ty.name()).collect();
    prose::did_you_mean(&names)
}

impl FromStr for TensorType {
    type Err = ParseTensorTypeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(ty) = Self::from_name(text) {
            return Ok(ty);
        }
        let near = prose::all_nearest(text, Self::ALL.iter().map(|ty| ty.name()));
        Err(ParseTensorTypeError {
            found: text.to_owned(),
            candidates: near.into_iter().filter_map(Self::from_name).collect(),
        })
    }
}

impl Serialize for TensorType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for TensorType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of the format's documentation: id, name, bits per weight.
    const DOCUMENTED: &[(u32, &str, f64)] = &[
        (0, "F32", 32.0),
        (1, "F16", 16.0),
        (2, "Q4_0", 4.5),
        (3, "Q4_1", 5.0),
        (6, "Q5_0", 5.5),
        (7, "Q5_1", 6.0),
        (8, "Q8_0", 8.5),
        (9, "Q8_1", 9.0),
        (10, "Q2_K", 2.625),
        (11, "Q3_K", 3.4375),
        (12, "Q4_K", 4.5),
        (13, "Q5_K", 5.5),
        (14, "Q6_K", 6.5625),
        (15, "Q8_K", 9.125),
        (16, "IQ2_XXS", 2.0625),
        (17, "IQ2_XS", 2.3125),
        (18, "IQ3_XXS", 3.0625),
        (19, "IQ1_S", 1.5625),
        (20, "IQ4_NL", 4.5),
        (21, "IQ3_S", 3.4375),
        (22, "IQ2_S", 2.5625),
        (23, "IQ4_XS", 4.25),
        (24, "I8", 8.0),
        (25, "I16", 16.0),
        (26, "I32", 32.0),
        (27, "I64", 64.0),
        (28, "F64", 64.0),
        (29, "IQ1_M", 1.75),
        (30, "BF16", 16.0),
        (34, "TQ1_0", 1.6875),
        (35, "TQ2_0", 2.0625),
        (39, "MXFP4", 4.25),
        (40, "NVFP4", 4.5),
        (41, "Q1_0", 1.125),
        (42, "Q2_0", 2.25),
    ];

    #[test]
    fn the_table_is_the_documented_one() {
        let table: Vec<_> = TensorType::ALL
            .iter()
            .map(|ty| (ty.id(), ty.name(), ty.bpw()))
            .collect();
        assert_eq!(table, DOCUMENTED);
        for ty in TensorType::ALL {
            assert_eq!(TensorType::from_id(ty.id()), Some(*ty));
            assert_eq!(TensorType::from_name(&ty.name().to_lowercase()), Some(*ty));
            assert!(ty.block_elements().is_power_of_two());
        }
        for gone in [4, 5, 31, 32, 33, 36, 37, 38, 43, u32::MAX] {
            assert_eq!(TensorType::from_id(gone), None);
        }
    }

    #[test]
    fn rows_are_whole_blocks_and_never_overflow() {
        assert_eq!(TensorType::Q4_K.row_bytes(512), Some(288));
        assert_eq!(TensorType::Q4_K.row_bytes(0), Some(0));
        assert_eq!(TensorType::Q4_K.row_bytes(511), None);
        assert_eq!(TensorType::F32.row_bytes(u64::MAX), None);
        assert_eq!(TensorType::F32.tensor_bytes(&[1 << 31, 1 << 31, 1]), None);
        assert_eq!(TensorType::Q8_0.tensor_bytes(&[64, 3, 2]), Some(408));
        assert_eq!(TensorType::F16.tensor_bytes(&[]), None);
    }

    #[test]
    fn the_quantizer_facts() {
        use TensorType as T;
        let of = |test: fn(T) -> bool| T::ALL.iter().copied().filter(|ty| test(*ty)).collect::<Vec<_>>();
        assert_eq!(of(T::needs_imatrix), [T::IQ2_XXS, T::IQ2_XS, T::IQ1_S]);
        assert_eq!(
            of(|ty| !ty.quantizable_target()),
            [T::Q8_1, T::Q8_K, T::I8, T::I16, T::I32, T::I64, T::F64]
        );
        let blind = [
            T::F32,
            T::F16,
            T::Q8_0,
            T::BF16,
            T::TQ1_0,
            T::TQ2_0,
            T::MXFP4,
            T::NVFP4,
            T::Q1_0,
            T::Q2_0,
        ];
        assert_eq!(of(|ty| ty.quantizable_target() && !ty.uses_imatrix()), blind);
        assert_eq!(of(T::is_float), [T::F32, T::F16, T::F64, T::BF16]);
        assert_eq!(of(|ty| !ty.is_quantized()).len(), 8);
    }

    #[test]
    fn a_wrong_name_is_answered_with_candidates() {
        let error = "Q4K".parse::<TensorType>().unwrap_err();
        assert_eq!(error.candidates.first(), Some(&TensorType::Q4_K));
        assert!(
            error
                .to_string()
                .starts_with("`Q4K` is not a tensor type; did you mean `Q4_K`"),
            "{error}"
        );
        assert_eq!(
            "iq4-xs".parse::<TensorType>().unwrap_err().candidates,
            [TensorType::IQ4_XS]
        );
        assert_eq!(
            "banana".parse::<TensorType>().unwrap_err().to_string(),
            "`banana` is not a tensor type"
        );
        assert_eq!(serde_json::to_string(&TensorType::MXFP4).unwrap(), "\"MXFP4\"");
        assert_eq!(
            serde_json::from_str::<TensorType>("\"q6_k\"").unwrap(),
            TensorType::Q6_K
        );
    }
}
