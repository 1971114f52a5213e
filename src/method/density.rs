//! `method = "density"`: two types under a budget; the larger one where it gains most for its bytes.

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
use super::rules::kept;
use super::rules::type_of;
use super::section::PolicySection;
use crate::digest::BlobDigest;
use crate::policy;
use crate::syntax::error::RecipeError;
use crate::tensor_type::TensorType;
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
    /// The type of every tensor that can be quantized.
    pub base: TensorType,
    /// The larger type.
    pub promotion: TensorType,
    /// Whether tensors are promoted only together with the one whose type a runtime takes for them, too.
    pub anchors: bool,
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
    /// The type of every tensor that can be quantized.
    pub base: String,
    /// The larger type.
    pub promotion: String,
    /// Tensors are promoted only together with the one that they follow.
    pub anchors: bool,
    /// Patterns of tensors that keep the source's type.
    pub keep: Vec<String>,
}

impl PolicyMethod for Settings {
    const NAME: &'static str = "density";
    const KEYS: &'static [&'static str] = &["budget", "base", "promotion", "anchors"];
    type Document = Document;

    fn read(section: &mut PolicySection<'_, '_, '_>) -> Option<Open<Self>> {
        let because = section.method_place.clone();
        section.needs_imatrix(because.as_ref());
        let budget = section.budgets("budget = \"5.5 bpw\"");
        let mut type_name = |key, example| section.reader.required(key, example, |field| field.tensor_type());
        let base = type_name("base", "base = \"Q4_K\"");
        let promotion = type_name("promotion", "promotion = \"Q8_0\"");
        let anchors = section.switch("anchors");
        let (budget, base, promotion, anchors) = (budget?, base?, promotion?, anchors?);
        if promotion.bpw() <= base.bpw() {
            let place = section.place_of("promotion");
            let reader = &mut *section.reader;
            reader.errors.push(RecipeError::OutOfRange {
                place: place.unwrap_or_else(|| reader.head.clone()),
                key: "promotion".to_owned(),
                expected: format!("a type of more bits per weight than `base`, which is {}", base.name()),
                found: promotion.name().to_owned(),
            });
            return None;
        }
        let reader = &mut *section.reader;
        reader.put("budget", budget.to_toml(WrittenBudget::to_toml));
        reader.put("base", base.name());
        reader.put("promotion", promotion.name());
        reader.put("anchors", anchors);
        Some(Open::budgets(budget).map(move |budget| Self {
            budget,
            base,
            promotion,
            anchors,
        }))
    }

    fn document<I: Inputs>(&self, keep: Vec<String>, inputs: &I) -> Result<Document, I::Error> {
        Ok(Document {
            imatrix: inputs.needed_imatrix(Self::NAME)?,
            header: inputs.header()?,
            budget: inputs.budget(&self.budget)?,
            base: self.base.name().to_owned(),
            promotion: self.promotion.name().to_owned(),
            anchors: self.anchors,
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
        field("base", Setting),
        field("promotion", Setting),
        field("anchors", Setting),
        field("keep", Setting),
    ];

    fn choose<M: Material>(&self, material: &M) -> Result<Chosen, M::Error> {
        let keep = kept(&self.keep)?;
        let facts = material.facts();
        let options = policy::Density {
            base: type_of(&self.base)?,
            promotion: type_of(&self.promotion)?,
            budget: self.budget.bytes(facts),
            size: material.file_size(&self.header)?,
            anchors: self.anchors,
            keep: &keep,
        };
        let energies = material.covered_energies(self.imatrix)?;
        let table = policy::density(facts, &energies, &options).map_err(MethodError::from)?;
        Ok(Chosen::of(table))
    }
}
