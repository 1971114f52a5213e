//! Expands a recipe: sweeps to variants, names to step IDs. Adds the implicit joins.

use std::collections::BTreeMap;
use std::collections::HashMap;

use crate::method::Scope;
use crate::recipe::decl::Data;
use crate::recipe::decl::Decl;
use crate::recipe::decl::Decls;
use crate::recipe::decl::Imatrix;
use crate::recipe::decl::Join;
use crate::recipe::decl::Policy;
use crate::recipe::model::CollectImatrix;
use crate::recipe::model::CorpusStep;
use crate::recipe::model::ImatrixStep;
use crate::recipe::model::JoinStep;
use crate::recipe::model::Place;
use crate::recipe::model::ResolvedSection;
use crate::recipe::model::SourceName;
use crate::recipe::model::Step;
use crate::recipe::model::StepBody;
use crate::recipe::model::StepId;
use crate::recipe::model::StepKind;
use crate::recipe::model::WeightedImatrix;
use crate::recipe::read_steps::join_entries;
use crate::syntax::error::RecipeError;
use crate::syntax::names::name_problem;
use crate::syntax::sweep::Choice;
use crate::syntax::sweep::MAX_VARIANTS;
use crate::syntax::sweep::Sweep;
use crate::syntax::sweep::choices;
use crate::syntax::sweep::flag;
use crate::syntax::sweep::joined;
use crate::syntax::sweep::optional;
use crate::syntax::words::section_words;
use crate::vocab::Severity;

/// How many steps a recipe may have.
const MAX_STEPS: usize = 20_000;

/// The state of the expansion of a recipe, and its result.
pub(crate) struct Expansion<'e> {
    pub(crate) steps: Vec<Step>,
    /// Implicit sections of steps.
    pub(crate) implicit: Vec<ResolvedSection>,
    /// The candidates of gates that do not name any, by gate.
    pub(crate) gate_candidates: BTreeMap<String, Vec<String>>,
    pub(crate) errors: &'e mut Vec<RecipeError>,
    /// The variants of each declared name.
    pub(crate) variants: BTreeMap<(StepKind, String), Vec<Option<String>>>,
    /// The candidates by their labels.
    pub(crate) labels: HashMap<String, Vec<StepId>>,
    /// The joins of each model and imatrix.
    joins: BTreeMap<(SourceName, StepId), Vec<(StepId, Place)>>,
}

/// Returns every combination of one index per dimension, the last dimension running fastest.
fn product(sizes: &[usize]) -> Vec<Vec<usize>> {
    let mut rows = vec![Vec::new()];
    for size in sizes {
        rows = rows
            .iter()
            .flat_map(|row| (0..*size).map(|at| [row.as_slice(), &[at]].concat()))
            .collect();
    }
    rows
}

impl<'e> Expansion<'e> {
    /// Expands all sections. Adds problems to `errors`.
    pub(crate) fn new(decls: &Decls, errors: &'e mut Vec<RecipeError>) -> Self {
        let mut this = Self {
            steps: Vec::new(),
            implicit: Vec::new(),
            gate_candidates: BTreeMap::new(),
            errors,
            variants: BTreeMap::new(),
            labels: HashMap::new(),
            joins: BTreeMap::new(),
        };
        this.corpora(decls);
        for moments in &decls.moments {
            this.moments(moments);
        }
        for at in this.merge_order(&decls.matrices) {
            this.imatrix(&decls.matrices[at]);
        }
        for join in &decls.joins {
            this.join(&join.name, &join.place, &join.body);
        }
        this.policies_and_candidates(decls);
        this.sort();
        this.check_names();
        if this.errors.is_empty() {
            this.evals(decls);
            for gate in &decls.gates {
                this.gate(gate, decls);
            }
        }
        this.sort();
        this
    }

    /// Sorts steps by kind. Joins and candidates are also sorted by name: implicit joins were added last, and candidates may
    /// have waited for each other. Imatrices and policies stay in the order of their dependencies.
    fn sort(&mut self) {
        let name = |step: &Step| match step.id.kind {
            StepKind::Join | StepKind::Promote => step.id.name.clone(),
            _ => String::new(),
        };
        self.steps.sort_by_key(|step| (step.id.kind, name(step)));
    }

    pub(crate) fn push(&mut self, kind: StepKind, name: &str, variant: Option<String>, body: StepBody, origin: &Place) {
        self.variants
            .entry((kind, name.to_owned()))
            .or_default()
            .push(variant.clone());
        let id = StepId::new(kind, name, variant);
        if kind == StepKind::Promote {
            self.labels.entry(id.label()).or_default().push(id.clone());
        }
        self.steps.push(Step {
            id,
            body,
            engine: None,
            origin: origin.clone(),
        });
    }

    /// Returns all combinations of a section's sweep. Reports an error if there are too many.
    pub(crate) fn rows<T>(&mut self, decl: &Decl<T>, kind: StepKind, sizes: &[usize]) -> Option<Vec<Vec<usize>>> {
        self.rows_at(&decl.name, &decl.place, kind, sizes)
    }

    fn rows_at(&mut self, name: &str, place: &Place, kind: StepKind, sizes: &[usize]) -> Option<Vec<Vec<usize>>> {
        let count = sizes.iter().fold(1usize, |product, size| product.saturating_mul(*size));
        let (what, limit) = if count > MAX_VARIANTS {
            (section_words(kind.as_str(), name), MAX_VARIANTS)
        } else if self.steps.len().saturating_add(count) > MAX_STEPS {
            ("the recipe".to_owned(), MAX_STEPS)
        } else {
            return Some(product(sizes));
        };
        let count = if limit == MAX_STEPS {
            self.steps.len().saturating_add(count)
        } else {
            count
        };
        self.errors.push(RecipeError::TooMany {
            place: place.clone(),
            what,
            count,
            limit,
        });
        None
    }

    fn corpora(&mut self, decls: &Decls) {
        for corpus in &decls.corpora {
            let body = StepBody::Corpus(CorpusStep {
                files: corpus.body.files.clone(),
                chunking: corpus.body.chunking,
                parse_special: corpus.body.parse_special,
            });
            self.push(StepKind::Corpus, &corpus.name, None, body, &corpus.place);
        }
    }

    /// Returns the imatrices in the order of their dependencies; reports a cycle.
    fn merge_order(&mut self, matrices: &[Decl<Imatrix>]) -> Vec<usize> {
        let inputs = |at: usize| match &matrices[at].body {
            Imatrix::Merge { inputs, .. } => inputs.as_slice(),
            _ => &[],
        };
        let index: BTreeMap<&str, usize> = matrices
            .iter()
            .enumerate()
            .map(|(at, decl)| (decl.name.as_str(), at))
            .collect();
        let mut order = Vec::new();
        let mut done = vec![false; matrices.len()];
        for start in 0..matrices.len() {
            // An explicit stack, because chains may be long. An entry is an imatrix and the index of its next input.
            let mut stack = vec![(start, 0)];
            while let Some((at, next)) = stack.pop() {
                if done[at] {
                    continue;
                }
                let Some((name, _)) = inputs(at).get(next) else {
                    done[at] = true;
                    order.push(at);
                    continue;
                };
                stack.push((at, next + 1));
                let Some(input) = index.get(name.as_str()) else {
                    continue;
                };
                if let Some(from) = stack.iter().position(|(open, _)| open == input) {
                    let link = |&(at, next): &(usize, usize)| {
                        let place = inputs(at).get(next - 1).map_or(&matrices[at].place, |(_, place)| place);
                        (format!("imatrix.{}", matrices[at].name), place.clone())
                    };
                    let path: Vec<_> = stack[from..].iter().map(link).collect();
                    let first = path.iter().map(|(_, place)| place).min_by_key(|place| place.span);
                    let place = first.unwrap_or(&matrices[at].place).clone();
                    self.errors.push(RecipeError::Cycle { place, path });
                    return Vec::new();
                }
                stack.push((*input, 0));
            }
        }
        order
    }

    fn imatrix(&mut self, decl: &Decl<Imatrix>) {
        let kind = StepKind::Imatrix;
        match &decl.body {
            Imatrix::Import { source } => {
                let body = StepBody::Imatrix(ImatrixStep::Import { source: source.clone() });
                self.push(kind, &decl.name, None, body, &decl.place);
            }
            Imatrix::Moments {
                moments,
                process_output,
            } => {
                let moments = self.references(StepKind::Moments, moments);
                let flags = choices(process_output, flag("process_output"));
                for row in self
                    .rows(decl, kind, &[moments.len(), flags.len()])
                    .into_iter()
                    .flatten()
                {
                    let (moments, output) = (&moments[row[0]], &flags[row[1]]);
                    let body = StepBody::Imatrix(ImatrixStep::Moments {
                        moments: moments.value.clone(),
                        process_output: output.value,
                    });
                    let parts = [moments.part.clone(), output.part.clone()];
                    self.push(kind, &decl.name, joined(&parts), body, &decl.place);
                }
            }
            Imatrix::Collect {
                model,
                corpus,
                context,
                chunks,
                process_output,
                block,
            } => {
                let corpora = self.references(StepKind::Corpus, corpus);
                let contexts = choices(context, |value| format!("context{value}"));
                let counts = optional(chunks.as_ref(), |value| format!("chunks{value}"));
                let flags = choices(process_output, flag("process_output"));
                let sizes = [corpora.len(), contexts.len(), counts.len(), flags.len()];
                for row in self.rows(decl, kind, &sizes).into_iter().flatten() {
                    let (corpus, context) = (&corpora[row[0]], &contexts[row[1]]);
                    let (chunks, output) = (&counts[row[2]], &flags[row[3]]);
                    let parts = [
                        corpus.part.clone(),
                        context.part.clone(),
                        chunks.part.clone(),
                        output.part.clone(),
                    ];
                    let body = StepBody::Imatrix(ImatrixStep::Collect(CollectImatrix {
                        model: model.clone(),
                        corpus: corpus.value.clone(),
                        context: context.value,
                        chunks: chunks.value,
                        process_output: output.value,
                        block: *block,
                    }));
                    self.push(kind, &decl.name, joined(&parts), body, &decl.place);
                }
            }
            Imatrix::Merge { inputs, weights, mode } => {
                let inputs: Vec<Vec<Choice<StepId>>> = inputs
                    .iter()
                    .map(|(name, place)| self.references(kind, &Sweep::one(name.clone(), place)))
                    .collect();
                let modes = choices(mode, |mode| mode.as_str().to_owned());
                let sizes: Vec<usize> = inputs.iter().map(Vec::len).chain([modes.len()]).collect();
                for row in self.rows(decl, kind, &sizes).into_iter().flatten() {
                    let chosen: Vec<&Choice<StepId>> =
                        inputs.iter().zip(&row).map(|(choices, at)| &choices[*at]).collect();
                    let mode = &modes[row[inputs.len()]];
                    let parts: Vec<_> = chosen
                        .iter()
                        .map(|choice| choice.part.clone())
                        .chain([mode.part.clone()])
                        .collect();
                    let weighted = chosen.iter().zip(weights).map(|(choice, weight)| WeightedImatrix {
                        imatrix: choice.value.clone(),
                        weight: *weight,
                    });
                    let body = StepBody::Imatrix(ImatrixStep::Merge {
                        inputs: weighted.collect(),
                        mode: mode.value,
                    });
                    self.push(kind, &decl.name, joined(&parts), body, &decl.place);
                }
            }
        }
    }

    fn join(&mut self, name: &str, place: &Place, join: &Join) {
        let matrices = self.references(StepKind::Imatrix, &join.imatrix);
        for row in self
            .rows_at(name, place, StepKind::Join, &[matrices.len()])
            .into_iter()
            .flatten()
        {
            let choice = &matrices[row[0]];
            let body = StepBody::Join(JoinStep {
                model: join.model.clone(),
                imatrix: choice.value.clone(),
                missing: join.missing,
                unrouted: join.unrouted,
                min_count: join.min_count,
            });
            let id = StepId::new(StepKind::Join, name, choice.part.clone());
            let fits = self
                .joins
                .entry((join.model.clone(), choice.value.clone()))
                .or_default();
            fits.push((id, place.clone()));
            self.push(StepKind::Join, name, choice.part.clone(), body, place);
        }
    }

    /// Creates the implicit join of a policy.
    fn implicit_join(&mut self, imatrix: &str, model: &SourceName, decls: &Decls, place: &Place) {
        let taken = |name: &str| {
            self.variants.contains_key(&(StepKind::Join, name.to_owned()))
                || decls.joins.iter().any(|join| join.name == name)
        };
        let numbered = (2..).map(|number| format!("{imatrix}-{model}-{number}"));
        let names = [imatrix.to_owned(), format!("{imatrix}-{model}")]
            .into_iter()
            .chain(numbered);
        let Some(name) = names.into_iter().find(|name| !taken(name)) else {
            return;
        };
        let join = Join {
            model: model.clone(),
            imatrix: Sweep::one(imatrix.to_owned(), place),
            missing: Severity::Warn,
            unrouted: Severity::Warn,
            min_count: None,
        };
        self.join(&name, place, &join);
        self.implicit.push(ResolvedSection {
            kind: "join",
            name,
            entries: join_entries(&join),
        });
    }

    /// Returns the joins that a policy uses, each with its part of the variant's name.
    pub(crate) fn data(&mut self, decl: &Decl<Policy>, decls: &Decls) -> Option<Vec<Choice<Option<StepId>>>> {
        let model = &decl.body.model;
        let some = |part, value| Choice {
            part,
            value: Some(value),
        };
        match &decl.body.data {
            Data::None => Some(vec![Choice {
                part: None,
                value: None,
            }]),
            Data::Join(names) => {
                for (name, place) in &names.values {
                    let join = decls.joins.iter().find(|join| join.name == *name);
                    if let Some(join) = join.filter(|join| join.body.model != *model) {
                        self.errors.push(RecipeError::ModelMismatch {
                            place: place.clone(),
                            user: section_words("policy", &decl.name),
                            model: model.to_string(),
                            input: section_words("join", name),
                            other: join.body.model.to_string(),
                            declared: join.place.clone(),
                        });
                        return None;
                    }
                }
                let joins = self.references(StepKind::Join, names);
                Some(
                    joins
                        .into_iter()
                        .map(|choice| some(choice.part, choice.value))
                        .collect(),
                )
            }
            Data::Imatrix(names) => {
                let mut found = Vec::new();
                for choice in self.references(StepKind::Imatrix, names) {
                    let key = (model.clone(), choice.value.clone());
                    if !self.joins.contains_key(&key) {
                        self.implicit_join(&choice.value.name, model, decls, &decl.place);
                    }
                    match self.joins.get(&key).map(Vec::as_slice) {
                        Some([(join, _)]) => found.push(some(choice.part, join.clone())),
                        Some(several) => {
                            let declared = several
                                .iter()
                                .map(|(id, place)| (id.name.clone(), place.clone()))
                                .collect();
                            self.errors.push(RecipeError::NoDefault {
                                place: names.values.first().map_or(&decl.place, |(_, place)| place).clone(),
                                section: section_words("policy", &decl.name),
                                key: "join",
                                what: "join",
                                declared,
                            });
                            return None;
                        }
                        None => {}
                    }
                }
                Some(found)
            }
        }
    }

    /// Reports steps with one id, candidates with one name, and names too long for files.
    fn check_names(&mut self) {
        let mut ids: BTreeMap<(StepKind, String), &Step> = BTreeMap::new();
        for step in &self.steps {
            let label = step.id.label();
            if let Some(problem) = name_problem(&label) {
                let what = if step.id.kind == StepKind::Promote {
                    "a candidate"
                } else {
                    "a variant"
                };
                self.errors.push(RecipeError::BadName {
                    place: step.origin.clone(),
                    name: label.clone(),
                    what: what.to_owned(),
                    problem,
                });
            }
            // Candidates become files, and some file systems ignore case.
            let candidate = step.id.kind == StepKind::Promote;
            let key = if candidate {
                label.to_ascii_lowercase()
            } else {
                step.id.to_string()
            };
            let Some(first) = ids.insert((step.id.kind, key), step) else {
                continue;
            };
            let mut places = [first.origin.clone(), step.origin.clone()];
            places.sort_by_key(|place| place.span);
            let [first_place, second] = places;
            self.errors.push(RecipeError::Duplicate {
                what: if candidate { "candidate" } else { "variant" },
                only_case: first.id.label() != label,
                name: label,
                first: first_place,
                second,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_run_the_last_dimension_fastest() {
        assert_eq!(product(&[2, 1, 2]), [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1]]);
        assert_eq!(product(&[]), [Vec::<usize>::new()]);
        assert!(product(&[2, 0]).is_empty());
    }
}
