//! Expands sections of second moments.

use crate::method::Scope;
use crate::recipe::decl::Decl;
use crate::recipe::decl::Moments;
use crate::recipe::expand::Expansion;
use crate::recipe::model::MomentsStep;
use crate::recipe::model::StepBody;
use crate::recipe::model::StepKind;
use crate::syntax::sweep::choices;
use crate::syntax::sweep::joined;
use crate::syntax::sweep::optional;

impl Expansion<'_> {
    pub(super) fn moments(&mut self, decl: &Decl<Moments>) {
        let kind = StepKind::Moments;
        let corpora = self.references(StepKind::Corpus, &decl.body.corpus);
        let contexts = choices(&decl.body.context, |value| format!("context{value}"));
        let counts = optional(decl.body.chunks.as_ref(), |value| format!("chunks{value}"));
        let sizes = [corpora.len(), contexts.len(), counts.len()];
        for row in self.rows(decl, kind, &sizes).into_iter().flatten() {
            let (corpus, context, chunks) = (&corpora[row[0]], &contexts[row[1]], &counts[row[2]]);
            let parts = [corpus.part.clone(), context.part.clone(), chunks.part.clone()];
            let body = StepBody::Moments(MomentsStep {
                model: decl.body.model.clone(),
                corpus: corpus.value.clone(),
                context: context.value,
                chunks: chunks.value,
                block: decl.body.block,
                held_out: decl.body.held_out,
            });
            self.push(kind, &decl.name, joined(&parts), body, &decl.place);
        }
    }
}
