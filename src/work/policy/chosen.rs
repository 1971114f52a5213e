//! What a method chose.

use super::budget::Solved;
use crate::policy::Table;

/// What a method chose.
pub(super) struct Chosen {
    pub(super) table: Table,
    pub(super) file_type: Option<u32>,
    pub(super) solved: Option<Solved>,
}

impl Chosen {
    pub(super) fn of(table: Table, file_type: Option<u32>) -> Self {
        Self {
            table,
            file_type,
            solved: None,
        }
    }
}
