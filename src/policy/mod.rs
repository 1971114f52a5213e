//! Which type for which tensor.
