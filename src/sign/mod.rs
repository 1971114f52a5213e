//! Signatures of manifests: Ed25519 over a DSSE envelope that holds the manifest's very bytes.
//!
//! Sources: <https://github.com/secure-systems-lab/dsse/blob/master/envelope.md> and `protocol.md` there; RFC 8032
//! (Ed25519); RFC 8410 (its keys in PKCS#8 and SubjectPublicKeyInfo); OpenSSH's `PROTOCOL.key`.

mod bundle;
mod envelope;
mod key;

pub use bundle::Bundle;
pub use bundle::MEDIA_TYPE;
pub use envelope::Envelope;
pub use envelope::EnvelopeError;
pub use envelope::EnvelopeProblem;
pub use envelope::PAYLOAD_TYPE;
pub use envelope::Signature;
pub use envelope::pae;
pub use key::KeyError;
pub use key::KeyId;
pub use key::PublicKey;
pub use key::SecretKey;

/// What is added to a manifest's name for the file with its signatures.
pub const SUFFIX: &str = ".sig.json";
