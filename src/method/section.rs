//! The section of a policy, as its method reads it.

use super::budget;
use super::budget::WrittenBudget;
use crate::syntax::declared::Names;
use crate::syntax::error::RecipeError;
use crate::syntax::field::Reader;
use crate::syntax::id::Place;
use crate::syntax::sweep::Sweep;

/// A `[policy.NAME]` section of a known method. The keys that all policies have are already read.
pub(crate) struct PolicySection<'r, 'a, 'e> {
    pub(crate) reader: &'r mut Reader<'a, 'e>,
    /// The names that the recipe declares.
    pub(crate) names: &'r Names,
    /// Whether the policy names an imatrix or a join.
    pub(crate) has_imatrix: bool,
    /// Where the method is named.
    pub(crate) method_place: Option<Place>,
    /// The budgets that were read; they say which candidates must exist before the policy does.
    pub(crate) budgets: Option<Sweep<WrittenBudget>>,
}

impl PolicySection<'_, '_, '_> {
    /// Reads the budgets and keeps them. `example` is for a recipe without one.
    pub(super) fn budgets(&mut self, example: &'static str) -> Option<Sweep<WrittenBudget>> {
        let budgets = budget::read(self.reader, example);
        self.budgets.clone_from(&budgets);
        budgets
    }

    /// Reports an imatrix that is missing. `because` is where the section says what needs one.
    pub(super) fn needs_imatrix(&mut self, because: Option<&Place>) {
        if !self.has_imatrix {
            self.reader.errors.push(RecipeError::MissingKey {
                place: self.reader.head.clone(),
                section: self.reader.words.clone(),
                key: "imatrix",
                example: "imatrix = \"NAME\"",
                because: because.cloned(),
            });
        }
    }

    /// Returns where the value of a key stands.
    pub(super) fn place_of(&mut self, key: &'static str) -> Option<Place> {
        self.reader.entry(key).map(|entry| entry.value.place.clone())
    }

    /// Reads a switch that is off unless the section says so.
    pub(super) fn switch(&mut self, key: &'static str) -> Option<bool> {
        if self.reader.has(key) {
            self.reader.read(key, |field| field.boolean())
        } else {
            Some(false)
        }
    }

    /// Reads a switch that is off unless the section says so; it may have both values.
    pub(super) fn switches(&mut self, key: &'static str) -> Option<Sweep<bool>> {
        if self.reader.has(key) {
            self.reader.sweep(key, bool::to_string, |field| field.boolean())
        } else {
            Some(Sweep::one(false, &self.reader.head))
        }
    }
}
