//! Expands policies: one step for each combination of a section's joins and settings.

use crate::method::Scope;
use crate::method::SizeOf;
use crate::recipe::decl::Decl;
use crate::recipe::decl::Decls;
use crate::recipe::decl::Policy;
use crate::recipe::expand::Expansion;
use crate::recipe::model::PolicyStep;
use crate::recipe::model::StepBody;
use crate::syntax::id::StepId;
use crate::syntax::id::StepKind;
use crate::syntax::sweep::Choice;
use crate::syntax::sweep::Sweep;
use crate::syntax::sweep::joined;

impl Expansion<'_> {
    /// Creates the steps of a policy's section.
    pub(crate) fn policy(&mut self, decl: &Decl<Policy>, decls: &Decls) {
        let kind = StepKind::Policy;
        let Some(data) = self.data(decl, decls) else { return };
        let methods = decl.body.method.variants(self);
        let count = methods.as_ref().map_or_else(|count| *count, Vec::len);
        let rows = self.rows(decl, kind, &[data.len(), count]);
        let (Some(rows), Ok(methods)) = (rows, methods) else {
            return;
        };
        for row in rows {
            let (join, method) = (&data[row[0]], &methods[row[1]]);
            let body = StepBody::Policy(PolicyStep {
                model: decl.body.model.clone(),
                join: join.value.clone(),
                method: method.value.clone(),
                keep: decl.body.keep.clone(),
            });
            let parts = [join.part.clone(), method.part.clone()];
            self.push(kind, &decl.name, joined(&parts), body, &decl.place);
        }
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
