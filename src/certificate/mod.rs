//! Holds certificates of allocations against themselves: is what they claim true of the problem they state?
//!
//! The checker shares no code with the solver (`allocation`), and neither names the other: it has its own reader of the
//! document, its own arithmetic and its own search. It believes nothing that it can work out: sums, bounds and gaps are
//! computed anew from the problem, and where an assignment is claimed to be the best one, it shows by a search of its own
//! that no better one exists.
//!
//! What makes a claim true:
//! - **gap**: the choice is within the limits and has the stated loss and uses; the bound is that of the stated multipliers
//!   (weak duality: any multipliers that are not negative give one); the gap is their difference.
//! - **optimal**: all this, and no assignment within the limits has less loss. By the bound, an option whose reduced cost is
//!   larger than the gap is in no better assignment; over the options that are left, plain dynamic programming goes
//!   through all assignments, group by group.
//! - **below-minimum**: for some capacity even the smallest options exceed the limit, and the choice is the assignment that
//!   uses least of the first capacity.

mod check;
mod document;
mod search;

pub use self::check::Checked;
pub use self::check::Verdict;
pub use self::check::Wrong;
pub use self::check::check;
pub use self::document::SCHEMA;
pub use self::search::DEFAULT_STATES;
