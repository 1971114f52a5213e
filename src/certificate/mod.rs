//! Checks certificates of allocations: is what a certificate claims true of the problem that it states?
//!
//! The checker shares no code with the solver (`allocation`), and neither names the other: it has its own reader of the
//! document, its own arithmetic and its own search. It computes sums, bounds and gaps from the
//! problem, and does not use the stated ones. If an assignment is claimed to be optimal, it proves by its own search that
//! no better one exists.
//!
//! What makes a claim true:
//! - **gap**: the choice is within the limits and has the stated loss and uses; the bound is that of the stated multipliers
//!   (weak duality: any multipliers that are not negative give one); the gap is their difference.
//! - **optimal**: all this, and no assignment within the limits has less loss. By the bound, an option whose reduced cost is
//!   larger than the gap is in no better assignment; over the options that are left, plain dynamic programming goes
//!   through all assignments, group by group.
//! - **difference**: the losses are differences to a base. Its options have the loss 0, and the predicted loss of an answer is the
//!   loss of the base plus that of the answer without its penalties, rounded as documented in `cache-schema/README.md`.
//! - **below-minimum**: for some capacity even the smallest options exceed the limit, and the choice is the assignment that
//!   uses least of the first capacity.

mod check;
mod document;
mod search;

pub use self::check::CertificateError;
pub use self::check::Checked;
pub use self::check::Predicted;
pub use self::check::Verdict;
pub use self::check::check;
pub use self::document::Losses;
pub use self::document::SCHEMA;
pub use self::search::DEFAULT_STATES;
