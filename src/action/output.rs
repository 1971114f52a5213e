//! Typed names of outputs and facts.

use std::marker::PhantomData;

/// The name of an output of a kind of action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output(&'static str);

impl Output {
    /// Names an output.
    pub(super) const fn new(name: &'static str) -> Self {
        Self(name)
    }

    /// Returns the name, as in results.
    pub const fn as_str(self) -> &'static str {
        self.0
    }
}

/// The name of a fact in results of a kind of action, with the type of its value.
#[derive(Debug)]
pub struct Fact<T>(&'static str, PhantomData<fn() -> T>);

impl<T> Clone for Fact<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Fact<T> {}

impl<T> Fact<T> {
    /// Names a fact.
    pub(super) const fn new(name: &'static str) -> Self {
        Self(name, PhantomData)
    }

    /// Returns the name, as in results.
    pub const fn as_str(self) -> &'static str {
        self.0
    }
}
