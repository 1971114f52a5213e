//! Gives each tensor a type.

use serde::Deserialize;
use serde::Serialize;

use super::Document;
use super::output::Fact;
use super::output::Output;
use super::role::Field;
use super::role::Role::Input;
use super::role::Role::OneOf;
use super::role::Role::Version;
use super::role::field;
use super::role::output;
use crate::digest::BlobDigest;
use crate::method::MethodDocument;
use crate::vocab::inputs::SHAPES;

/// Gives each tensor a type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// The model's shape.
    pub shape: BlobDigest,
    /// Which tensors the imatrix covers, where there is one.
    pub coverage: Option<BlobDigest>,
    /// How types are chosen.
    pub method: MethodDocument,
    /// The version of the rules that are built in.
    pub rules: u32,
}

impl Policy {
    /// Output: the type of each tensor.
    pub const POLICY: Output = Output::new("policy");
    /// Output: the proof of how near to optimal the choice is; of methods that solve.
    pub const CERTIFICATE: Output = Output::new("certificate");
    /// How many bytes the tensors have.
    pub const BYTES: Fact<u64> = Fact::new("bytes");
    /// How many tensors change type.
    pub const QUANTIZED: Fact<u64> = Fact::new("quantized");
    /// How many tensors there are.
    pub const TENSORS: Fact<u64> = Fact::new("tensors");
    /// llama.cpp's number of the file type, or `keep`.
    pub const FILE_TYPE: Fact<String> = Fact::new("file_type");
    /// `optimal`, or `gap`.
    pub const PROVED: Fact<String> = Fact::new("proved");
}

impl Document for Policy {
    const KIND: &'static str = "policy";
    const FIELDS: &'static [Field] = &[
        field("shape", Input(SHAPES)),
        field("coverage", Input(&[output("join", "coverage")])),
        field(
            "method",
            OneOf {
                tag: "name",
                variants: MethodDocument::VARIANTS,
            },
        ),
        field("rules", Version),
    ];
    const OUTPUTS: &'static [&'static str] = &[Self::POLICY.as_str(), Self::CERTIFICATE.as_str()];
}
