//! What errors in weights cost, from gradients, without measuring.
//!
//! A quantized weight W + E changes the distributions that the model predicts. For small errors the KL divergence is half of E's
//! quadratic form in the Fisher information: the mean of g gT, with g the gradient of the log-likelihood of a label that was sampled from
//! the model's own distribution. For a product W x, g = delta xT, with delta the gradient at the product's outputs. Taking tokens and
//! outputs as independent of each other,
//!
//! ```text
//! KLD = 1/(2T) sum_t sum_r delta_tr^2 (e_r x_t)^2
//! ```
//!
//! over T tokens and the rows e_r of E. This module also takes the size of a gradient as independent of the input, as K-FAC does
//! (Martens and Grosse, arXiv:1503.05671), so that two factors are left, which are collected once and price any error:
//!
//! ```text
//! KLD = 1/(2T) sum_r f_r (e_r H e_rT)      f_r = sum_t delta_tr^2      H = mean of x xT
//! ```
//!
//! H are the second moments of the input, which rounding uses, too. The output factor f has one number for each row of the weight. In a
//! mixture, sums are over the tokens that were routed to an expert, and T still counts all tokens: errors of experts that are seldom
//! used cost little. The router's decisions are taken as fixed; [`Routing`] adds what it costs that some change.

mod cost;
mod file;
mod input;
mod lookup;
mod output;
mod routing;
mod weight;

pub use cost::Shape;
pub use file::FactorsError;
pub use input::InputRounding;
pub use input::InputSums;
pub use lookup::LookupFactors;
pub use output::OutputFactors;
pub use routing::Measured;
pub use routing::Routing;
pub use weight::ModelFactors;
pub use weight::ProductFactors;
pub use weight::WeightFactors;
