//! How policies choose: one file for each method, with everything that is the method's own: its keys and their defaults, the
//! variants of its section, its part of the action's document with the role of each field, and the choice itself, by algorithms
//! of [`crate::policy`]. A method that runs the model has its measurements in `work::policy`.
//!
//! `docs/architecture.md`, "Adding a method", has an example.

// Errors carry their places; they are made once and never on a hot path.
#![allow(clippy::result_large_err)]

mod budget;
mod constraints;
mod device;
mod header;
mod interface;
mod list;
mod measuring;
mod open;
mod problem;
mod rules;
mod section;
mod solving;

pub mod ashq1;
pub mod boost;
pub mod density;
pub mod error;
pub mod fisher;
pub mod manual;
pub mod measured;
pub mod mix;
pub mod prior;
pub mod rounding;

pub use budget::Budget;
pub use budget::BudgetDocument;
pub use budget::SizeOf;
pub use constraints::Constraints;
pub use constraints::ConstraintsDocument;
pub use device::Cache;
pub use device::CacheDocument;
pub use device::Device;
pub use device::DeviceDocument;
pub use header::HeaderDocument;
pub use interface::Chosen;
pub use interface::Measures;
pub use interface::Probing;
pub use interface::Solved;
pub use list::Method;
pub use list::MethodDocument;
pub use problem::MethodError;
pub use rules::Rule;
pub use rules::RuleDocument;
pub use rules::RuleType;
pub use solving::Solving;

pub(crate) use budget::WrittenBudget;
pub(crate) use interface::Inputs;
pub(crate) use interface::Material;
pub(crate) use interface::PolicyMethod;
pub(crate) use list::METHODS;
pub(crate) use list::MethodEntry;
pub(crate) use open::Open;
pub(crate) use open::Scope;
pub(crate) use section::PolicySection;
pub(crate) use solving::BaseChoice;
pub(crate) use solving::Limits;
pub(crate) use solving::check_feasible;
pub(crate) use solving::chosen;
