//! `method = "ashq1"`: by importance, from floors up, until a budget is spent.

use serde::Deserialize;
use serde::Serialize;

use super::budget::Budget;
use super::budget::BudgetDocument;
use super::budget::WrittenBudget;
use super::header::HeaderDocument;
use super::interface::Chosen;
use super::interface::Inputs;
use super::interface::Material;
use super::interface::PolicyDocument;
use super::interface::PolicyMethod;
use super::open::Open;
use super::problem::MethodError;
use super::rules;
use super::rules::Rule;
use super::rules::RuleDocument;
use super::rules::RuleType;
use super::rules::documents_of;
use super::rules::kept;
use super::rules::put_rules;
use super::rules::rules_of;
use super::section::PolicySection;
use crate::digest::BlobDigest;
use crate::policy;
use crate::syntax::error::RecipeError;
use crate::syntax::field::Field as KeyField;
use crate::syntax::sweep::flag;
use crate::vocab::inputs::JOINED;
use crate::vocab::role::Field;
use crate::vocab::role::Role::Input;
use crate::vocab::role::Role::Setting;
use crate::vocab::role::field;

/// The settings of a recipe.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Settings {
    /// The most that the file may have.
    pub budget: Budget,
    /// Whether the first layer and the last ones count for more.
    pub depth: bool,
    /// Whether upgrades are taken that cost no bytes.
    pub free: bool,
    /// Whether the model was trained to be quantized.
    pub qat: bool,
    /// Other floors; the first that matches counts.
    pub floors: Vec<Rule>,
    /// Other ceilings; the first that matches counts.
    pub ceilings: Vec<Rule>,
}

/// The settings and inputs of an action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// The importances.
    pub imatrix: BlobDigest,
    /// What decides on the length of the file's header.
    pub header: HeaderDocument,
    /// The most that the file may have.
    pub budget: BudgetDocument,
    /// The first layer and the last ones count for more.
    pub depth: bool,
    /// Upgrades are taken that cost no bytes.
    pub free: bool,
    /// The model was trained to be quantized.
    pub qat: bool,
    /// Other floors.
    pub floors: Vec<RuleDocument>,
    /// Other ceilings.
    pub ceilings: Vec<RuleDocument>,
    /// Patterns of tensors that keep the source's type.
    pub keep: Vec<String>,
}

/// Reads a type that `ashq1` uses.
fn ladder_type(field: KeyField<'_>) -> Result<RuleType, RecipeError> {
    field
        .type_among(policy::ASHQ1_TYPES, "a type that `ashq1` uses")
        .map(RuleType::Type)
}

impl PolicyMethod for Settings {
    const NAME: &'static str = "ashq1";
    const KEYS: &'static [&'static str] = &["budget", "depth", "free", "qat", "floors", "ceilings"];
    type Document = Document;

    fn read(section: &mut PolicySection<'_, '_, '_>) -> Option<Open<Self>> {
        let because = section.method_place.clone();
        section.needs_imatrix(because.as_ref());
        let budget = section.budgets("budget = \"4.5 bpw\"");
        let (depth, free) = (section.switches("depth"), section.switches("free"));
        let qat = section.switch("qat");
        let reader = &mut *section.reader;
        let floors = rules::read(reader, "floors", ladder_type);
        let ceilings = rules::read(reader, "ceilings", ladder_type);
        let (budget, depth, free, qat) = (budget?, depth?, free?, qat?);
        reader.put("budget", budget.to_toml(WrittenBudget::to_toml));
        reader.put("depth", depth.to_toml(|value| toml::Value::from(*value)));
        reader.put("free", free.to_toml(|value| toml::Value::from(*value)));
        reader.put("qat", qat);
        let (floors, ceilings) = (floors?, ceilings?);
        put_rules(reader, "floors", &floors);
        put_rules(reader, "ceilings", &ceilings);
        let open = Open::budgets(budget)
            .and(Open::values(depth, flag("depth")))
            .and(Open::values(free, flag("free")));
        Some(open.map(move |((budget, depth), free)| Self {
            budget,
            depth,
            free,
            qat,
            floors: floors.clone(),
            ceilings: ceilings.clone(),
        }))
    }

    fn document<I: Inputs>(&self, keep: Vec<String>, inputs: &I) -> Result<Document, I::Error> {
        Ok(Document {
            imatrix: inputs.needed_imatrix(Self::NAME)?,
            header: inputs.header()?,
            budget: inputs.budget(&self.budget)?,
            depth: self.depth,
            free: self.free,
            qat: self.qat,
            floors: documents_of(&self.floors),
            ceilings: documents_of(&self.ceilings),
            keep,
        })
    }

    fn budget(&self) -> Option<&Budget> {
        Some(&self.budget)
    }
}

impl PolicyDocument for Document {
    const FIELDS: &'static [Field] = &[
        field("imatrix", Input(JOINED)),
        HeaderDocument::field(),
        BudgetDocument::field(),
        field("depth", Setting),
        field("free", Setting),
        field("qat", Setting),
        field("floors", RuleDocument::ROLE),
        field("ceilings", RuleDocument::ROLE),
        field("keep", Setting),
    ];

    fn choose<M: Material>(&self, material: &M) -> Result<Chosen, M::Error> {
        let (keep, floors, ceilings) = (kept(&self.keep)?, rules_of(&self.floors)?, rules_of(&self.ceilings)?);
        let facts = material.facts();
        let options = policy::Ashq1 {
            budget: self.budget.bytes(facts),
            size: material.file_size(&self.header)?,
            depth: self.depth,
            free: self.free,
            qat: self.qat,
            keep: &keep,
            floors: &floors,
            ceilings: &ceilings,
        };
        let energies = material.covered_energies(self.imatrix)?;
        let table = policy::ashq1(facts, &energies, &options).map_err(MethodError::from)?;
        Ok(Chosen::of(table))
    }
}
