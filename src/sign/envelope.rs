//! DSSE envelopes: a payload, its type, and signatures over both.

use base64ct::Base64;
use base64ct::Encoding as _;
use serde::Deserialize;
use serde::Serialize;

use crate::sign::key::KeyId;
use crate::sign::key::PublicKey;
use crate::sign::key::SecretKey;

/// The type of an in-toto statement.
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

/// A payload with signatures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// The payload's bytes in base64.
    pub payload: String,
    /// What the payload is: [`PAYLOAD_TYPE`].
    #[serde(rename = "payloadType")]
    pub payload_type: String,
    /// At least one.
    pub signatures: Vec<Signature>,
}

/// A signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// Whose: a hint, which proves nothing. Other programs may leave it empty.
    #[serde(default)]
    pub keyid: String,
    /// 64 bytes in base64.
    pub sig: String,
}

/// A file that is no envelope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Not JSON of this form.
    #[error("it is not a DSSE envelope: {0}")]
    Malformed(String),
}

/// What is wrong with an envelope as the signature of a payload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeProblem {
    /// The payload differs from the manifest.
    #[error("it signs bytes other than the manifest's{}", at.map(|at| format!(": they differ from byte {at} on")).unwrap_or_default())]
    Payload {
        /// The first byte that differs, where both are readable.
        at: Option<u64>,
    },
    /// The payload has another type.
    #[error("its payloadType is `{found}`, not `{PAYLOAD_TYPE}`")]
    Type {
        /// The type.
        found: String,
    },
    /// Nobody signed.
    #[error("it contains no signature")]
    Empty,
    /// A key that must have signed has not, or the signature with its name is invalid.
    #[error("{}", match named { true => format!("the signature by key {} is invalid", key.short()), false => format!("key {} has not signed it", key.short()) })]
    Key {
        /// The key.
        key: KeyId,
        /// Whether a signature has the key's name.
        named: bool,
    },
    /// A valid signature has the name of another key.
    #[error("the signature by key {} has the key ID `{found}`", key.short())]
    Name {
        /// The key.
        key: KeyId,
        /// The name.
        found: String,
    },
}

/// Returns what is signed: DSSE's pre-authentication encoding, `DSSEv1 <length> <type> <length> <payload>`.
pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

impl Envelope {
    /// Signs a payload.
    pub fn sign(payload: &[u8], key: &SecretKey) -> Self {
        let mut envelope = Self {
            payload: Base64::encode_string(payload),
            payload_type: PAYLOAD_TYPE.to_owned(),
            signatures: Vec::new(),
        };
        envelope.add(payload, key);
        envelope
    }

    /// Adds a key's signature, in place of an earlier one of the same key.
    pub fn add(&mut self, payload: &[u8], key: &SecretKey) {
        let keyid = key.public().id().to_string();
        let sig = Base64::encode_string(&key.sign(&pae(PAYLOAD_TYPE, payload)));
        self.signatures.retain(|signature| signature.keyid != keyid);
        self.signatures.push(Signature { keyid, sig });
    }

    /// Reads an envelope. White space around it is allowed; fields that DSSE does not have are not.
    pub fn parse(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        serde_json::from_slice(bytes).map_err(|error| {
            // The message may quote the untrusted file at any length.
            let cut = error.to_string().chars().take(300).collect();
            EnvelopeError::Malformed(cut)
        })
    }

    /// Returns the file's bytes: on one line that does not end, so that no byte of it could be another.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Strings always serialize.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Returns the payload, if it is base64.
    pub fn payload(&self) -> Option<Vec<u8>> {
        Base64::decode_vec(&self.payload).ok()
    }

    /// Says whether the payload and its type are those, with any signature.
    pub fn is_of(&self, payload: &[u8]) -> bool {
        self.payload_type == PAYLOAD_TYPE && self.payload().as_deref() == Some(payload)
    }

    /// Compares the envelope with the payload that it should sign, and verifies the signatures of all keys that must have signed
    /// it. Returns all problems.
    pub fn problems(&self, payload: &[u8], keys: &[PublicKey]) -> Vec<EnvelopeProblem> {
        let mut problems = Vec::new();
        let held = self.payload();
        if held.as_deref() != Some(payload) {
            let at = held.as_deref().map(|held| first_difference(held, payload));
            problems.push(EnvelopeProblem::Payload { at });
        }
        if self.payload_type != PAYLOAD_TYPE {
            problems.push(EnvelopeProblem::Type {
                found: self.payload_type.chars().take(100).collect(),
            });
        }
        if self.signatures.is_empty() {
            problems.push(EnvelopeProblem::Empty);
        }
        // What was signed is what is held: a manifest that was changed is said above, and its signature may be good.
        let signed = pae(&self.payload_type, held.as_deref().unwrap_or(payload));
        for key in keys {
            let good = self.signatures.iter().find(|signature| {
                Base64::decode_vec(&signature.sig).is_ok_and(|signature| key.verifies(&signed, &signature))
            });
            let id = key.id();
            match good {
                None => problems.push(EnvelopeProblem::Key {
                    key: id.clone(),
                    named: self.signatures.iter().any(|signature| signature.keyid == id.as_str()),
                }),
                Some(signature) if !signature.keyid.is_empty() && signature.keyid != id.as_str() => {
                    problems.push(EnvelopeProblem::Name {
                        key: id.clone(),
                        found: signature.keyid.chars().take(100).collect(),
                    });
                }
                Some(_) => {}
            }
        }
        problems
    }
}

fn first_difference(a: &[u8], b: &[u8]) -> u64 {
    let common = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    common as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> SecretKey {
        SecretKey::from_bytes(&[byte; 32]).unwrap()
    }

    #[test]
    fn what_is_signed_is_encoded_as_dsse_says() {
        // The example of DSSE's protocol.md.
        assert_eq!(
            pae("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
        assert_eq!(pae("", b""), b"DSSEv1 0  0 ");
    }

    #[test]
    fn any_changed_byte_of_an_envelope_is_found() {
        let payload = b"{\"a\": 1}\n";
        let signer = key(1);
        let keys = [signer.public().clone()];
        let envelope = Envelope::sign(payload, &signer);
        assert_eq!(envelope.problems(payload, &keys), []);
        let bytes = envelope.to_bytes();
        assert_eq!(Envelope::parse(&bytes).unwrap(), envelope);
        for at in 0..bytes.len() {
            for byte in 0..=255 {
                let mut changed = bytes.clone();
                if changed[at] == byte {
                    continue;
                }
                changed[at] = byte;
                let found = Envelope::parse(&changed).map(|envelope| envelope.problems(payload, &keys));
                assert!(found != Ok(Vec::new()), "byte {at} became {byte}");
            }
        }
        for at in 0..payload.len() {
            let mut changed = payload.to_vec();
            changed[at] ^= 1;
            assert_eq!(
                envelope.problems(&changed, &keys),
                [EnvelopeProblem::Payload { at: Some(at as u64) }]
            );
        }
    }

    #[test]
    fn every_requested_key_must_have_signed() {
        let (first, second) = (key(1), key(2));
        let mut envelope = Envelope::sign(b"payload", &first);
        let missing = EnvelopeProblem::Key {
            key: second.public().id().clone(),
            named: false,
        };
        let keys = [first.public().clone(), second.public().clone()];
        assert_eq!(envelope.problems(b"payload", &keys), [missing]);
        envelope.add(b"payload", &second);
        envelope.add(b"payload", &first);
        assert_eq!(envelope.signatures.len(), 2, "a key signs once");
        assert_eq!(envelope.problems(b"payload", &keys), []);
        // An envelope of another program, which leaves names out.
        for signature in &mut envelope.signatures {
            signature.keyid.clear();
        }
        assert_eq!(envelope.problems(b"payload", &keys), []);
        envelope.signatures.clear();
        assert_eq!(envelope.problems(b"payload", &[]), [EnvelopeProblem::Empty]);
    }
}
