//! Signs manifests.

use std::path::Path;
use std::path::PathBuf;

use crate::fs;
use crate::manifest::Manifest;
use crate::manifest::ManifestError;
use crate::sign::Envelope;
use crate::sign::EnvelopeError;
use crate::sign::PublicKey;
use crate::sign::SecretKey;
use crate::verify;
use crate::verify::Target;

/// Why a manifest could not be signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// A file.
    #[error(transparent)]
    Path(#[from] fs::PathError),
    /// What is to be signed is no manifest.
    #[error("`{}`: {source}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: ManifestError,
    },
    /// The file of signatures contains something else.
    #[error("`{}`: {source}", path.display())]
    Envelope {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: EnvelopeError,
    },
}

/// What became of a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signing {
    /// It was made.
    New,
    /// It was added to those of other keys.
    Added,
    /// It was made, and replaced signatures of earlier bytes.
    Replaced,
    /// It was there already.
    Unchanged,
}

/// Signs the exact bytes of a manifest: the envelope goes next to it. Signatures of other keys over the same bytes stay; those over
/// other bytes are outdated and are removed. Returns where the envelope is.
pub fn sign_manifest(target: &Target, key: &SecretKey) -> Result<(PathBuf, Signing), SignError> {
    let bytes = verify::read_manifest(&target.manifest)?;
    Manifest::parse(&bytes).map_err(|source| SignError::Manifest {
        path: target.manifest.clone(),
        source,
    })?;
    let path = target.signatures();
    let there = verify::read_signatures(&path)?;
    let there = there.map(|there| Envelope::parse(&there)).transpose();
    let there = there.map_err(|source| SignError::Envelope {
        path: path.clone(),
        source,
    })?;
    let (envelope, signing) = match there {
        Some(envelope) if envelope.is_of(&bytes) => {
            if envelope.problems(&bytes, std::slice::from_ref(key.public())).is_empty() {
                return Ok((path, Signing::Unchanged));
            }
            let mut envelope = envelope;
            envelope.add(&bytes, key);
            (envelope, Signing::Added)
        }
        Some(_) => (Envelope::sign(&bytes, key), Signing::Replaced),
        None => (Envelope::sign(&bytes, key), Signing::New),
    };
    write(&path, &envelope)?;
    Ok((path, signing))
}

fn write(path: &Path, envelope: &Envelope) -> Result<(), fs::PathError> {
    fs::write_atomic(path, &envelope.to_bytes(), fs::Durability::Synced)
}

/// Says whether a manifest is signed well by a key, without writing anything.
pub fn is_signed(target: &Target, key: &PublicKey) -> bool {
    let (Ok(bytes), Ok(Some(there))) = (
        verify::read_manifest(&target.manifest),
        verify::read_signatures(&target.signatures()),
    ) else {
        return false;
    };
    Envelope::parse(&there).is_ok_and(|envelope| envelope.problems(&bytes, std::slice::from_ref(key)).is_empty())
}
