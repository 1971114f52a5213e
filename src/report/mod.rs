//! Rows and tables.
