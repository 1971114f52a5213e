//! The most that a candidate's file may have.

use serde::Deserialize;
use serde::Serialize;

use crate::policy;
use crate::policy::ModelFacts;
use crate::quantity::Quantity;
use crate::syntax::error::RecipeError;
use crate::syntax::field::Field;
use crate::syntax::field::Reader;
use crate::syntax::id::Place;
use crate::syntax::id::SourceName;
use crate::syntax::id::StepId;
use crate::syntax::raw::RawValue;
use crate::syntax::sweep::Sweep;
use crate::vocab::role;
use crate::vocab::role::Role;
use crate::vocab::role::field;

/// The most that a candidate's file may have, as a recipe has it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Budget {
    /// Bytes, or bits per weight of the whole file.
    Quantity(Quantity),
    /// The bytes of another candidate.
    Candidate(Box<SizeOf>),
}

/// A candidate whose length another one keeps to: it follows from its types and its header, so that it is known before it is
/// quantized.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SizeOf {
    /// The candidate, a `promote` step.
    pub candidate: StepId,
    /// Its policy.
    #[serde(skip)]
    pub policy: StepId,
    /// The model that it is made from.
    #[serde(skip)]
    pub model: SourceName,
    /// The importance data that its header speaks of.
    #[serde(skip)]
    pub join: Option<StepId>,
}

/// The most that a file may have, as documents have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "unit", rename_all = "kebab-case")]
pub enum BudgetDocument {
    /// Bytes of the file.
    Bytes {
        /// How many.
        number: u64,
    },
    /// Bits per weight of the whole file, in millionths.
    MillionthsOfBits {
        /// How many.
        number: u64,
    },
}

impl BudgetDocument {
    pub(super) const ROLE: Role = Role::OneOf {
        tag: "unit",
        variants: &[
            ("bytes", &[field("number", Role::Setting)]),
            ("millionths-of-bits", &[field("number", Role::Setting)]),
        ],
    };

    /// Returns the field of a document that has it.
    pub(super) const fn field() -> role::Field {
        field("budget", Self::ROLE)
    }

    /// Returns the bytes of the file for a model.
    pub fn bytes(self, facts: &ModelFacts) -> u64 {
        let elements = facts
            .tensors
            .iter()
            .map(|tensor| tensor.dims.iter().product::<u64>())
            .sum();
        match self {
            Self::Bytes { number } => policy::Budget::Bytes(number),
            Self::MillionthsOfBits { number } => policy::Budget::MillionthsOfBits(number),
        }
        .bytes(elements)
    }
}

/// A budget as it is written.
#[derive(Debug, Clone)]
pub(crate) enum WrittenBudget {
    Quantity(Quantity),
    /// As much as another candidate has: all those of a `promote` section, or the one of this name, which stands there.
    Candidate(String, Place),
}

impl PartialEq for WrittenBudget {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Quantity(quantity), Self::Quantity(other)) => quantity == other,
            (Self::Candidate(name, _), Self::Candidate(other, _)) => name == other,
            _ => false,
        }
    }
}

impl WrittenBudget {
    /// Returns it as the resolved recipe has it.
    pub(super) fn to_toml(&self) -> toml::Value {
        match self {
            Self::Quantity(quantity) => toml::Value::from(quantity.to_string()),
            Self::Candidate(name, _) => {
                let candidate = ("candidate".to_owned(), toml::Value::from(name.as_str()));
                toml::Value::Table(toml::Table::from_iter([candidate]))
            }
        }
    }
}

const BUDGET: &str = "a size (`5700 MiB`), bits per weight (`4.5 bpw`) or `{ candidate = \"NAME\" }`";

/// Reads what a file may have at most: one budget, or several that make a sweep.
pub(super) fn read(reader: &mut Reader<'_, '_>, example: &'static str) -> Option<Sweep<WrittenBudget>> {
    reader.need("budget", example);
    // A table may have several errors, and a value of a sweep gives one: the others are gathered apart.
    let mut more = Vec::new();
    let budgets = reader.sweep(
        "budget",
        |budget: &WrittenBudget| budget.to_toml().to_string(),
        |field| match &field.raw.value {
            RawValue::Table(entries) => {
                let mut errors = Vec::new();
                let mut table = Reader::new("a budget".to_owned(), field.place(), ("", ""), entries, &mut errors);
                let name = table.required("candidate", "candidate = \"small-Q4_K_M\"", |field| {
                    Ok((field.string("the name of a candidate")?.to_owned(), field.place()))
                });
                let fine = table.finish().is_some();
                match (name.filter(|_| fine), errors.is_empty()) {
                    (Some((name, place)), _) => Ok(WrittenBudget::Candidate(name, place)),
                    (None, true) => Err(field.wrong_type(BUDGET)),
                    (None, false) => {
                        let first = errors.remove(0);
                        more.append(&mut errors);
                        Err(first)
                    }
                }
            }
            RawValue::String(_) => quantity(field).map(WrittenBudget::Quantity),
            _ => Err(field.wrong_type(BUDGET)),
        },
    );
    reader.errors.append(&mut more);
    budgets
}

fn quantity(field: Field<'_>) -> Result<Quantity, RecipeError> {
    const QUANTITY: &str = "a size (`5700 MiB`) or bits per weight (`4.5 bpw`)";
    match field.quantity(QUANTITY, "4.5 bpw")? {
        Quantity::Percent(percent) => Err(RecipeError::OutOfRange {
            place: field.place(),
            key: field.key.to_owned(),
            expected: QUANTITY.to_owned(),
            found: Quantity::Percent(percent).to_string(),
        }),
        quantity => Ok(quantity),
    }
}
