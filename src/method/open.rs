//! Settings that a recipe leaves open: a method's keys may have several values each, and every combination is a variant.

use std::fmt;

use super::budget::Budget;
use super::budget::SizeOf;
use super::budget::WrittenBudget;
use crate::syntax::id::Place;
use crate::syntax::id::StepId;
use crate::syntax::id::StepKind;
use crate::syntax::sweep::Choice;
use crate::syntax::sweep::MAX_VARIANTS;
use crate::syntax::sweep::Sweep;
use crate::syntax::sweep::choices;
use crate::syntax::sweep::joined;
use crate::syntax::sweep::optional;

/// The steps of a recipe that exist so far.
pub(crate) trait Scope {
    /// Returns the steps that names refer to, with all their variants.
    fn references(&self, kind: StepKind, names: &Sweep<String>) -> Vec<Choice<StepId>>;

    /// Returns the candidates that a name means: those of a section, or the one with this label.
    fn candidates(&self, name: &str) -> Vec<SizeOf>;
}

/// The variants of a value, or how many there would be, where there are more than a section may have.
type Variants<T> = Result<Vec<Choice<T>>, usize>;

/// Returns the variants of a value, once the steps that it refers to exist.
type Expand<T> = dyn Fn(&dyn Scope) -> Variants<T>;

/// A value that is known for each variant of a section once the steps that it refers to exist.
pub(crate) struct Open<T>(Box<Expand<T>>);

impl<T> fmt::Debug for Open<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Open")
    }
}

impl<T: Clone + 'static> Open<T> {
    /// One value.
    pub(crate) fn one(value: T) -> Self {
        Self(Box::new(move |_| {
            Ok(vec![Choice {
                part: None,
                value: value.clone(),
            }])
        }))
    }

    /// The values of a key; `part` names a value in the names of variants.
    pub(crate) fn values(sweep: Sweep<T>, part: impl Fn(&T) -> String + 'static) -> Self {
        Self(Box::new(move |_| Ok(choices(&sweep, &part))))
    }

    /// Applies a function to each value.
    pub(crate) fn map<U>(self, to: impl Fn(T) -> U + 'static) -> Open<U> {
        Open(Box::new(move |scope| {
            let mapped = |choice: Choice<T>| Choice {
                part: choice.part,
                value: to(choice.value),
            };
            Ok(self.variants(scope)?.into_iter().map(mapped).collect())
        }))
    }

    /// Combines each value with each value of another key, which runs faster.
    pub(crate) fn and<U: Clone + 'static>(self, other: Open<U>) -> Open<(T, U)> {
        Open(Box::new(move |scope| {
            let (left, right) = match (self.variants(scope), other.variants(scope)) {
                (Ok(left), Ok(right)) => (left, right),
                (left, right) => {
                    let count = |variants: Result<usize, usize>| variants.unwrap_or_else(|count| count);
                    let left = count(left.map(|left| left.len()));
                    return Err(left.saturating_mul(count(right.map(|right| right.len()))));
                }
            };
            let count = left.len().saturating_mul(right.len());
            if count > MAX_VARIANTS {
                return Err(count);
            }
            let mut pairs = Vec::with_capacity(count);
            for first in &left {
                for second in &right {
                    pairs.push(Choice {
                        part: joined(&[first.part.clone(), second.part.clone()]),
                        value: (first.value.clone(), second.value.clone()),
                    });
                }
            }
            Ok(pairs)
        }))
    }
}

impl<T> Open<T> {
    /// Returns the variants, or how many there would be.
    pub(crate) fn variants(&self, scope: &dyn Scope) -> Variants<T> {
        (self.0)(scope)
    }
}

impl<T: Clone + 'static> Open<Option<T>> {
    /// The values of a key that may be absent.
    pub(crate) fn optional(sweep: Option<Sweep<T>>, part: impl Fn(&T) -> String + 'static) -> Self {
        Self(Box::new(move |_| Ok(optional(sweep.as_ref(), &part))))
    }
}

impl Open<StepId> {
    /// Steps of a kind, by their names.
    pub(crate) fn steps(kind: StepKind, names: Sweep<String>) -> Self {
        Self(Box::new(move |scope| Ok(scope.references(kind, &names))))
    }

    /// The step of a name, and its variants.
    pub(crate) fn step(kind: StepKind, name: String, place: &Place) -> Self {
        Self::steps(kind, Sweep::one(name, place))
    }
}

impl Open<Budget> {
    /// Budgets: one for each candidate where a budget is the size of several.
    pub(crate) fn budgets(sweep: Sweep<WrittenBudget>) -> Self {
        Self(Box::new(move |scope| {
            let mut found = Vec::new();
            for (written, _) in &sweep.values {
                match written {
                    WrittenBudget::Quantity(quantity) => found.push(Choice {
                        part: sweep.list.then(|| quantity.slug()),
                        value: Budget::Quantity(*quantity),
                    }),
                    WrittenBudget::Candidate(name, _) => {
                        found.extend(scope.candidates(name).into_iter().map(|size| {
                            let id = &size.candidate;
                            let part = if sweep.list {
                                Some(id.label())
                            } else {
                                id.variant.clone().filter(|_| id.name == *name)
                            };
                            Choice {
                                part,
                                value: Budget::Candidate(Box::new(size)),
                            }
                        }));
                    }
                }
            }
            Ok(found)
        }))
    }
}
