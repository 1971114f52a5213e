//! Where the files are that documents name by digest: the sources of a build, and the candidates that it has made.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;

use super::SourceFile;
use super::StepError;
use crate::action::ActionResult;
use crate::action::InspectModel;
use crate::digest::BlobDigest;

/// The files of a model, with the digests of the documents that describe it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocatedModel {
    /// The files, the first part first.
    pub files: Vec<SourceFile>,
    /// The document of the tensors and hyperparameters.
    pub compute: BlobDigest,
    /// The vocabulary.
    pub tokenizer: BlobDigest,
    /// The metadata that decide what the model computes.
    pub hyperparameters: BlobDigest,
    /// The place and digest of every tensor; known of sources only.
    pub index: Option<BlobDigest>,
}

/// A part of a file: its offset and length in bytes, and the digest of these bytes.
pub(super) type HashedRange = ((u64, u64), BlobDigest);

/// Files by digest, and models by the documents that describe them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Located {
    files: BTreeMap<BlobDigest, SourceFile>,
    models: Vec<LocatedModel>,
    /// The digests of parts of files that were hashed together with the file: where each begins, its length and its digest.
    #[serde(skip)]
    hashed: BTreeMap<BlobDigest, Vec<HashedRange>>,
}

impl Located {
    /// Adds a file.
    pub fn add_file(&mut self, file: SourceFile) {
        self.files.insert(file.digest, file);
    }

    /// Adds a file with the digests of parts of it: where each begins, its length and its digest.
    pub fn add_hashed(&mut self, file: SourceFile, parts: Vec<HashedRange>) {
        self.hashed.insert(file.digest, parts);
        self.add_file(file);
    }

    /// Returns the digests of parts of a file, if just these parts were hashed.
    pub fn digests(&self, file: &BlobDigest, parts: &[(u64, u64)]) -> Option<Vec<BlobDigest>> {
        let hashed = self.hashed.get(file)?;
        let same = hashed.iter().map(|(part, _)| part).eq(parts);
        same.then(|| hashed.iter().map(|(_, digest)| *digest).collect())
    }

    /// Adds the files of an action's result: those of a model together with what the result says of it.
    pub fn add(&mut self, result: &ActionResult, files: &[SourceFile]) {
        for file in files {
            self.add_file(file.clone());
        }
        let output = |name: crate::action::Output| result.output(name.as_str());
        if let (false, Some(compute), Some(tokenizer), Some(hyperparameters)) = (
            files.is_empty(),
            output(InspectModel::COMPUTE),
            output(InspectModel::TOKENIZER),
            output(InspectModel::HYPERPARAMETERS),
        ) {
            let model = LocatedModel {
                files: files.to_vec(),
                compute,
                tokenizer,
                hyperparameters,
                index: output(InspectModel::MODEL),
            };
            if !self.models.contains(&model) {
                self.models.push(model);
            }
        }
    }

    /// Returns all files.
    pub fn files(&self) -> impl Iterator<Item = &SourceFile> {
        self.files.values()
    }

    /// Returns the models.
    pub fn models(&self) -> &[LocatedModel] {
        &self.models
    }

    /// Returns the file with a digest.
    ///
    /// # Errors
    ///
    /// [`StepError::NotLocated`].
    pub fn file(&self, digest: &BlobDigest) -> Result<&SourceFile, StepError> {
        self.files.get(digest).ok_or(StepError::NotLocated {
            what: "file",
            digest: *digest,
        })
    }

    /// Returns the model that computes as a document says.
    ///
    /// # Errors
    ///
    /// [`StepError::NotLocated`].
    pub fn model(&self, compute: &BlobDigest) -> Result<&LocatedModel, StepError> {
        self.find("model", compute, |model| model.compute == *compute)
    }

    /// Returns a model with a vocabulary.
    ///
    /// # Errors
    ///
    /// [`StepError::NotLocated`].
    pub fn with_tokenizer(&self, tokenizer: &BlobDigest) -> Result<&LocatedModel, StepError> {
        self.find("model with the vocabulary", tokenizer, |model| {
            model.tokenizer == *tokenizer
        })
    }

    /// Returns the model whose tensors an index places.
    ///
    /// # Errors
    ///
    /// [`StepError::NotLocated`].
    pub fn with_index(&self, index: &BlobDigest) -> Result<&LocatedModel, StepError> {
        self.find("model with the index", index, |model| model.index == Some(*index))
    }

    fn find(
        &self,
        what: &'static str,
        digest: &BlobDigest,
        is_it: impl Fn(&LocatedModel) -> bool,
    ) -> Result<&LocatedModel, StepError> {
        let found = self.models.iter().find(|model| is_it(model));
        found.ok_or(StepError::NotLocated { what, digest: *digest })
    }
}
