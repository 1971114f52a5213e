//! How long the work of a build takes: the amounts of work that steps need, the speeds of this machine, what earlier builds took,
//! and the time that is left while a build runs. None of it is part of a key, and no result depends on it.
//!
//! An estimate is the sum of amounts divided by speeds ([`amounts`], [`speeds`]). Speeds are measured once on each machine
//! ([`calibration`]) and kept in the store. What builds really take is recorded as corrections of these estimates, by phase and by model
//! ([`history`]). While a build runs, the progress of its steps corrects the estimates of the rest ([`forecast`]).

pub mod amounts;
pub mod calibration;
pub mod forecast;
pub mod forward;
pub mod history;
pub mod phase;
pub mod record;
pub mod speeds;

pub use amounts::Amounts;
pub use amounts::Operation;
pub use forecast::Expected;
pub use forecast::Forecast;
pub use forecast::Took;
pub use forward::Forward;
pub use forward::Purpose;
pub use history::History;
pub use phase::PhaseWork;
pub use phase::TimeRange;
pub use record::Timing;
pub use speeds::Speeds;
