//! What is allowed in a recipe and likely not meant.

use std::collections::BTreeSet;

use crate::recipe::model::Place;
use crate::recipe::model::Recipe;
use crate::recipe::model::SourceName;
use crate::recipe::model::StepKind;

/// Something in a recipe that is allowed and likely not meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecipeWarning {
    /// Nothing uses a section.
    #[error("nothing uses {what} `{name}`")]
    Unused {
        /// The section's name.
        place: Place,
        /// "the corpus".
        what: String,
        /// Its name.
        name: String,
        /// What would use it.
        user: &'static str,
    },
}

impl RecipeWarning {
    /// Returns the stable word for this kind of warning.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Unused { .. } => "unused",
        }
    }

    /// Returns the place that the warning is about.
    pub const fn place(&self) -> &Place {
        match self {
            Self::Unused { place, .. } => place,
        }
    }
}

/// Returns the warnings of a recipe, unsorted.
pub(crate) fn warnings(recipe: &Recipe) -> Vec<RecipeWarning> {
    unused(recipe)
}

fn unused(recipe: &Recipe) -> Vec<RecipeWarning> {
    let used: BTreeSet<(StepKind, &str)> = recipe
        .steps
        .iter()
        .flat_map(|step| step.body.inputs())
        .map(|id| (id.kind, id.name.as_str()))
        .collect();
    let sources: BTreeSet<&SourceName> = recipe.steps.iter().flat_map(|step| step.body.sources()).collect();
    let mut warnings = Vec::new();
    for source in recipe.sources.values().filter(|source| !sources.contains(&source.name)) {
        warnings.push(RecipeWarning::Unused {
            place: source.origin.clone(),
            what: "the source".to_owned(),
            name: source.name.to_string(),
            user: "a section that reads it",
        });
    }
    let mut seen = BTreeSet::new();
    for step in &recipe.steps {
        let id = &step.id;
        let means = matches!(
            id.kind,
            StepKind::Corpus | StepKind::Moments | StepKind::Imatrix | StepKind::Join | StepKind::Policy
        );
        if means && !used.contains(&(id.kind, id.name.as_str())) && seen.insert((id.kind, id.name.as_str())) {
            warnings.push(RecipeWarning::Unused {
                place: step.origin.clone(),
                what: format!("the {}", id.kind),
                name: id.name.clone(),
                user: user_of(id.kind),
            });
        }
    }
    warnings
}

/// Returns "a `policy` section" for a kind of step.
fn user_of(kind: StepKind) -> &'static str {
    match kind {
        StepKind::Corpus => "an `imatrix`, `moments`, `policy` or `eval` section",
        StepKind::Moments => "an `imatrix` or `policy` section",
        StepKind::Imatrix | StepKind::Join => "a `policy` section",
        StepKind::Policy => "a `promote` section",
        StepKind::Promote | StepKind::Eval | StepKind::Metrics | StepKind::Gate => "a `gate` section",
    }
}
