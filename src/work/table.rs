//! The work of each kind of action. A new kind is one file that implements [`Work`] for its document, and one line here.

use super::Work;
use crate::action::Action;

/// Returns what does the work of an action.
pub(super) fn work_of(action: &Action) -> &dyn Work {
    match action {
        Action::InspectModel(action) => action,
        Action::Corpus(action) => action,
        Action::Tokens(action) => action,
        Action::ImatrixBlock(action) => action,
        Action::ImatrixCollect(action) => action,
        Action::ImatrixMerge(action) => action,
        Action::ImatrixImport(action) => action,
        Action::ImatrixMoments(action) => action,
        Action::WeightInputs(action) => action,
        Action::MomentsBlock(action) => action,
        Action::MomentsSum(action) => action,
        Action::Moments(action) => action,
        Action::GradientsBlock(action) => action,
        Action::Gradients(action) => action,
        Action::Join(action) => action,
        Action::Policy(action) => action,
        Action::Tensor(action) => action,
        Action::RefinedTensor(action) => action,
        Action::TensorError(action) => action,
        Action::TensorLoss(action) => action,
        Action::Promote(action) => action,
        Action::ReferenceBlock(action) => action,
        Action::EvalBlock(action) => action,
        Action::Eval(action) => action,
        Action::Overlap(action) => action,
        Action::Metrics(action) => action,
        Action::Gate(action) => action,
    }
}
