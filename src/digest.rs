//! Digests as types. A blob's digest is the plain BLAKE3 of its bytes (`b3sum` agrees) with their length; an action's
//! is BLAKE3 in key-derivation mode over its canonical document, so that no file can ever be mistaken for an action.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// 32 bytes of BLAKE3, printed as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash([u8; 32]);

impl Hash {
    /// Hashes `bytes` with plain BLAKE3.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Wraps 32 bytes that already are a BLAKE3 hash.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the first eight hexadecimal digits, for prose.
    pub fn short(&self) -> String {
        self.to_string()[..8].to_owned()
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a digest")]
pub struct ParseDigestError(String);

impl FromStr for Hash {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let hash = if lower { blake3::Hash::from_hex(text).ok() } else { None };
        hash.map(|hash| Self(*hash.as_bytes()))
            .ok_or_else(|| ParseDigestError(text.to_owned()))
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// The identity of some bytes: their BLAKE3 and how many they are. Written `<64 hex>:<length>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobDigest {
    /// Plain BLAKE3 of the bytes.
    pub hash: self::Hash,
    /// How many bytes there are.
    pub len: u64,
}

impl BlobDigest {
    /// Digests bytes in memory.
    pub fn of(bytes: &[u8]) -> Self {
        Self {
            hash: self::Hash::of(bytes),
            len: bytes.len() as u64,
        }
    }

    /// Digests large bytes in memory with all of rayon's threads.
    pub fn of_large(bytes: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update_rayon(bytes);
        Self {
            hash: self::Hash(*hasher.finalize().as_bytes()),
            len: bytes.len() as u64,
        }
    }

    /// Digests everything a reader yields, in pieces of bounded size.
    pub fn of_reader(reader: &mut dyn Read) -> io::Result<Self> {
        let mut writer = DigestWriter::new(io::sink());
        io::copy(reader, &mut writer)?;
        Ok(writer.finish().1)
    }
}

impl fmt::Display for BlobDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.hash, self.len)
    }
}

impl fmt::Debug for BlobDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for BlobDigest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseDigestError(text.to_owned());
        let (hash, len) = text.split_once(':').ok_or_else(error)?;
        let hash = hash.parse().map_err(|_| error())?;
        let plain = !len.is_empty() && len.bytes().all(|b| b.is_ascii_digit()) && (len == "0" || !len.starts_with('0'));
        let len = if plain { len.parse().ok() } else { None };
        Ok(Self {
            hash,
            len: len.ok_or_else(error)?,
        })
    }
}

impl Serialize for BlobDigest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BlobDigest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// Passes bytes on to a writer and digests them on the way.
#[derive(Debug)]
pub struct DigestWriter<W> {
    inner: W,
    hasher: blake3::Hasher,
    len: u64,
}

impl<W: Write> DigestWriter<W> {
    /// Starts a digest of what will be written to `inner`.
    pub fn new(inner: W) -> Self {
        Self {
            inner,
            hasher: blake3::Hasher::new(),
            len: 0,
        }
    }

    /// Returns how many bytes were written so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns true if nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the inner writer and the digest of all that passed.
    pub fn finish(self) -> (W, BlobDigest) {
        let digest = BlobDigest {
            hash: self::Hash(*self.hasher.finalize().as_bytes()),
            len: self.len,
        };
        (self.inner, digest)
    }
}

impl<W: Write> Write for DigestWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

macro_rules! derived_digest {
    ($(#[$doc:meta])* $name:ident, $context:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(self::Hash);

        impl $name {
            /// The BLAKE3 key-derivation context that keeps this kind of digest apart from every other.
            pub const CONTEXT: &'static str = $context;

            /// Digests a canonical document.
            pub fn of(document: &[u8]) -> Self {
                Self(self::Hash::from_bytes(blake3::derive_key(Self::CONTEXT, document)))
            }

            /// Wraps a hash that is one of these already, as the name of a file says.
            pub const fn from_hash(hash: self::Hash) -> Self {
                Self(hash)
            }

            /// Returns the hash itself.
            pub fn hash(&self) -> &self::Hash {
                &self.0
            }

            /// Returns the first eight hexadecimal digits, for prose.
            pub fn short(&self) -> String {
                self.0.short()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseDigestError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

derived_digest!(
    /// The key of an action: BLAKE3 of its canonical document under its own context.
    ActionDigest, "forge 2026-11 action v1"
);
derived_digest!(
    /// The identity of an engine: BLAKE3 of its identity document under its own context.
    Fingerprint, "forge 2026-11 engine fingerprint v1"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_digest_is_what_b3sum_prints() {
        // `printf abc | b3sum`
        let digest = BlobDigest::of(b"abc");
        assert_eq!(
            digest.to_string(),
            "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85:3"
        );
        assert_eq!(digest, BlobDigest::of_large(b"abc"));
        assert_eq!(digest, BlobDigest::of_reader(&mut &b"abc"[..]).unwrap());
        assert_eq!(digest.to_string().parse::<BlobDigest>().unwrap(), digest);
    }

    #[test]
    fn only_the_canonical_spelling_parses() {
        let good = BlobDigest::of(b"abc").to_string();
        for bad in [
            good.to_uppercase(),
            good.replace(":3", ":03"),
            good.replace(":3", ":+3"),
            good.replace(":3", ":"),
            good[1..].to_owned(),
        ] {
            assert!(bad.parse::<BlobDigest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_action_and_a_blob_of_the_same_bytes_differ() {
        assert_ne!(ActionDigest::of(b"abc").to_string(), Hash::of(b"abc").to_string());
        assert_ne!(
            ActionDigest::of(b"abc").to_string(),
            Fingerprint::of(b"abc").to_string()
        );
    }
}
