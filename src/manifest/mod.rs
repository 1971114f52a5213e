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
pub struct RunDetails {
    /// Who did it.
    pub builder: Builder,
    /// When.
    pub metadata: RunMetadata,
}

/// Who did it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Builder {
    /// forge.
    pub id: String,
    /// Versions by name.
    pub version: BTreeMap<String, String>,
}

/// When it was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// An action in a manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ActionRecord {
    /// The step that it belongs to; nothing for a part of one.
    pub step: Option<String>,
    /// Its document.
    pub document: Value,
    /// Its outputs.
    pub outputs: BTreeMap<String, String>,
    /// How long it took when it ran, in milliseconds.
    pub cost_ms: u64,
    /// Whether it ran in this build.
    pub ran: bool,
}

/// A tensor in a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

impl Manifest {
    /// Returns the file's bytes.
    pub fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}
