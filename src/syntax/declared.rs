//! The names that a recipe declares, and references to them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::syntax::error::RecipeError;
use crate::syntax::field::Field;
use crate::syntax::id::Place;
use crate::syntax::id::SourceKind;
use crate::syntax::id::SourceName;

/// The word of source sections.
pub(crate) const SOURCE: &str = "source";

/// Names with their places, shared by the errors that list them.
type Listed = Arc<[(String, Place)]>;

/// All names of a recipe, by kind, each with its place.
#[derive(Default)]
pub(crate) struct Names {
    by_kind: BTreeMap<&'static str, BTreeMap<String, Place>>,
    /// What [`Names::listed`] returned, by kind.
    listed: RefCell<BTreeMap<&'static str, Listed>>,
    /// Sources that are models.
    pub(crate) models: Vec<(String, Place)>,
    /// Sources that are importance matrices.
    pub(crate) matrices: Vec<(String, Place)>,
    /// Whether a source section was wrong, so that defaults are not known.
    pub(crate) sources_unsure: bool,
}

impl Names {
    pub(crate) fn add(&mut self, kind: &'static str, name: &str, place: &Place) {
        self.by_kind
            .entry(kind)
            .or_default()
            .insert(name.to_owned(), place.clone());
    }

    /// Returns all names of a kind, in order.
    pub(crate) fn of(&self, kind: &str) -> impl Iterator<Item = (&str, &Place)> {
        self.by_kind
            .get(kind)
            .into_iter()
            .flatten()
            .map(|(name, place)| (name.as_str(), place))
    }

    pub(crate) fn place(&self, kind: &str, name: &str) -> Option<&Place> {
        self.by_kind.get(kind)?.get(name)
    }

    /// Returns all names of a kind, in order, to be kept in errors. All names must be known by then.
    pub(crate) fn listed(&self, kind: &'static str) -> Arc<[(String, Place)]> {
        let mut listed = self.listed.borrow_mut();
        let names = listed.entry(kind).or_insert_with(|| {
            self.of(kind)
                .map(|(name, place)| (name.to_owned(), place.clone()))
                .collect()
        });
        Arc::clone(names)
    }

    /// Returns a name's kind and place, if something else than a `kind` has it.
    pub(crate) fn elsewhere(&self, kind: &str, name: &str) -> Option<(String, Place)> {
        let mut others = self.by_kind.iter().filter(|(other, _)| **other != kind);
        others.find_map(|(other, names)| names.get(name).map(|place| ((*other).to_owned(), place.clone())))
    }

    /// Reads the name of a section of `kind`.
    pub(crate) fn reference(
        &self,
        field: Field<'_>,
        kind: &'static str,
        wanted: &'static str,
        user: &str,
    ) -> Result<String, RecipeError> {
        let name = field.string(&format!("the name of {wanted}"))?;
        if self.place(kind, name).is_some() {
            return Ok(name.to_owned());
        }
        Err(RecipeError::UnknownReference {
            place: field.place(),
            name: name.to_owned(),
            user: user.to_owned(),
            wanted: kind.to_owned(),
            declared: self.listed(kind),
            other: self.elsewhere(kind, name),
        })
    }

    /// Reads the name of a source of one kind.
    pub(crate) fn source(&self, field: Field<'_>, kind: SourceKind, user: &str) -> Result<SourceName, RecipeError> {
        let name = self.reference(field, SOURCE, "a source", user)?;
        let (others, wanted, found) = match kind {
            SourceKind::Model => (&self.matrices, "a model", "an imatrix"),
            SourceKind::Imatrix => (&self.models, "an imatrix", "a model"),
        };
        match others.iter().find(|(other, _)| *other == name) {
            None => Ok(SourceName::new(name)),
            Some((_, declared)) => Err(RecipeError::WrongSource {
                place: field.place(),
                name,
                user: user.to_owned(),
                wanted,
                found,
                declared: declared.clone(),
            }),
        }
    }
}
