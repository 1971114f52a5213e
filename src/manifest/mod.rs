//! The record beside an output: what it is, how it came to be, and from what. An in-toto Statement (v1) whose predicate is
//! SLSA provenance (v1), so that existing verifiers can read it; all that forge knows beyond that stands under `forge`.
//!
//! Sources: <https://in-toto.io/Statement/v1>, <https://slsa.dev/provenance/v1>.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;

/// The version of the part that is forge's own.
pub const SCHEMA: &str = "forge.manifest.v1";
/// What the statement is.
pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// What the predicate is.
pub const PREDICATE_TYPE: &str = "https://slsa.dev/provenance/v1";
/// What kind of build made the subject: one of this schema's actions. A name, not an address.
pub const BUILD_TYPE: &str = "urn:forge:candidate:v1";
/// Who built it. A name, not an address.
pub const BUILDER_ID: &str = "urn:forge:builder:v1";

/// A manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`STATEMENT_TYPE`].
    #[serde(rename = "_type")]
    pub statement_type: String,
    /// The output.
    pub subject: Vec<Resource>,
    /// [`PREDICATE_TYPE`].
    #[serde(rename = "predicateType")]
    pub predicate_type: String,
    /// How it came to be.
    pub predicate: Predicate,
}

/// A file by name and digests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resource {
    /// Its name: a file name, never a path of a machine.
    pub name: String,
    /// Digests by algorithm.
    pub digest: BTreeMap<String, String>,
    /// What else is known of it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// SLSA provenance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Predicate {
    /// What was to be done.
    #[serde(rename = "buildDefinition")]
    pub build_definition: BuildDefinition,
    /// What was done.
    #[serde(rename = "runDetails")]
    pub run_details: RunDetails,
    /// What forge knows beyond that.
    pub forge: Forge,
}

/// What was to be done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildDefinition {
    /// [`BUILD_TYPE`].
    #[serde(rename = "buildType")]
    pub build_type: String,
    /// What the user asked for: the resolved recipe and the step.
    #[serde(rename = "externalParameters")]
    pub external_parameters: ExternalParameters,
    /// The sources.
    #[serde(rename = "resolvedDependencies")]
    pub resolved_dependencies: Vec<Resource>,
}

/// What the user asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalParameters {
    /// The resolved recipe.
    pub recipe: Value,
    /// The resolved recipe as a file, as `forge show` prints it.
    #[serde(rename = "recipeToml")]
    pub recipe_toml: String,
    /// The step that made the output.
    pub step: String,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunDetails {
    /// Who did it.
    pub builder: Builder,
    /// When.
    pub metadata: RunMetadata,
}

/// Who did it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Builder {
    /// forge.
    pub id: String,
    /// Versions by name.
    pub version: BTreeMap<String, String>,
}

/// When it was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunMetadata {
    /// The run, as its record in the store is named.
    #[serde(rename = "invocationId")]
    pub invocation_id: String,
    /// RFC 3339, UTC.
    #[serde(rename = "startedOn")]
    pub started_on: String,
    /// RFC 3339, UTC.
    #[serde(rename = "finishedOn")]
    pub finished_on: String,
}

/// What forge knows of an output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forge {
    /// [`SCHEMA`].
    pub schema: String,
    /// The exact command line.
    pub command: Vec<String>,
    /// The engines' identity documents, by fingerprint.
    pub engines: BTreeMap<String, Value>,
    /// The key of the action that made the output.
    pub action: String,
    /// That action and all its ancestors, by key, down to the sources.
    pub actions: BTreeMap<String, ActionRecord>,
    /// The candidate's tensors, in the file's order.
    pub tensors: Vec<TensorRecord>,
    /// Those of the actions that gave different results when they ran more than once; in most manifests none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nondeterminism: Vec<Nondeterminism>,
    /// The evaluations of the recipe whose text overlaps with text that the candidate was calibrated on. Their figures are not
    /// those of held-out text. The recipe allows them (`allow_overlap`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overlaps: Vec<Overlap>,
}

/// An evaluation whose text overlaps with text that the candidate was calibrated on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overlap {
    /// The name of the evaluation.
    pub eval: String,
    /// The corpus of the evaluation.
    pub corpus: String,
    /// The corpus that the candidate was calibrated on.
    pub calibration: String,
    /// The number of files of the evaluation that the other corpus has, too.
    pub same_files: u64,
    /// The share of the evaluation's text that stands in the other corpus, in thousandths.
    pub share: u32,
    /// The number of words of the longest common passage. Not counted where all files are the same.
    pub passage: Option<u64>,
}

/// An action of a manifest that gave two different results.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nondeterminism {
    /// The action's key.
    pub action: String,
    /// The outputs that the store keeps, and that the candidate is made of.
    pub kept: BTreeMap<String, String>,
    /// The outputs of the other time.
    pub differing: BTreeMap<String, String>,
}

/// An action in a manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActionRecord {
    /// The step that it belongs to; nothing for a part of one.
    pub step: Option<String>,
    /// Its document.
    pub document: Value,
    /// Its outputs.
    pub outputs: BTreeMap<String, String>,
    /// How long it took when it ran, in milliseconds; nothing if the store's record of it was gone.
    pub cost_ms: Option<u64>,
    /// Whether it ran in this build.
    pub ran: bool,
}

/// A tensor in a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorRecord {
    /// The name.
    pub name: String,
    /// The type.
    #[serde(rename = "type")]
    pub ty: String,
    /// The dimensions, the row length first.
    pub dims: Vec<u64>,
    /// Where its bytes begin in the file.
    pub start: u64,
    /// Its bytes.
    pub bytes: String,
    /// The action that quantized it; nothing where it is the source's.
    pub action: Option<String>,
}

/// No manifest is longer: one of a model of 3,000 tensors has about 5 MB.
pub const CAP: u64 = 64 << 20;

/// What a manifest's name ends with, after the output's name.
pub const SUFFIX: &str = ".manifest.json";

/// A file that is no manifest of this version.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or not of this form.
    #[error("it is not a manifest: {0}")]
    Malformed(String),
    /// Another program's statement, or one of another version.
    #[error("its {field} is `{found}`, and this version of forge reads `{expected}`")]
    Version {
        /// The field.
        field: &'static str,
        /// What stands there.
        found: String,
        /// What should.
        expected: &'static str,
    },
}

impl Manifest {
    /// Returns the file's bytes.
    pub fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads a manifest. Every field must be one that is known, and the statement one of this version; what the fields say
    /// is not checked (`verify` does that).
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| {
            // The message may quote the untrusted file at any length.
            let cut = error.to_string().chars().take(300).collect();
            ManifestError::Malformed(cut)
        })?;
        let definition = &manifest.predicate.build_definition;
        let versions = [
            ("`_type`", &manifest.statement_type, STATEMENT_TYPE),
            ("`predicateType`", &manifest.predicate_type, PREDICATE_TYPE),
            ("`buildType`", &definition.build_type, BUILD_TYPE),
            (
                "`runDetails.builder.id`",
                &manifest.predicate.run_details.builder.id,
                BUILDER_ID,
            ),
            ("`forge.schema`", &manifest.predicate.forge.schema, SCHEMA),
        ];
        for (field, found, expected) in versions {
            if found != expected {
                return Err(ManifestError::Version {
                    field,
                    // Untrusted text is not quoted at length.
                    found: found.chars().take(100).collect(),
                    expected,
                });
            }
        }
        Ok(manifest)
    }
}
