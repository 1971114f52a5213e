//! Names of outputs and facts, so that a misspelt one does not compile.

use std::marker::PhantomData;

/// An output of a kind of action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output(&'static str);

impl Output {
    /// Declares an output.
    pub(super) const fn new(name: &'static str) -> Self {
        Self(name)
    }

    /// Returns the name that results use.
    pub const fn as_str(self) -> &'static str {
        self.0
    }
}

/// A fact in the results of a kind of action, with the type of its value.
#[derive(Debug)]
pub struct Fact<T>(&'static str, PhantomData<fn() -> T>);

impl<T> Clone for Fact<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Fact<T> {}

impl<T> Fact<T> {
    /// Declares a fact.
    pub(super) const fn new(name: &'static str) -> Self {
        Self(name, PhantomData)
    }

    /// Returns the name that results use.
    pub const fn as_str(self) -> &'static str {
        self.0
    }
}
