//! Gradients of a loss over a captured graph of ggml.
//!
//! llama.cpp computes a chunk as a list of nodes. `graph` describes that list without pointers. `needs` says which values the
//! gradient of each node takes, and through which nodes a gradient flows at all. `backward` goes through the nodes from the last to
//! the first and applies the chain rule: `rules` has the formulas of operations on single elements and rows, `products` those of
//! matrix products, `strided` reads and adds to parts of tensors. `sampling` makes the loss.
//!
//! ggml has a backward pass of its own, but it lacks products that are routed to experts (`MUL_MAT_ID`) and writes into the
//! key-value cache, and it would need the graph of training, not that of the model's evaluation.
//!
//! The code here is safe and does not know llama.cpp. Results do not depend on the number of threads: work is cut into tiles of
//! fixed sizes, and each tile adds in a fixed order.

pub(super) mod backward;
pub(super) mod graph;
pub(super) mod needs;
pub(super) mod products;
mod rules;
pub(super) mod sampling;
pub(super) mod strided;
