//! Better codes for quantized tensors: the same type, the same scales or scales that ggml finds, the same file format.
//!
//! ggml's quantizers round every value by itself. What counts is the error of the output, which for a row with errors e = w - v is eT H e
//! with the second moments H = E\[x xT\] of the inputs. Two algorithms lower it: feedback of the errors (GPTQ) on scales that ggml finds for the
//! compensated columns, with coordinate descent after it; and coordinate descent from ggml's bytes, for codebooks, for types of 2 bits and for rows
//! that feedback hardly improves. Each row gets the bytes with the lowest objective, ggml's among them. So the objective of no row is above
//! that of ggml's bytes. Sources: GPTQ (arXiv:2210.17323), LDLQ (arXiv:2307.13304), QuantEase (arXiv:2309.01885).
//!
//! Pure algorithms: the kernels of ggml come in through [`Kernels`]. Results have the same bits for any number of threads, and on any processor
//! with fused multiplication and addition: all products are computed on one thread in an order that depends on their shapes alone, with
//! factors of 1 and -1 where kernels for different processors round differently otherwise.

mod codebook;
mod codec;
mod descent;
mod factor;
mod kernels;
mod objective;
mod panel;
mod products;

pub use self::codec::why_not_refined;
pub use self::factor::DAMPING;
pub use self::factor::Factor;
pub use self::factor::LEAST_IMPORTANCE;
pub use self::factor::MomentsError;
pub use self::kernels::Kernels;
pub use self::objective::squared_errors;
pub use self::panel::Outcome;
pub use self::panel::PANEL;
pub use self::panel::Panel;
pub use self::panel::Rounding;
pub use self::panel::Workspace;
