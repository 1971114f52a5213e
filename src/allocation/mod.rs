//! Which option for each group, so that the total loss is least and the capacities hold: the multiple-choice knapsack, pure
//! and exact. It knows nothing of models; `docs/how-policies-work.md` says what the groups and options are.
//!
//! - [`Scale`] turns measured losses into integers. From there on all arithmetic is exact: "optimal" means optimal for these
//!   integers, and the result is the same on every machine and for any order of the input.
//! - [`Problem`] holds groups and options, checked and in canonical order.
//! - [`Solver`] shares what does not depend on the limits (the Pareto sets, the convex hulls) between several of them.
//! - [`Answer`] is an assignment with a lower bound that anybody can recompute from its multipliers, and says whether the
//!   assignment was proved optimal.
//! - [`document()`] writes answers down as `forge.certificate.v2`, for a checker that shares no code with this module
//!   ([`certificate`](../certificate/index.html)).
//!
//! One capacity: the linear relaxation over the lower convex hulls of all groups gives a multiplier and a bound; a greedy
//! choice gives an assignment; then states are kept for a core of groups that grows around the multiplier until none is
//! left that could be better (D. Pisinger, "A minimal algorithm for the multiple-choice knapsack problem", European Journal
//! of Operational Research 83, 1995). Several capacities: Lagrangian bound by subgradients, repair, reduced-cost fixing,
//! branch and bound. Both stop at a number of states, never by the clock.

mod answer;
mod close;
mod document;
mod effort;
mod greedy;
mod hull;
mod problem;
mod relax;
mod scale;
mod several;
mod solve;

pub use self::answer::Answer;
pub use self::answer::Multipliers;
pub use self::answer::Status;
pub use self::document::Base;
pub use self::document::SCHEMA;
pub use self::document::document;
pub use self::effort::DEFAULT_STATES;
pub use self::effort::Effort;
pub use self::problem::Candidate;
pub use self::problem::Capacity;
pub use self::problem::Group;
pub use self::problem::Problem;
pub use self::problem::ProblemError;
pub use self::scale::Scale;
pub use self::scale::ScaleError;
pub use self::solve::LimitsError;
pub use self::solve::Solver;
