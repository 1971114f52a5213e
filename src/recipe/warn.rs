//! What is allowed in a recipe and likely not meant.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;

use crate::recipe::model::ImatrixStep;
use crate::recipe::model::Place;
use crate::recipe::model::Recipe;
use crate::recipe::model::SourceName;
use crate::recipe::model::Step;
use crate::recipe::model::StepBody;
use crate::recipe::model::StepId;
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
    /// Candidates are evaluated on the text that they were calibrated with, or that their types were chosen by.
    #[error("`eval.{eval}` uses the corpus `{corpus}`, which the {reader} of its candidates also uses")]
    EvalOnCalibration {
        /// The evaluation's name.
        place: Place,
        /// The evaluation.
        eval: String,
        /// The text.
        corpus: String,
        /// What else reads it: "imatrix" or "policy".
        reader: &'static str,
        /// Where the text is declared.
        declared: Place,
        /// The candidate whose figures look better than they are.
        candidate: String,
    },
}

impl RecipeWarning {
    /// Returns the stable word for this kind of warning.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Unused { .. } => "unused",
            Self::EvalOnCalibration { .. } => "eval-on-calibration",
        }
    }

    /// Returns the place that the warning is about.
    pub const fn place(&self) -> &Place {
        match self {
            Self::Unused { place, .. } | Self::EvalOnCalibration { place, .. } => place,
        }
    }
}

/// Steps by id.
type Steps<'r> = HashMap<&'r StepId, &'r Step>;

/// Returns the warnings of a recipe, unsorted.
pub(crate) fn warnings(recipe: &Recipe) -> Vec<RecipeWarning> {
    let mut warnings = unused(recipe);
    warnings.extend(evals_on_calibration(recipe));
    warnings
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
            StepKind::Corpus | StepKind::Imatrix | StepKind::Join | StepKind::Policy
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

fn evals_on_calibration(recipe: &Recipe) -> Vec<RecipeWarning> {
    let mut warnings = Vec::new();
    let steps: Steps<'_> = recipe.steps.iter().map(|step| (&step.id, step)).collect();
    // By candidate: every evaluation may include every candidate.
    let mut read: HashMap<&StepId, BTreeMap<&StepId, &'static str>> = HashMap::new();
    for step in &recipe.steps {
        let StepBody::Eval(eval) = &step.body else { continue };
        let overlap = eval.candidates.iter().find_map(|candidate| {
            let corpora = read.entry(candidate).or_insert_with(|| corpora(&steps, candidate));
            Some(candidate).zip(corpora.get(&eval.corpus).copied())
        });
        if let (Some((candidate, reader)), Some(corpus)) = (overlap, steps.get(&eval.corpus)) {
            warnings.push(RecipeWarning::EvalOnCalibration {
                place: step.origin.clone(),
                eval: step.id.name.clone(),
                corpus: eval.corpus.name.clone(),
                reader,
                declared: corpus.origin.clone(),
                candidate: candidate.label(),
            });
        }
    }
    warnings
}

/// Returns the texts that had a part in making a candidate, and what read them.
fn corpora<'r>(steps: &Steps<'r>, id: &'r StepId) -> BTreeMap<&'r StepId, &'static str> {
    let mut found = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut todo = vec![id];
    while let Some(id) = todo.pop() {
        let Some(step) = steps.get(id).filter(|_| seen.insert(id)) else {
            continue;
        };
        match &step.body {
            StepBody::Imatrix(ImatrixStep::Collect(collect)) => {
                let _ = found.insert(&collect.corpus, "imatrix");
            }
            StepBody::Policy(policy) => {
                found.extend(policy.method.measures().map(|measures| (measures.corpus, "policy")));
                // Whose size a budget is has no part in the choice.
                todo.extend(&policy.join);
            }
            body => todo.extend(body.inputs()),
        }
    }
    found
}

/// Returns "a `policy` section" for a kind of step.
fn user_of(kind: StepKind) -> &'static str {
    match kind {
        StepKind::Corpus => "an `imatrix`, `policy` or `eval` section",
        StepKind::Imatrix | StepKind::Join => "a `policy` section",
        StepKind::Policy => "a `promote` section",
        StepKind::Promote | StepKind::Eval | StepKind::Metrics | StepKind::Gate => "a `gate` section",
    }
}
