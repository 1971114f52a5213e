//! The words of a policy's document as what the rules of policies take.

use crate::action::PolicyRule;
use crate::policy;
use crate::policy::Fuse;
use crate::policy::Rule;
use crate::policy::Target;
use crate::tensor_type::TensorType;
use crate::work::StepError;

pub(super) fn fuse_of(name: &str) -> Result<Fuse, StepError> {
    match name {
        "attention" => Ok(Fuse::Attention),
        "feed-forward" => Ok(Fuse::FeedForward),
        "experts" => Ok(Fuse::Experts),
        other => Err(StepError::input(format!(
            "there is no rule `{other}` that fuses tensors"
        ))),
    }
}

pub(super) fn kept(patterns: &[String]) -> Result<Vec<Rule>, StepError> {
    let keep = |pattern: &String| {
        Ok(Rule {
            pattern: regex_of(pattern)?,
            to: Target::Keep,
        })
    };
    patterns.iter().map(keep).collect()
}

pub(super) fn rules_of(rules: &[PolicyRule]) -> Result<Vec<Rule>, StepError> {
    let rule = |rule: &PolicyRule| {
        Ok(Rule {
            pattern: regex_of(&rule.pattern)?,
            to: target_of(&rule.target)?,
        })
    };
    rules.iter().map(rule).collect()
}

pub(super) fn type_of(name: &str) -> Result<TensorType, StepError> {
    TensorType::from_name(name).ok_or_else(|| StepError::input(format!("there is no tensor type `{name}`")))
}

pub(super) fn target_of(name: &str) -> Result<Target, StepError> {
    if name == "keep" {
        Ok(Target::Keep)
    } else {
        type_of(name).map(Target::Type)
    }
}

pub(super) fn regex_of(pattern: &str) -> Result<regex::Regex, StepError> {
    regex::Regex::new(pattern).map_err(|error| StepError::input(format!("`{pattern}`: {error}")))
}

pub(super) fn failed(error: policy::PolicyError) -> StepError {
    match error {
        policy::PolicyError::BelowMinimum { .. } => StepError::input_hint(
            error.to_string(),
            "raise the budget, or let tensors have smaller types: `types`, `floors`, `keep`, an imatrix where those need one",
        ),
        policy::PolicyError::DeviceBelowMinimum { .. } => StepError::input_hint(
            error.to_string(),
            "let fewer tensors lie there, shorten the context, take a smaller type for the cache, or lower floors",
        ),
        error => StepError::input(error.to_string()),
    }
}
