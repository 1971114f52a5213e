//! The key-value pairs of a GGUF file, in order and byte for byte.

use indexmap::IndexMap;

use super::error::{GgufError, Place, Problem};
use super::value::{Value, ValueType};
use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAX_ALIGNMENT};

/// One key with its value, encoded as in the file.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    key: String,
    ty: ValueType,
    raw: Vec<u8>,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} = {} {} bytes", self.key, self.ty, self.raw.len())
    }
}

impl Entry {
    /// Wraps bytes that the reader has checked.
    pub(super) fn from_raw(key: String, ty: ValueType, raw: Vec<u8>) -> Self {
        Self { key, ty, raw }
    }

    /// Encodes a value.
    pub fn new(key: &str, value: &Value) -> Result<Self, GgufError> {
        let error = |problem| GgufError {
            offset: None,
            place: Place::Key {
                index: 0,
                name: Some(key.to_owned()),
            },
            problem,
        };
        if key.is_empty() {
            return Err(error(Problem::NameEmpty));
        }
        if key.contains('\0') {
            return Err(error(Problem::NameZero));
        }
        if let Value::Array(expected, values) = value {
            if *expected == ValueType::Array {
                return Err(error(Problem::NestedArray));
            }
            if let Some(found) = values.iter().map(Value::value_type).find(|ty| ty != expected) {
                return Err(error(Problem::MixedArray {
                    expected: *expected,
                    found,
                }));
            }
        }
        let mut raw = Vec::new();
        value.encode(&mut raw);
        Ok(Self {
            key: key.to_owned(),
            ty: value.value_type(),
            raw,
        })
    }

    /// Returns the key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Returns the type of the value.
    pub fn value_type(&self) -> ValueType {
        self.ty
    }

    /// Returns the value's bytes as they stand in the file after its type.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// Returns the value decoded. Large arrays (a vocabulary) take many times their bytes.
    pub fn value(&self) -> Value {
        // The bytes were checked when they came in, so the alternative is never taken.
        Value::decode(self.ty, &mut &self.raw[..]).unwrap_or_else(|| Value::String(self.raw.clone()))
    }

    /// Returns the type and number of an array's elements.
    pub fn array(&self) -> Option<(ValueType, u64)> {
        let (ty, rest) = self
            .raw
            .split_first_chunk::<4>()
            .filter(|_| self.ty == ValueType::Array)?;
        let (count, _) = rest.split_first_chunk::<8>()?;
        Some((ValueType::from_id(u32::from_le_bytes(*ty))?, u64::from_le_bytes(*count)))
    }

    /// Returns type and value for people: numbers and truth values as they are, strings quoted, of arrays the count.
    pub fn shown(&self) -> String {
        if let Some((ty, count)) = self.array() {
            return format!("{count} x {ty}");
        }
        match self.value() {
            Value::String(bytes) => format!("{:?}", String::from_utf8_lossy(&bytes)),
            Value::F32(value) => format!("f32 {value}"),
            Value::F64(value) => format!("f64 {value}"),
            Value::Bool(value) => format!("{value}"),
            _ => self
                .integer()
                .map_or_else(|| self.ty.to_string(), |value| format!("{} {value}", self.ty)),
        }
    }

    /// Returns an integer of any width.
    fn integer(&self) -> Option<i128> {
        self.ty.size()?;
        Some(match self.value() {
            Value::U8(value) => value.into(),
            Value::I8(value) => value.into(),
            Value::U16(value) => value.into(),
            Value::I16(value) => value.into(),
            Value::U32(value) => value.into(),
            Value::I32(value) => value.into(),
            Value::U64(value) => value.into(),
            Value::I64(value) => value.into(),
            _ => return None,
        })
    }

    /// Returns a string's bytes.
    fn bytes(&self) -> Option<&[u8]> {
        if self.ty == ValueType::String {
            self.raw.get(8..)
        } else {
            None
        }
    }
}

/// All keys of a file, in its order.
#[derive(Debug, Clone, Default)]
pub struct Metadata {
    // By key, in order: files with 100,000 keys exist, so no look-up may scan them all.
    entries: IndexMap<String, Entry>,
}

impl PartialEq for Metadata {
    /// The same entries in the same order.
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other)
    }
}

impl Eq for Metadata {}

impl Metadata {
    /// Starts without keys.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns how many keys there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns true if there are no keys.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns all entries in order.
    pub fn iter(&self) -> Entries<'_> {
        self.entries.values()
    }

    /// Returns the entry of a key.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// Returns true if the key is there.
    pub fn contains(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Sets a key: in place if it is there, else at the end.
    pub fn set(&mut self, key: &str, value: &Value) -> Result<(), GgufError> {
        self.set_entry(Entry::new(key, value)?);
        Ok(())
    }

    /// Sets an entry taken from elsewhere: in place if its key is there, else at the end.
    pub fn set_entry(&mut self, entry: Entry) {
        self.entries.insert(entry.key.clone(), entry);
    }

    /// Removes a key and returns what it was. The order of the others stays.
    pub fn remove(&mut self, key: &str) -> Option<Entry> {
        self.entries.shift_remove(key)
    }

    /// Removes all keys that begin with `prefix`.
    pub fn remove_prefix(&mut self, prefix: &str) {
        self.entries.retain(|key, _| !key.starts_with(prefix));
    }

    /// Returns the alignment of tensor data in bytes: `general.alignment`, or 32 without it.
    ///
    /// # Errors
    ///
    /// A value that is not of type `u32` (llama.cpp reads no other), is not a power of two, or is larger than 16 MiB.
    pub fn alignment(&self) -> Result<u64, GgufError> {
        let Some((index, _, entry)) = self.entries.get_full(ALIGNMENT_KEY) else {
            return Ok(DEFAULT_ALIGNMENT);
        };
        let problem = match entry.value() {
            Value::U32(alignment) if !alignment.is_power_of_two() => Problem::Alignment {
                found: alignment.into(),
            },
            Value::U32(alignment) if u64::from(alignment) > MAX_ALIGNMENT => Problem::AlignmentTooLarge {
                found: alignment.into(),
                limit: MAX_ALIGNMENT,
            },
            Value::U32(alignment) => return Ok(alignment.into()),
            other => Problem::WrongValueType {
                found: other.value_type(),
                expected: ValueType::U32,
            },
        };
        Err(GgufError {
            offset: None,
            place: Place::Key {
                index: index as u64,
                name: Some(ALIGNMENT_KEY.to_owned()),
            },
            problem,
        })
    }

    /// Returns an integer of any type that fits 64 bits without a sign.
    pub fn get_u64(&self, key: &str) -> Option<u64> {
        self.get(key)?.integer()?.try_into().ok()
    }

    /// Returns an integer of any type that fits 32 bits without a sign.
    pub fn get_u32(&self, key: &str) -> Option<u32> {
        self.get(key)?.integer()?.try_into().ok()
    }

    /// Returns an integer of any type that fits 64 bits with a sign.
    pub fn get_i64(&self, key: &str) -> Option<i64> {
        self.get(key)?.integer()?.try_into().ok()
    }

    /// Returns a truth value.
    pub fn get_bool(&self, key: &str) -> Option<bool> {
        let entry = self.get(key).filter(|entry| entry.ty == ValueType::Bool)?;
        Some(*entry.raw.first()? != 0)
    }

    /// Returns a float; a 64-bit one is rounded.
    pub fn get_f32(&self, key: &str) -> Option<f32> {
        let entry = self
            .get(key)
            .filter(|entry| matches!(entry.ty, ValueType::F32 | ValueType::F64))?;
        match entry.value() {
            Value::F32(value) => Some(value),
            Value::F64(value) => Some(value as f32),
            _ => None,
        }
    }

    /// Returns a string that is UTF-8.
    pub fn get_str(&self, key: &str) -> Option<&str> {
        std::str::from_utf8(self.get_bytes(key)?).ok()
    }

    /// Returns a string's bytes.
    pub fn get_bytes(&self, key: &str) -> Option<&[u8]> {
        self.get(key)?.bytes()
    }

    /// Returns how many elements an array has.
    pub fn get_array_len(&self, key: &str) -> Option<u64> {
        Some(self.get(key)?.array()?.1)
    }

    /// Returns the strings of an array of strings.
    pub fn get_string_array(&self, key: &str) -> Option<StringArray<'_>> {
        let entry = self.get(key)?;
        let (ty, left) = entry.array()?;
        let bytes = entry.raw.get(12..).filter(|_| ty == ValueType::String)?;
        Some(StringArray { bytes, left })
    }

    /// Returns the integers of an array of any integer type.
    pub fn get_i64_array(&self, key: &str) -> Option<Vec<i64>> {
        let entry = self
            .get(key)
            .filter(|entry| entry.array().is_some_and(|(ty, _)| ty.size().is_some()))?;
        let Value::Array(_, values) = entry.value() else {
            return None;
        };
        let integer = |value| match value {
            Value::U8(value) => Some(value.into()),
            Value::I8(value) => Some(value.into()),
            Value::U16(value) => Some(value.into()),
            Value::I16(value) => Some(value.into()),
            Value::U32(value) => Some(value.into()),
            Value::I32(value) => Some(value.into()),
            Value::U64(value) => i64::try_from(value).ok(),
            Value::I64(value) => Some(value),
            _ => None,
        };
        values.into_iter().map(integer).collect()
    }
}

/// The entries of [`Metadata`], in order.
pub type Entries<'a> = indexmap::map::Values<'a, String, Entry>;

impl<'a> IntoIterator for &'a Metadata {
    type Item = &'a Entry;
    type IntoIter = Entries<'a>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// The strings of an array: bytes, since tokens may be cut inside a character.
#[derive(Debug, Clone)]
pub struct StringArray<'a> {
    bytes: &'a [u8],
    left: u64,
}

impl<'a> Iterator for StringArray<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.left = self.left.checked_sub(1)?;
        let (length, rest) = self.bytes.split_first_chunk::<8>()?;
        let (string, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        self.bytes = rest;
        Some(string)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        (left.min(self.bytes.len() / 8), Some(left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Metadata {
        let mut metadata = Metadata::new();
        metadata.set("a.u8", &Value::U8(200)).unwrap();
        metadata.set("a.i64", &Value::I64(-3)).unwrap();
        metadata.set("a.text", &"héllo".into()).unwrap();
        metadata
            .set("a.tokens", &Value::strings([&b"a\xff"[..], b"", b"ccc"]))
            .unwrap();
        metadata
            .set("a.floats", &Value::Array(ValueType::F32, vec![Value::F32(0.5)]))
            .unwrap();
        metadata
            .set(
                "a.ids",
                &Value::Array(ValueType::I16, vec![Value::I16(-1), Value::I16(7)]),
            )
            .unwrap();
        metadata.set("a.flag", &true.into()).unwrap();
        metadata
    }

    #[test]
    fn typed_getters_widen_integers_and_refuse_the_rest() {
        let metadata = sample();
        assert_eq!(metadata.get_u32("a.u8"), Some(200));
        assert_eq!(metadata.get_u64("a.i64"), None);
        assert_eq!(metadata.get_i64("a.i64"), Some(-3));
        assert_eq!(metadata.get_str("a.text"), Some("héllo"));
        assert_eq!(metadata.get_u32("a.text"), None);
        assert_eq!(metadata.get_f32("a.u8"), None);
        assert_eq!(metadata.get_bool("a.flag"), Some(true));
        assert_eq!(metadata.get_bool("a.u8"), None);
        assert_eq!(metadata.get_array_len("a.tokens"), Some(3));
        assert_eq!(metadata.get_array_len("a.text"), None);
        let tokens: Vec<_> = metadata.get_string_array("a.tokens").unwrap().collect();
        assert_eq!(tokens, [&b"a\xff"[..], b"", b"ccc"]);
        assert!(metadata.get_string_array("a.floats").is_none());
        assert_eq!(metadata.get_i64_array("a.ids").unwrap(), [-1, 7]);
        assert_eq!(metadata.get_i64_array("a.floats"), None);
        assert_eq!(metadata.get_i64_array("a.tokens"), None);
    }

    #[test]
    fn setting_keeps_the_place_and_removing_the_order() {
        let mut metadata = sample();
        metadata.set("a.i64", &Value::U32(5)).unwrap();
        metadata.set("a.new", &Value::U32(6)).unwrap();
        assert!(metadata.remove("a.text").is_some());
        assert!(metadata.remove("a.text").is_none());
        let keys: Vec<_> = metadata.iter().map(Entry::key).collect();
        assert_eq!(
            keys,
            ["a.u8", "a.i64", "a.tokens", "a.floats", "a.ids", "a.flag", "a.new"]
        );
        assert_eq!(metadata.get_u32("a.i64"), Some(5));
        metadata.remove_prefix("a.");
        assert!(metadata.is_empty());
    }

    #[test]
    fn values_survive_encoding_and_bad_ones_are_refused() {
        for entry in &sample() {
            assert_eq!(Entry::new(entry.key(), &entry.value()).unwrap(), *entry);
        }
        let mixed = Value::Array(ValueType::U8, vec![Value::U8(1), Value::I8(1)]);
        let error = Entry::new("k", &mixed).unwrap_err();
        assert_eq!(error.to_string(), "key `k`: the array is of type u8 but holds a i8");
        let nested = Value::Array(ValueType::Array, vec![]);
        assert_eq!(Entry::new("k", &nested).unwrap_err().problem, Problem::NestedArray);
        assert_eq!(Entry::new("", &Value::U8(1)).unwrap_err().problem, Problem::NameEmpty);
        assert_eq!(
            Entry::new("a\0b", &Value::U8(1)).unwrap_err().problem,
            Problem::NameZero
        );
    }

    #[test]
    fn long_values_are_shown_short() {
        let many = Value::Array(ValueType::U8, (0..9).map(Value::U8).collect());
        assert_eq!(many.to_string(), "[0, 1, 2, 3, 4, 5, … 9 of u8]");
        assert_eq!(Value::from("a\nb").to_string(), "\"a\\nb\"");
        assert_eq!(
            Value::from("x".repeat(81).as_str()).to_string(),
            format!("\"{}…\"", "x".repeat(80))
        );
    }
}
