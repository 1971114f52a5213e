//! Recipes: from text with places to checked values.
