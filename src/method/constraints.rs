//! What bounds the choice of all methods that solve for losses.

use serde::Deserialize;
use serde::Serialize;

use super::device::Device;
use super::device::DeviceDocument;
use super::device::devices;
use super::device::put_devices;
use super::rules;
use super::rules::Rule;
use super::rules::RuleDocument;
use super::rules::RuleType;
use super::rules::documents_of;
use super::rules::put_rules;
use crate::policy::Fuse;
use crate::syntax::field::Field;
use crate::syntax::field::Reader;
use crate::syntax::shared::word_of;
use crate::tensor_type::TensorType;
use crate::vocab::role;
use crate::vocab::role::Role;
use crate::vocab::role::field;

/// What a recipe says about the types that tensors may have.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Constraints {
    /// The types to choose from, besides the type in the source.
    pub types: Vec<TensorType>,
    /// Which tensors get the same type.
    pub fuse: Vec<Fuse>,
    /// The least type of tensors; the first rule that matches counts.
    pub floors: Vec<Rule>,
    /// The largest type of tensors; the first rule that matches counts.
    pub ceilings: Vec<Rule>,
    /// Devices with limited memory.
    pub devices: Vec<Device>,
}

/// The same, as documents have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConstraintsDocument {
    /// The types to choose from, besides the type in the source.
    pub types: Vec<String>,
    /// Which tensors get the same type.
    pub fuse: Vec<Fuse>,
    /// The least type of tensors.
    pub floors: Vec<RuleDocument>,
    /// The largest type of tensors.
    pub ceilings: Vec<RuleDocument>,
    /// Patterns of tensors that keep the source's type.
    pub keep: Vec<String>,
    /// Devices with limited memory.
    pub devices: Vec<DeviceDocument>,
}

impl ConstraintsDocument {
    /// The fields, in the order of the struct.
    pub(super) const FIELDS: &'static [role::Field] = &[
        field("types", Role::Setting),
        field("fuse", Role::Setting),
        field("floors", RuleDocument::ROLE),
        field("ceilings", RuleDocument::ROLE),
        field("keep", Role::Setting),
        field("devices", DeviceDocument::ROLE),
    ];
}

/// What `fuse` can name.
const FUSES: &[&str] = &[
    Fuse::Attention.as_str(),
    Fuse::FeedForward.as_str(),
    Fuse::Experts.as_str(),
];

impl Constraints {
    /// Returns the document. `keep` are patterns of tensors that keep their types.
    pub fn document(&self, keep: Vec<String>) -> ConstraintsDocument {
        ConstraintsDocument {
            types: self.types.iter().map(|ty| ty.name().to_owned()).collect(),
            fuse: self.fuse.clone(),
            floors: documents_of(&self.floors),
            ceilings: documents_of(&self.ceilings),
            keep,
            devices: self.devices.iter().map(DeviceDocument::from).collect(),
        }
    }

    /// Reads them. `known` are the types that the method knows, which `what` describes; `usual` those that it chooses from if the
    /// recipe names none.
    pub(super) fn read(
        reader: &mut Reader<'_, '_>,
        what: &'static str,
        known: &[TensorType],
        usual: &[TensorType],
    ) -> Option<Self> {
        let types = if reader.has("types") {
            let types = reader.list("types", "a list of tensor types", |field| field.type_among(known, what));
            types.map(|types| types.into_iter().map(|(ty, _)| ty).collect())
        } else {
            Some(usual.to_vec())
        };
        let fuse = if reader.has("fuse") {
            let fuse = reader.list("fuse", "a list of rules", |field| {
                word_of(&field, "a rule that fuses", FUSES)
            });
            fuse.map(|fuse| fuse.into_iter().filter_map(|(name, _)| Fuse::from_name(name)).collect())
        } else {
            Some(Vec::new())
        };
        let plain = |field: Field<'_>| field.tensor_type().map(RuleType::Type);
        let (floors, ceilings) = (
            rules::read(reader, "floors", plain),
            rules::read(reader, "ceilings", plain),
        );
        let devices = devices(reader);
        Some(Self {
            types: types?,
            fuse: fuse?,
            floors: floors?,
            ceilings: ceilings?,
            devices: devices?,
        })
    }

    /// Notes them for the resolved recipe.
    pub(super) fn put(&self, reader: &mut Reader<'_, '_>) {
        let types = self.types.iter().map(|ty| toml::Value::from(ty.name()));
        reader.put("types", types.collect::<Vec<_>>());
        if !self.fuse.is_empty() {
            let fuse = self.fuse.iter().map(|rule| toml::Value::from(rule.as_str()));
            reader.put("fuse", fuse.collect::<Vec<_>>());
        }
        put_rules(reader, "floors", &self.floors);
        put_rules(reader, "ceilings", &self.ceilings);
        put_devices(reader, &self.devices);
    }
}
