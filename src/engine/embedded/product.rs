//! The products of a computation: which weight, and with which input. llama.cpp's evaluation callback hands them out one by one.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::ffi::c_void;
use std::ops::ControlFlow;

use llama_cpp_sys_2 as ffi;

use crate::engine::EngineError;

/// A product before it is computed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Planned<'n> {
    /// The weight's name in the file.
    pub(super) weight: &'n str,
    /// Whether each row of the input goes through some of the weight's matrices only (`MUL_MAT_ID`, mixtures of experts).
    pub(super) routed: bool,
    /// Whether the input is 32-bit floats.
    pub(super) is_f32: bool,
    /// Rows of the input in the product's second dimension.
    pub(super) rows: u64,
    /// The length of the rows.
    pub(super) columns: u64,
    /// The weight's matrices.
    pub(super) matrices: u64,
    /// What tells inputs apart within one computation.
    pub(super) input: (usize, usize),
}

/// A product that was computed.
pub(super) struct Computed<'n> {
    /// The weight's name in the file.
    pub(super) weight: &'n str,
    /// The length of the rows.
    pub(super) columns: usize,
    /// The weight's matrices.
    pub(super) matrices: usize,
    /// Whether the rows are routed.
    pub(super) routed: bool,
    weight_counts: [usize; 4],
    input: View,
    /// The first number of the input, which lives as long as this value.
    data: *const f32,
    /// For each slot and token the matrix, if the product is routed.
    routes: Option<(View, &'n [u8])>,
}

/// What listens to products.
pub(super) trait Listener {
    /// Hears which chunk is computed next.
    fn begin_chunk(&mut self, _chunk: usize) {}

    /// Says whether the input of a product is wanted.
    fn wants(&mut self, product: Planned<'_>) -> bool;

    /// Receives a product that was wanted. Its error ends the computation; a break ends it, too, and is no error.
    fn receive(&mut self, product: &Computed<'_>) -> Result<ControlFlow<()>, EngineError>;
}

/// A listener, and what the callback needs beside it.
pub(super) struct Listening<L> {
    pub(super) listener: L,
    failure: Option<EngineError>,
    /// Input that was copied from a device.
    copy: Vec<f32>,
    routes: Vec<u8>,
}

impl<L: Listener> Listening<L> {
    pub(super) fn new(listener: L) -> Self {
        Self {
            listener,
            failure: None,
            copy: Vec::new(),
            routes: Vec::new(),
        }
    }

    pub(super) fn take_failure(&mut self) -> Option<EngineError> {
        self.failure.take()
    }

    /// Returns llama.cpp's evaluation callback for this listener: its data is a `Listening<L>`.
    pub(super) fn callback() -> super::sys::Callback {
        receive::<L>
    }
}

/// A tensor's fields that are needed here, copied.
#[derive(Clone, Copy)]
struct View {
    counts: [usize; 4],
    strides: [usize; 4],
}

impl View {
    /// Returns the tensor's shape, `None` if a size is negative.
    fn of(tensor: &ffi::ggml_tensor) -> Option<Self> {
        let mut counts = [0; 4];
        for (count, from) in counts.iter_mut().zip(tensor.ne) {
            *count = usize::try_from(from).ok()?;
        }
        Some(Self {
            counts,
            strides: tensor.nb,
        })
    }
}

fn failed(weight: &str, what: impl Into<String>) -> EngineError {
    EngineError::Collect {
        tensor: weight.to_owned(),
        what: what.into(),
    }
}

impl Computed<'_> {
    /// Returns how many rows the input has.
    pub(super) fn rows(&self) -> usize {
        self.input.counts[1] * self.input.counts[2] * self.input.counts[3]
    }

    /// Calls `each` with every row of the input and the matrix that it goes through: once for each of them if it is routed.
    ///
    /// # Errors
    ///
    /// [`EngineError::Collect`] if the shapes do not fit together.
    pub(super) fn each_row(&self, each: &mut dyn FnMut(usize, &[f32])) -> Result<(), EngineError> {
        if self.matrices == 0 || self.columns == 0 {
            return Err(failed(self.weight, "it is empty"));
        }
        let row = |offset: usize| {
            // SAFETY: callers pass offsets of indices within the tensor's counts, so the row of F32 lies within its data.
            unsafe { std::slice::from_raw_parts(self.data.byte_add(offset), self.columns) }
        };
        let View { counts, strides } = self.input;
        let Some((routes, table)) = &self.routes else {
            for i3 in 0..counts[3] {
                for i2 in 0..counts[2] {
                    let [_, _, w2, w3] = self.weight_counts;
                    let matrix = (i3 % w3) * w2 + i2 % w2;
                    for i1 in 0..counts[1] {
                        each(matrix, row(i1 * strides[1] + i2 * strides[2] + i3 * strides[3]));
                    }
                }
            }
            return Ok(());
        };
        if routes.counts[1] != counts[2] || counts[3] != 1 || counts[1] == 0 {
            let what = format!("its input has the shape {counts:?} and its routes {:?}", routes.counts);
            return Err(failed(self.weight, what));
        }
        for slot in 0..routes.counts[0] {
            for token in 0..counts[2] {
                let at = token * routes.strides[1] + slot * routes.strides[0];
                let route = table.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
                let route = route.map(i32::from_ne_bytes);
                let expert = route.and_then(|expert| usize::try_from(expert).ok());
                let Some(expert) = expert.filter(|expert| *expert < self.matrices) else {
                    let what = format!("a row is routed to expert {route:?} of {}", self.matrices);
                    return Err(failed(self.weight, what));
                };
                each(expert, row((slot % counts[1]) * strides[1] + token * strides[2]));
            }
        }
        Ok(())
    }
}

/// Returns the weight's name in the file: a copy on a device is called `device#name#number`.
fn weight_name(tensor: &ffi::ggml_tensor) -> String {
    // SAFETY: ggml keeps names zero-terminated in their 64 bytes.
    let name = unsafe { CStr::from_ptr(tensor.name.as_ptr()) }.to_string_lossy();
    name.split('#')
        .nth(1)
        .map_or_else(|| name.clone().into_owned(), str::to_owned)
}

fn planned<'n>(
    node: &ffi::ggml_tensor,
    weight: &'n str,
    of_weight: &ffi::ggml_tensor,
    input: &ffi::ggml_tensor,
) -> Planned<'n> {
    let count = |count: i64| u64::try_from(count).unwrap_or(0);
    let routed = node.op == ffi::GGML_OP_MUL_MAT_ID;
    Planned {
        weight,
        routed,
        is_f32: input.type_ == ffi::GGML_TYPE_F32,
        rows: count(input.ne[1]),
        columns: count(input.ne[0]),
        matrices: count(of_weight.ne[2]).saturating_mul(count(of_weight.ne[3])),
        input: (
            std::ptr::from_ref(input).addr(),
            if routed { node.src[2].addr() } else { 0 },
        ),
    }
}

/// llama.cpp's evaluation callback. Asked first whether it wants a node, then called again when the node is computed;
/// returning false then ends the computation.
///
/// # Safety
///
/// `data` points to the [`Listening`] of this computation; nothing else uses it meanwhile.
unsafe extern "C" fn receive<L: Listener>(node: *mut ffi::ggml_tensor, ask: bool, data: *mut c_void) -> bool {
    // SAFETY: llama.cpp passes a live node of the graph and the data that the context was made with; the sources of a
    // product are live as well, and their data was computed before the node's.
    unsafe {
        let listening = &mut *data.cast::<Listening<L>>();
        let (op, weight, input) = ((*node).op, (*node).src[0], (*node).src[1]);
        if (op != ffi::GGML_OP_MUL_MAT && op != ffi::GGML_OP_MUL_MAT_ID) || weight.is_null() || input.is_null() {
            return !ask;
        }
        let name = weight_name(&*weight);
        if ask {
            return listening.listener.wants(planned(&*node, &name, &*weight, &*input));
        }
        if listening.failure.is_some() {
            return false;
        }
        match receive_computed(listening, &*node, &name, &*weight, input) {
            Ok(flow) => flow.is_continue(),
            Err(error) => {
                listening.failure = Some(error);
                false
            }
        }
    }
}

/// Passes a product on.
///
/// # Safety
///
/// The node was computed, and these are its weight and its input.
unsafe fn receive_computed<L: Listener>(
    listening: &mut Listening<L>,
    node: &ffi::ggml_tensor,
    name: &str,
    weight: &ffi::ggml_tensor,
    input: *const ffi::ggml_tensor,
) -> Result<ControlFlow<()>, EngineError> {
    // SAFETY: the input is live and computed, its bytes are `ggml_nbytes` long, and buffers are resized to that.
    unsafe {
        let (Some(of_weight), Some(of_input)) = (View::of(weight), View::of(&*input)) else {
            return Err(failed(name, "it has a negative size"));
        };
        if (*input).type_ != ffi::GGML_TYPE_F32 || of_input.strides[0] != 4 {
            return Err(failed(name, "its input is not rows of F32"));
        }
        let on_host = (*input).buffer.is_null() || ffi::ggml_backend_buffer_is_host((*input).buffer);
        let data = if on_host {
            (*input).data.cast::<f32>().cast_const()
        } else {
            let length = ffi::ggml_nbytes(input);
            listening.copy.resize(length.div_ceil(4), 0.0);
            ffi::ggml_backend_tensor_get(input, listening.copy.as_mut_ptr().cast(), 0, length);
            listening.copy.as_ptr()
        };
        let routed = node.op == ffi::GGML_OP_MUL_MAT_ID;
        let routes = if routed {
            let routes = node.src[2];
            let view = (!routes.is_null()).then(|| View::of(&*routes)).flatten();
            let Some(view) = view.filter(|_| (*routes).type_ == ffi::GGML_TYPE_I32) else {
                return Err(failed(name, "its rows are not routed by a table of numbers"));
            };
            let length = ffi::ggml_nbytes(routes);
            listening.routes.resize(length, 0);
            ffi::ggml_backend_tensor_get(routes, listening.routes.as_mut_ptr().cast(), 0, length);
            Some((view, listening.routes.as_slice()))
        } else {
            None
        };
        let computed = Computed {
            weight: name,
            columns: of_input.counts[0],
            matrices: of_weight.counts[2] * of_weight.counts[3],
            routed,
            weight_counts: of_weight.counts,
            input: of_input,
            data,
            routes,
        };
        listening.listener.receive(&computed)
    }
}
