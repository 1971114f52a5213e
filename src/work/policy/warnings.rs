//! The messages for the warnings of policies.

use crate::policy::Reason;
use crate::policy::Warning;

/// Returns the message for a warning.
pub(super) fn sentence(warning: &Warning) -> String {
    match warning {
        Warning::RuleMatchesNothing { pattern, .. } => format!("the rule `{pattern}` matches no tensor"),
        Warning::RuleShadowed { pattern, .. } => {
            format!("the rule `{pattern}` only matches tensors that earlier rules match")
        }
        Warning::RuleHasNoEffect {
            pattern,
            tensor,
            reason,
            ..
        } => {
            format!(
                "the rule `{pattern}` has no effect: `{tensor}` is never quantized ({})",
                words_for(*reason)
            )
        }
    }
}

fn words_for(reason: Reason) -> &'static str {
    match reason {
        Reason::OneDimension => "it has one dimension",
        Reason::NotAWeight => "its name does not end in `weight`",
        Reason::Norm => "it is a norm",
        Reason::ExpertRouter => "it routes to experts",
        Reason::Small => "it is small, and quantizing it costs much quality",
        Reason::Position => "it holds positions or token types",
        Reason::Encoder => "it belongs to an image or sound encoder",
    }
}
