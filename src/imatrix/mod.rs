//! Importance matrices: reading, writing, merging.
