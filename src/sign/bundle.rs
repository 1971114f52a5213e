//! Envelopes in the forms in which other programs exchange them.

use serde::Serialize;

use crate::sign::envelope::Envelope;

/// The media type of a sigstore bundle.
pub const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

/// A sigstore bundle v0.3 of an envelope that a bare key signed: no certificate, no entry of a transparency log. The hint
/// is the key's id; whoever verifies must have the key already.
///
/// Source: `sigstore_bundle.proto` and `sigstore_common.proto` of <https://github.com/sigstore/protobuf-specs>.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Bundle {
    media_type: &'static str,
    verification_material: Material,
    dsse_envelope: Envelope,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Material {
    public_key: Hint,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Hint {
    hint: String,
}

impl Bundle {
    /// Bundles an envelope. A bundle holds exactly one signature: returns `None` for an envelope with none or several.
    pub fn of(envelope: &Envelope) -> Option<Self> {
        let [signature] = &envelope.signatures[..] else {
            return None;
        };
        Some(Self {
            media_type: MEDIA_TYPE,
            verification_material: Material {
                public_key: Hint {
                    hint: signature.keyid.clone(),
                },
            },
            dsse_envelope: envelope.clone(),
        })
    }

    /// Returns the bundle as JSON on one line, ended.
    pub fn to_line(&self) -> String {
        // Strings always serialize.
        serde_json::to_string(self).map_or_else(|_| String::new(), |line| line + "\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sign::key::SecretKey;

    #[test]
    fn a_bundle_has_the_fields_of_the_specification() {
        let key = SecretKey::from_bytes(&[3; 32]).unwrap();
        let mut envelope = Envelope::sign(b"{}", &key);
        let bundle: serde_json::Value = serde_json::from_str(&Bundle::of(&envelope).unwrap().to_line()).unwrap();
        assert_eq!(bundle["mediaType"], MEDIA_TYPE);
        assert_eq!(
            bundle["verificationMaterial"]["publicKey"]["hint"],
            key.public().id().as_str()
        );
        assert_eq!(bundle["dsseEnvelope"]["payload"], "e30=");
        assert_eq!(bundle["dsseEnvelope"]["payloadType"], "application/vnd.in-toto+json");
        assert_eq!(bundle["dsseEnvelope"]["signatures"].as_array().unwrap().len(), 1);
        envelope.add(b"{}", &SecretKey::from_bytes(&[4; 32]).unwrap());
        assert_eq!(Bundle::of(&envelope), None);
    }
}
