//! Expands policies: one step for each combination of a section's joins and settings.

use crate::method::Scope;
use crate::method::SizeOf;
use crate::recipe::decl::Decl;
use crate::recipe::decl::Decls;
use crate::recipe::decl::Policy;
use crate::recipe::expand::Expansion;
use crate::recipe::model::PolicyStep;
use crate::recipe::model::RefinedRounding;
use crate::recipe::model::StepBody;
use crate::recipe::read_policy::rounding_word;
use crate::syntax::error::RecipeError;
use crate::syntax::id::StepId;
use crate::syntax::id::StepKind;
use crate::syntax::sweep::Choice;
use crate::syntax::sweep::Sweep;
use crate::syntax::sweep::choices;
use crate::syntax::sweep::joined;
use crate::syntax::words::section_words;

impl Expansion<'_> {
    /// Creates the steps of a policy's section.
    pub(crate) fn policy(&mut self, decl: &Decl<Policy>, decls: &Decls) {
        let kind = StepKind::Policy;
        let Some(data) = self.data(decl, decls) else { return };
        let methods = decl.body.method.variants(self);
        let count = methods.as_ref().map_or_else(|count| *count, Vec::len);
        let Some(roundings) = self.roundings(decl, decls) else {
            return;
        };
        let rows = self.rows(decl, kind, &[data.len(), count, roundings.len()]);
        let (Some(rows), Ok(methods)) = (rows, methods) else {
            return;
        };
        for row in rows {
            let (join, method, rounding) = (&data[row[0]], &methods[row[1]], &roundings[row[2]]);
            let body = StepBody::Policy(PolicyStep {
                model: decl.body.model.clone(),
                join: join.value.clone(),
                method: method.value.clone(),
                keep: decl.body.keep.clone(),
                rounding: rounding.value.clone(),
            });
            let parts = [join.part.clone(), method.part.clone(), rounding.part.clone()];
            self.push(kind, &decl.name, joined(&parts), body, &decl.place);
        }
    }

    /// Returns how the codes of a policy's tensors are chosen: each way with its part of the variant's name. Reports second moments of
    /// another model.
    fn roundings(&mut self, decl: &Decl<Policy>, decls: &Decls) -> Option<Vec<Choice<Option<RefinedRounding>>>> {
        let names = decl.body.moments.as_ref();
        for (name, place) in names.into_iter().flat_map(|names| &names.values) {
            let moments = decls.moments.iter().find(|moments| moments.name == *name);
            if let Some(moments) = moments.filter(|moments| moments.body.model != decl.body.model) {
                self.errors.push(RecipeError::ModelMismatch {
                    place: place.clone(),
                    user: section_words("policy", &decl.name),
                    model: decl.body.model.to_string(),
                    input: section_words("moments", name),
                    other: moments.body.model.to_string(),
                    declared: moments.place.clone(),
                });
                return None;
            }
        }
        let steps = names
            .map(|names| self.references(StepKind::Moments, names))
            .unwrap_or_default();
        let mut found = Vec::new();
        for word in choices(&decl.body.refined, |refined| rounding_word(*refined).to_owned()) {
            if !word.value {
                found.push(Choice {
                    part: word.part,
                    value: None,
                });
                continue;
            }
            found.extend(steps.iter().map(|step| Choice {
                part: joined(&[word.part.clone(), step.part.clone()]),
                value: Some(RefinedRounding {
                    moments: step.value.clone(),
                }),
            }));
        }
        Some(found)
    }

    /// Returns the steps that a candidate's size depends on.
    fn size_of(&self, candidate: StepId) -> Option<SizeOf> {
        let body = |id: &StepId| self.steps.iter().find(|step| step.id == *id).map(|step| &step.body);
        let StepBody::Promote(promote) = body(&candidate)? else {
            return None;
        };
        let StepBody::Policy(policy) = body(&promote.policy)? else {
            return None;
        };
        Some(SizeOf {
            policy: promote.policy.clone(),
            model: policy.model.clone(),
            join: policy.join.clone(),
            candidate,
        })
    }
}

impl Scope for Expansion<'_> {
    fn references(&self, kind: StepKind, names: &Sweep<String>) -> Vec<Choice<StepId>> {
        let mut found = Vec::new();
        for (name, _) in &names.values {
            for variant in self.variants.get(&(kind, name.clone())).into_iter().flatten() {
                let id = StepId::new(kind, name.as_str(), variant.clone());
                let part = if names.list { Some(id.label()) } else { variant.clone() };
                found.push(Choice { part, value: id });
            }
        }
        found
    }

    fn candidates(&self, name: &str) -> Vec<SizeOf> {
        let candidates = self.candidate(name).into_iter();
        candidates.filter_map(|id| self.size_of(id)).collect()
    }
}
