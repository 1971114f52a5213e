//! `method = "prior"`: by losses that are guessed from roles, depth and types, solved exactly.

use serde::Deserialize;
use serde::Serialize;

use super::budget::Budget;
use super::budget::BudgetDocument;
use super::budget::WrittenBudget;
use super::constraints::Constraints;
use super::constraints::ConstraintsDocument;
use super::header::HeaderDocument;
use super::interface::Chosen;
use super::interface::Inputs;
use super::interface::Material;
use super::interface::PolicyDocument;
use super::interface::PolicyMethod;
use super::open::Open;
use super::section::PolicySection;
use super::solving::Solving;
use crate::allocation::DEFAULT_STATES;
use crate::policy;
use crate::vocab::role::Field;
use crate::vocab::role::Role::Setting;
use crate::vocab::role::Role::Version;
use crate::vocab::role::field;
use crate::vocab::role::fields;

/// The version of the solver and of guessed losses: raise it when either gives another answer.
const SOLVER: u32 = 2;

/// The settings of a recipe.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Settings {
    /// The most that the file may have.
    pub budget: Budget,
    /// What bounds the choice.
    #[serde(flatten)]
    pub constraints: Constraints,
}

/// The settings and inputs of an action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// What decides on the length of the file's header.
    pub header: HeaderDocument,
    /// The most that the file may have.
    pub budget: BudgetDocument,
    /// What bounds the choice.
    #[serde(flatten)]
    pub constraints: ConstraintsDocument,
    /// How many states the solver may make.
    pub states: u64,
    /// The version of the solver and of the losses.
    pub solver: u32,
}

impl PolicyMethod for Settings {
    const NAME: &'static str = "prior";
    const KEYS: &'static [&'static str] = &["budget", "types", "fuse", "floors", "ceilings", "device"];
    type Document = Document;

    fn read(section: &mut PolicySection<'_, '_, '_>) -> Option<Open<Self>> {
        let budget = section.budgets("budget = \"4.5 bpw\"");
        let reader = &mut *section.reader;
        let types: Vec<_> = policy::CURVE.iter().map(|(ty, _)| *ty).collect();
        let constraints = Constraints::read(reader, "a type that `prior` knows", &types, &types);
        let (budget, constraints) = (budget?, constraints?);
        reader.put("budget", budget.to_toml(WrittenBudget::to_toml));
        constraints.put(reader);
        Some(Open::budgets(budget).map(move |budget| Self {
            budget,
            constraints: constraints.clone(),
        }))
    }

    fn document<I: Inputs>(&self, keep: Vec<String>, inputs: &I) -> Result<Document, I::Error> {
        Ok(Document {
            header: inputs.header()?,
            budget: inputs.budget(&self.budget)?,
            constraints: self.constraints.document(keep),
            states: DEFAULT_STATES,
            solver: SOLVER,
        })
    }

    fn budget(&self) -> Option<&Budget> {
        Some(&self.budget)
    }
}

impl PolicyDocument for Document {
    const FIELDS: &'static [Field] = &fields::<10>(&[
        &[HeaderDocument::field(), BudgetDocument::field()],
        ConstraintsDocument::FIELDS,
        &[field("states", Setting), field("solver", Version)],
    ]);

    fn choose<M: Material>(&self, material: &M) -> Result<Chosen, M::Error> {
        let facts = material.facts();
        let solving = Solving::of(facts, material.has_imatrix(), &self.constraints)?;
        let losses = policy::prior(facts, &solving.groups, &solving.types);
        let devices = &self.constraints.devices;
        let limits = solving.limits(material, &self.header, self.budget, devices, self.states)?;
        solving.choose(material, &losses, &limits)
    }
}
