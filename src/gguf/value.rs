//! Metadata values.

use std::fmt;

/// The type of a metadata value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum ValueType {
    /// Unsigned, 8 bits.
    U8 = 0,
    /// Signed, 8 bits.
    I8 = 1,
    /// Unsigned, 16 bits.
    U16 = 2,
    /// Signed, 16 bits.
    I16 = 3,
    /// Unsigned, 32 bits.
    U32 = 4,
    /// Signed, 32 bits.
    I32 = 5,
    /// Float, 32 bits.
    F32 = 6,
    /// One byte, 0 or not.
    Bool = 7,
    /// Bytes, mostly UTF-8.
    String = 8,
    /// Many of one of the other types.
    Array = 9,
    /// Unsigned, 64 bits.
    U64 = 10,
    /// Signed, 64 bits.
    I64 = 11,
    /// Float, 64 bits.
    F64 = 12,
}

impl ValueType {
    /// Returns the number that files hold.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// Returns the type of a number found in a file.
    pub const fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::String,
            9 => Self::Array,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    /// Returns the bytes of a value; none for strings and arrays.
    pub const fn size(self) -> Option<u64> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::String | Self::Array => None,
        }
    }

    /// Returns the name that llama.cpp prints, as `u32`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::String => "str",
            Self::Array => "arr",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A metadata value, decoded.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Unsigned, 8 bits.
    U8(u8),
    /// Signed, 8 bits.
    I8(i8),
    /// Unsigned, 16 bits.
    U16(u16),
    /// Signed, 16 bits.
    I16(i16),
    /// Unsigned, 32 bits.
    U32(u32),
    /// Signed, 32 bits.
    I32(i32),
    /// Float, 32 bits.
    F32(f32),
    /// A truth value.
    Bool(bool),
    /// Bytes, mostly UTF-8.
    String(Vec<u8>),
    /// Elements of one type, which is none of `Array`.
    Array(ValueType, Vec<Value>),
    /// Unsigned, 64 bits.
    U64(u64),
    /// Signed, 64 bits.
    I64(i64),
    /// Float, 64 bits.
    F64(f64),
}

impl Value {
    /// Makes an array of strings.
    pub fn strings<S: AsRef<[u8]>>(strings: impl IntoIterator<Item = S>) -> Self {
        let strings = strings.into_iter().map(|string| Self::String(string.as_ref().to_vec()));
        Self::Array(ValueType::String, strings.collect())
    }

    /// Returns the type.
    pub const fn value_type(&self) -> ValueType {
        match self {
            Self::U8(_) => ValueType::U8,
            Self::I8(_) => ValueType::I8,
            Self::U16(_) => ValueType::U16,
            Self::I16(_) => ValueType::I16,
            Self::U32(_) => ValueType::U32,
            Self::I32(_) => ValueType::I32,
            Self::F32(_) => ValueType::F32,
            Self::Bool(_) => ValueType::Bool,
            Self::String(_) => ValueType::String,
            Self::Array(..) => ValueType::Array,
            Self::U64(_) => ValueType::U64,
            Self::I64(_) => ValueType::I64,
            Self::F64(_) => ValueType::F64,
        }
    }

    /// Appends the bytes that a file holds after the type.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::U8(value) => out.push(*value),
            Self::I8(value) => out.extend(value.to_le_bytes()),
            Self::U16(value) => out.extend(value.to_le_bytes()),
            Self::I16(value) => out.extend(value.to_le_bytes()),
            Self::U32(value) => out.extend(value.to_le_bytes()),
            Self::I32(value) => out.extend(value.to_le_bytes()),
            Self::F32(value) => out.extend(value.to_le_bytes()),
            Self::Bool(value) => out.push(u8::from(*value)),
            Self::String(value) => {
                out.extend((value.len() as u64).to_le_bytes());
                out.extend(value);
            }
            Self::Array(ty, values) => {
                out.extend(ty.id().to_le_bytes());
                out.extend((values.len() as u64).to_le_bytes());
                for value in values {
                    value.encode(out);
                }
            }
            Self::U64(value) => out.extend(value.to_le_bytes()),
            Self::I64(value) => out.extend(value.to_le_bytes()),
            Self::F64(value) => out.extend(value.to_le_bytes()),
        }
    }

    /// Decodes one value off the front of `bytes`; none if they are not one.
    pub(super) fn decode(ty: ValueType, bytes: &mut &[u8]) -> Option<Self> {
        fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
            let (head, rest) = bytes.split_first_chunk::<N>()?;
            *bytes = rest;
            Some(*head)
        }
        Some(match ty {
            ValueType::U8 => Self::U8(u8::from_le_bytes(take(bytes)?)),
            ValueType::I8 => Self::I8(i8::from_le_bytes(take(bytes)?)),
            ValueType::U16 => Self::U16(u16::from_le_bytes(take(bytes)?)),
            ValueType::I16 => Self::I16(i16::from_le_bytes(take(bytes)?)),
            ValueType::U32 => Self::U32(u32::from_le_bytes(take(bytes)?)),
            ValueType::I32 => Self::I32(i32::from_le_bytes(take(bytes)?)),
            ValueType::F32 => Self::F32(f32::from_le_bytes(take(bytes)?)),
            ValueType::Bool => Self::Bool(take::<1>(bytes)? != [0]),
            ValueType::String => {
                let length = usize::try_from(u64::from_le_bytes(take(bytes)?)).ok()?;
                let (string, rest) = bytes.split_at_checked(length)?;
                *bytes = rest;
                Self::String(string.to_vec())
            }
            ValueType::Array => {
                let ty = ValueType::from_id(u32::from_le_bytes(take(bytes)?)).filter(|ty| *ty != ValueType::Array)?;
                let count = u64::from_le_bytes(take(bytes)?);
                let values = (0..count).map(|_| Self::decode(ty, bytes)).collect::<Option<_>>()?;
                Self::Array(ty, values)
            }
            ValueType::U64 => Self::U64(u64::from_le_bytes(take(bytes)?)),
            ValueType::I64 => Self::I64(i64::from_le_bytes(take(bytes)?)),
            ValueType::F64 => Self::F64(f64::from_le_bytes(take(bytes)?)),
        })
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.as_bytes().to_vec())
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::U32(value)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

/// As a person reads it: long strings and arrays are cut, and say how long they are.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::U8(value) => write!(f, "{value}"),
            Self::I8(value) => write!(f, "{value}"),
            Self::U16(value) => write!(f, "{value}"),
            Self::I16(value) => write!(f, "{value}"),
            Self::U32(value) => write!(f, "{value}"),
            Self::I32(value) => write!(f, "{value}"),
            Self::F32(value) => write!(f, "{value}"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::U64(value) => write!(f, "{value}"),
            Self::I64(value) => write!(f, "{value}"),
            Self::F64(value) => write!(f, "{value}"),
            Self::String(bytes) => {
                let text = String::from_utf8_lossy(&bytes[..bytes.len().min(400)]);
                let cut: String = text.chars().take(80).flat_map(char::escape_debug).collect();
                let more = if bytes.len() > 400 || text.chars().nth(80).is_some() {
                    "…"
                } else {
                    ""
                };
                write!(f, "\"{cut}{more}\"")
            }
            Self::Array(ty, values) => {
                write!(f, "[")?;
                for (index, value) in values.iter().take(6).enumerate() {
                    write!(f, "{}{value}", if index == 0 { "" } else { ", " })?;
                }
                match values.len() {
                    0..=6 => write!(f, "]"),
                    many => write!(f, ", … {many} of {ty}]"),
                }
            }
        }
    }
}
