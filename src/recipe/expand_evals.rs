//! Expands evaluations, metrics and gates. This comes after the candidates, which they refer to.

use std::collections::HashSet;

use indexmap::IndexSet;

use crate::recipe::decl::Decl;
use crate::recipe::decl::Decls;
use crate::recipe::decl::Gate;
use crate::recipe::expand::Expansion;
use crate::recipe::model::EvalStep;
use crate::recipe::model::GateStep;
use crate::recipe::model::MetricsStep;
use crate::recipe::model::Place;
use crate::recipe::model::StepBody;
use crate::recipe::model::StepId;
use crate::recipe::model::StepKind;
use crate::syntax::error::RecipeError;
use crate::syntax::words::section_words;

impl Expansion<'_> {
    /// Returns the candidates of a name: all variants of a `promote` section, or the one with this label.
    pub(crate) fn candidate(&self, name: &str) -> Vec<StepId> {
        let variants = self.variants.get(&(StepKind::Promote, name.to_owned()));
        match variants {
            Some(variants) => variants
                .iter()
                .map(|variant| StepId::new(StepKind::Promote, name, variant.clone()))
                .collect(),
            None => self.labels.get(name).cloned().unwrap_or_default(),
        }
    }

    /// Resolves a list of candidates; without a list, returns all candidates.
    fn candidates(&mut self, user: &str, names: Option<&Vec<(String, Place)>>) -> Vec<StepId> {
        let all = self.steps.iter().filter(|step| step.id.kind == StepKind::Promote);
        let Some(names) = names else {
            return all.map(|step| step.id.clone()).collect();
        };
        let mut found: IndexSet<StepId> = IndexSet::new();
        for (name, place) in names {
            let ids = self.candidate(name);
            if ids.is_empty() {
                self.unknown_candidate(user, name, place);
            }
            found.extend(ids);
        }
        found.into_iter().collect()
    }

    pub(crate) fn unknown_candidate(&mut self, user: &str, name: &str, place: &Place) {
        let promotes = self.steps.iter().filter(|step| step.id.kind == StepKind::Promote);
        let declared = promotes.map(|step| (step.id.label(), step.origin.clone())).collect();
        self.errors.push(RecipeError::UnknownReference {
            place: place.clone(),
            name: name.to_owned(),
            user: user.to_owned(),
            wanted: "candidate".to_owned(),
            declared,
            other: None,
        });
    }

    pub(crate) fn evals(&mut self, decls: &Decls) {
        for eval in &decls.evals {
            let body = &eval.body;
            let candidates = self.candidates(&section_words("eval", &eval.name), body.candidates.as_ref());
            let body = StepBody::Eval(EvalStep {
                candidates,
                reference: body.reference.clone(),
                corpus: StepId::new(StepKind::Corpus, body.corpus.as_str(), None),
                context: body.context,
                chunks: body.chunks,
                kld: body.kld,
                block: body.block,
                bootstrap: body.bootstrap,
                seed: body.seed,
                allow_overlap: body.allow_overlap,
            });
            self.push(StepKind::Eval, &eval.name, None, body, &eval.place);
        }
        for metrics in &decls.metrics {
            let evals = metrics
                .body
                .evals
                .iter()
                .map(|name| StepId::new(StepKind::Eval, name.as_str(), None));
            let body = StepBody::Metrics(MetricsStep { evals: evals.collect() });
            self.push(StepKind::Metrics, &metrics.name, None, body, &metrics.place);
        }
    }

    pub(crate) fn gate(&mut self, decl: &Decl<Gate>, decls: &Decls) {
        let words = section_words("gate", &decl.name);
        let baseline = decl.body.baseline.as_ref().and_then(|(name, place)| {
            let ids = self.candidate(name);
            match ids.as_slice() {
                [id] => return Some(id.clone()),
                [] => self.unknown_candidate(&words, name, place),
                several => self.errors.push(RecipeError::NotSingle {
                    place: place.clone(),
                    key: "baseline",
                    name: name.clone(),
                    count: several.len(),
                    labels: several.iter().map(StepId::label).collect(),
                }),
            }
            None
        });
        let mut candidates = self.candidates(&words, decl.body.candidates.as_ref());
        if decl.body.candidates.is_none() {
            candidates.retain(|id| Some(id) != baseline.as_ref());
            let labels = candidates.iter().map(StepId::label).collect();
            self.gate_candidates.insert(decl.name.clone(), labels);
        }
        if candidates.is_empty() && self.errors.is_empty() {
            self.errors.push(RecipeError::NoDefault {
                place: decl.place.clone(),
                section: words.clone(),
                key: "candidates",
                what: "candidate",
                declared: Vec::new(),
            });
        }
        self.check_figures(decl, decls, &candidates, baseline.as_ref());
        let body = StepBody::Gate(GateStep {
            metrics: StepId::new(StepKind::Metrics, decl.body.metrics.as_str(), None),
            candidates,
            require: decl
                .body
                .require
                .iter()
                .map(|(requirement, _)| requirement.clone())
                .collect(),
            baseline,
            confidence: decl.body.confidence,
        });
        self.push(StepKind::Gate, &decl.name, None, body, &decl.place);
    }

    /// Reports requirements on figures that no evaluation gives for some candidate.
    fn check_figures(&mut self, decl: &Decl<Gate>, decls: &Decls, ids: &[StepId], baseline: Option<&StepId>) {
        let Some(metrics) = decls.metrics.iter().find(|metrics| metrics.name == decl.body.metrics) else {
            return;
        };
        let named: HashSet<&String> = metrics.body.evals.iter().collect();
        let evals: Vec<&EvalStep> = self
            .steps
            .iter()
            .filter(|step| named.contains(&step.id.name))
            .filter_map(|step| match &step.body {
                StepBody::Eval(eval) => Some(eval),
                _ => None,
            })
            .collect();
        // The candidates of all evaluations, and of those that measure KLD.
        let covered: HashSet<&StepId> = evals.iter().flat_map(|eval| &eval.candidates).collect();
        let with_kld = evals.iter().filter(|eval| eval.kld);
        let with_kld: HashSet<&StepId> = with_kld.flat_map(|eval| &eval.candidates).collect();
        for (requirement, place) in &decl.body.require {
            let figure = requirement.figure;
            if !figure.needs_eval() {
                continue;
            }
            let mut needed = ids.iter().chain(baseline);
            let enough = if figure.needs_kld() { &with_kld } else { &covered };
            let Some(without) = needed.find(|id| !enough.contains(id)) else {
                continue;
            };
            let why = if evals.is_empty() {
                "there is no evaluation".to_owned()
            } else if covered.contains(without) {
                "its evaluations have `kld = false`".to_owned()
            } else {
                format!("no evaluation covers the candidate `{}`", without.label())
            };
            self.errors.push(RecipeError::NoFigure {
                place: place.clone(),
                section: section_words("gate", &decl.name),
                figure,
                why,
                metrics: Some(metrics.place.clone()),
            });
        }
    }
}
