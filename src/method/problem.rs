//! The error of a method that cannot choose types.

use crate::policy::PolicyError;

/// The error of a method that cannot choose types or create its document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct MethodError {
    /// What was found, and what was expected.
    pub what: String,
    /// How to solve it.
    pub hint: Option<&'static str>,
}

impl MethodError {
    /// Returns an error without a hint.
    pub fn new(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            hint: None,
        }
    }
}

impl From<PolicyError> for MethodError {
    fn from(error: PolicyError) -> Self {
        let hint = match error {
            PolicyError::BelowMinimum { .. } => Some(
                "raise the budget, or allow smaller types (`types`, `floors`, `keep`, or an imatrix for types that need one)",
            ),
            PolicyError::DeviceBelowMinimum { .. } => Some(
                "place fewer tensors there, shorten the context, choose a smaller type for the cache, or lower floors",
            ),
            _ => None,
        };
        Self {
            what: error.to_string(),
            hint,
        }
    }
}
