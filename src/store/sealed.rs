//! Sealed documents: small documents with a checksum. They have three lines: `forge-<kind> <version> <name>`, the document on one
//! line, and the BLAKE3 hash of the first two lines. The name binds a document to its path: a copy under another name is invalid.

use crate::digest::Hash;

/// The maximum size of a sealed document, in bytes.
pub(super) const CAP: u64 = 16 << 20;

/// Why a sealed document is invalid.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum SealError {
    /// Incomplete, changed, or of another name.
    Damaged,
    /// Intact, but of a newer version than this program reads.
    Newer(u64),
}

/// Seals a document. It must not contain line breaks (JSON from `serde_json` contains none).
pub(super) fn seal(kind: &str, version: u64, name: &str, document: &str) -> Vec<u8> {
    let body = format!("forge-{kind} {version} {name}\n{document}\n");
    let sum = Hash::of(body.as_bytes());
    format!("{body}{sum}\n").into_bytes()
}

/// Checks a sealed document of one version and returns what is in it.
pub(super) fn unseal<'a>(kind: &str, version: u64, name: &str, bytes: &'a [u8]) -> Result<&'a str, SealError> {
    match unseal_up_to(kind, version, name, bytes)? {
        (found, document) if found == version => Ok(document),
        _ => Err(SealError::Damaged),
    }
}

/// Checks a sealed document and returns its version and what is in it: `newest` or any older version.
pub(super) fn unseal_up_to<'a>(
    kind: &str,
    newest: u64,
    name: &str,
    bytes: &'a [u8],
) -> Result<(u64, &'a str), SealError> {
    // 64 digits and a line break.
    let at = bytes.len().checked_sub(65).ok_or(SealError::Damaged)?;
    let (body, sum) = bytes.split_at(at);
    if sum.last() != Some(&b'\n') || sum[..64] != *Hash::of(body).to_string().as_bytes() {
        return Err(SealError::Damaged);
    }
    let body = std::str::from_utf8(body).map_err(|_| SealError::Damaged)?;
    let (head, rest) = body.split_once('\n').ok_or(SealError::Damaged)?;
    let document = rest.strip_suffix('\n').ok_or(SealError::Damaged)?;
    let mut words = head.split(' ');
    let named = words.next().and_then(|word| word.strip_prefix("forge-")) == Some(kind);
    let found: u64 = words
        .next()
        .and_then(|word| word.parse().ok())
        .ok_or(SealError::Damaged)?;
    if named && found > newest {
        return Err(SealError::Newer(found));
    }
    let whole = named && found > 0 && words.next() == Some(name) && words.next().is_none();
    if whole && !document.contains('\n') {
        Ok((found, document))
    } else {
        Err(SealError::Damaged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_document_opens_under_its_own_name_only() {
        let sealed = seal("result", 1, "abc", r#"{"a":1}"#);
        assert_eq!(unseal("result", 1, "abc", &sealed), Ok(r#"{"a":1}"#));
        assert_eq!(unseal("result", 1, "abd", &sealed), Err(SealError::Damaged));
        assert_eq!(unseal("event", 1, "abc", &sealed), Err(SealError::Damaged));
        assert_eq!(
            unseal("result", 1, "abc", &seal("result", 3, "abc", "{}")),
            Err(SealError::Newer(3))
        );
        assert_eq!(
            unseal("result", 2, "abc", &sealed),
            Err(SealError::Damaged),
            "no older version is read as this one"
        );
        assert_eq!(unseal_up_to("result", 2, "abc", &sealed), Ok((1, r#"{"a":1}"#)));
        assert_eq!(
            unseal_up_to("result", 2, "abc", &seal("result", 0, "abc", "{}")),
            Err(SealError::Damaged)
        );
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_found() {
        let sealed = seal("result", 1, "abc", r#"{"a":1}"#);
        for at in 0..sealed.len() {
            assert_eq!(
                unseal("result", 1, "abc", &sealed[..at]),
                Err(SealError::Damaged),
                "torn at {at}"
            );
            for bit in 0..8 {
                let mut flipped = sealed.clone();
                flipped[at] ^= 1 << bit;
                assert_eq!(
                    unseal("result", 1, "abc", &flipped),
                    Err(SealError::Damaged),
                    "bit {bit} of byte {at}"
                );
            }
        }
        assert_eq!(
            unseal("result", 1, "abc", &vec![0; sealed.len()]),
            Err(SealError::Damaged),
            "zeros after a power cut"
        );
    }
}
