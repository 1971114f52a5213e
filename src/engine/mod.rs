//! What runs a model's mathematics.
