//! Collecting importances through llama.cpp's evaluation callback.
//!
//! The rules are those of `llama-imatrix`, so that its files and ours can be joined: weights of plain products
//! (`MUL_MAT`) count if they are called `blk.*`, or are `output.weight` and asked for, and have at least 16 rows of F32
//! input; weights of routed products (`MUL_MAT_ID`, mixtures of experts) always count, with sums and counts per expert.
//! A plain weight has one count, also if it is three-dimensional. Sums are kept in 64-bit floats here and rounded once.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::ffi::c_void;

use llama_cpp_sys_2 as ffi;

use crate::engine::EngineError;
use crate::imatrix::Entry;
use crate::imatrix::Imatrix;

/// Products of fewer rows do not count, as in `llama-imatrix`, so that generated tokens do not. A chunk is cut into batches of at
/// least this many tokens.
pub(super) const LEAST_ROWS: u32 = 16;

/// The sums of one weight.
struct Sums {
    columns: usize,
    /// `columns` per matrix.
    squares: Vec<f64>,
    /// One, or one per matrix.
    rows: Vec<u64>,
}

/// What the callback adds to.
pub(super) struct Collector {
    process_output: bool,
    chunk: usize,
    weights: BTreeMap<String, Sums>,
    failure: Option<EngineError>,
    /// Input that was copied from a device.
    input: Vec<f32>,
    /// Experts that rows were routed to.
    routes: Vec<u8>,
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

    fn rows(&self) -> usize {
        self.counts[1] * self.counts[2] * self.counts[3]
    }
}

impl Collector {
    pub(super) fn new(process_output: bool) -> Self {
        Self {
            process_output,
            chunk: 0,
            weights: BTreeMap::new(),
            failure: None,
            input: Vec::new(),
            routes: Vec::new(),
        }
    }

    pub(super) fn begin_chunk(&mut self, chunk: usize) {
        self.chunk = chunk;
    }

    pub(super) fn take_failure(&mut self) -> Option<EngineError> {
        self.failure.take()
    }

    /// Returns what was collected, of no data set yet.
    pub(super) fn finish(&mut self, chunks: u32, context: u32) -> Result<Imatrix, EngineError> {
        let mut entries = BTreeMap::new();
        for (name, sums) in std::mem::take(&mut self.weights) {
            let squares = sums.squares.iter().map(|sum| *sum as f32).collect();
            let rows = sums.rows.iter().map(|rows| *rows as f32).collect();
            let Some(entry) = Entry::new(squares, rows) else {
                let what = format!("{} sums for {} counts", sums.squares.len(), sums.rows.len());
                return Err(EngineError::Collect { tensor: name, what });
            };
            entries.insert(name, entry);
        }
        Ok(Imatrix {
            datasets: Vec::new(),
            chunk_count: chunks,
            chunk_size: context,
            entries,
        })
    }

    /// Returns true if the inputs of this product are to be collected.
    fn wants(&self, op: ffi::ggml_op, name: &str, input: &ffi::ggml_tensor) -> bool {
        if op == ffi::GGML_OP_MUL_MAT_ID {
            return true;
        }
        op == ffi::GGML_OP_MUL_MAT
            && input.ne[1] >= i64::from(LEAST_ROWS)
            && input.type_ == ffi::GGML_TYPE_F32
            && (name.starts_with("blk.") || (self.process_output && name == "output.weight"))
    }

    fn fail(&mut self, tensor: &str, what: String) {
        self.failure.get_or_insert(EngineError::Collect {
            tensor: tensor.to_owned(),
            what,
        });
    }

    /// Adds the inputs of a plain product.
    fn add_plain(&mut self, name: &str, weight: View, input: View, data: *const f32) {
        let columns = input.counts[0];
        let matrices = weight.counts[2] * weight.counts[3];
        if matrices == 0 || columns == 0 {
            return self.fail(name, "it is empty".to_owned());
        }
        let sums = self.weights.entry(name.to_owned()).or_insert_with(|| Sums {
            columns,
            squares: vec![0.0; columns * matrices],
            rows: vec![0],
        });
        if sums.squares.len() != columns * matrices || sums.columns != columns {
            return self.fail(
                name,
                format!("its input has {columns} columns and {matrices} matrices, unlike before"),
            );
        }
        for i3 in 0..input.counts[3] {
            for i2 in 0..input.counts[2] {
                let matrix = (i3 % weight.counts[3]) * weight.counts[2] + i2 % weight.counts[2];
                let squares = &mut sums.squares[matrix * columns..(matrix + 1) * columns];
                for row in 0..input.counts[1] {
                    let offset = row * input.strides[1] + i2 * input.strides[2] + i3 * input.strides[3];
                    // SAFETY: indices are within the tensor's counts, so the row of F32 lies within its data.
                    add_row(squares, unsafe {
                        std::slice::from_raw_parts(data.byte_add(offset), columns)
                    });
                }
            }
        }
        let added = (input.rows() / matrices) as u64;
        sums.rows.iter_mut().for_each(|rows| *rows += added);
        if !sums.squares.iter().all(|sum| sum.is_finite()) {
            self.failure.get_or_insert(EngineError::NonFiniteActivations {
                tensor: name.to_owned(),
                chunk: self.chunk,
            });
        }
    }

    /// Adds the inputs of a routed product. `routes` is `[experts per token, tokens]` of I32.
    fn add_routed(&mut self, name: &str, weight: View, input: View, data: *const f32, routes: View) {
        let columns = input.counts[0];
        let experts = weight.counts[2];
        if routes.counts[1] != input.counts[2] || input.counts[3] != 1 || input.counts[1] == 0 || experts == 0 {
            return self.fail(
                name,
                format!(
                    "its input has the shape {:?} and its routes {:?}",
                    input.counts, routes.counts
                ),
            );
        }
        let sums = self.weights.entry(name.to_owned()).or_insert_with(|| Sums {
            columns,
            squares: vec![0.0; columns * experts],
            rows: vec![0; experts],
        });
        if sums.squares.len() != columns * experts || sums.columns != columns {
            return self.fail(
                name,
                format!("its input has {columns} columns and {experts} experts, unlike before"),
            );
        }
        if sums.rows.len() != experts {
            let all = sums.rows[0];
            sums.rows = vec![all; experts];
        }
        for slot in 0..routes.counts[0] {
            for token in 0..input.counts[2] {
                let at = token * routes.strides[1] + slot * routes.strides[0];
                let route = self
                    .routes
                    .get(at..at + 4)
                    .and_then(|bytes| bytes.try_into().ok())
                    .map(i32::from_ne_bytes);
                let expert = route
                    .and_then(|expert| usize::try_from(expert).ok())
                    .filter(|expert| *expert < experts);
                let Some(expert) = expert else {
                    return self.fail(name, format!("a row is routed to expert {route:?} of {experts}"));
                };
                let offset = (slot % input.counts[1]) * input.strides[1] + token * input.strides[2];
                let squares = &mut sums.squares[expert * columns..(expert + 1) * columns];
                // SAFETY: indices are within the tensor's counts, so the row of F32 lies within its data.
                add_row(squares, unsafe {
                    std::slice::from_raw_parts(data.byte_add(offset), columns)
                });
                sums.rows[expert] += 1;
            }
        }
        if !sums.squares.iter().all(|sum| sum.is_finite()) {
            self.failure.get_or_insert(EngineError::NonFiniteActivations {
                tensor: name.to_owned(),
                chunk: self.chunk,
            });
        }
    }
}

/// Adds the squares of a row to the sums of its columns.
fn add_row(squares: &mut [f64], row: &[f32]) {
    for (sum, value) in squares.iter_mut().zip(row) {
        *sum += f64::from(*value) * f64::from(*value);
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

/// llama.cpp's evaluation callback. Asked first whether it wants a node, then called again when the node is computed;
/// returning false then ends the computation.
///
/// # Safety
///
/// `data` points to the [`Collector`] of this computation; nothing else uses it meanwhile.
pub(super) unsafe extern "C" fn receive(node: *mut ffi::ggml_tensor, ask: bool, data: *mut c_void) -> bool {
    // SAFETY: llama.cpp passes a live node of the graph and the data that the context was made with; the sources of a
    // product are live as well, and their data was computed before the node's.
    unsafe {
        let collector = &mut *data.cast::<Collector>();
        let (op, weight, input) = ((*node).op, (*node).src[0], (*node).src[1]);
        if (op != ffi::GGML_OP_MUL_MAT && op != ffi::GGML_OP_MUL_MAT_ID) || weight.is_null() || input.is_null() {
            return !ask;
        }
        let name = weight_name(&*weight);
        if ask {
            return collector.wants(op, &name, &*input);
        }
        if collector.failure.is_some() {
            return false;
        }
        let (Some(weight_view), Some(input_view)) = (View::of(&*weight), View::of(&*input)) else {
            collector.fail(&name, "it has a negative size".to_owned());
            return false;
        };
        if (*input).type_ != ffi::GGML_TYPE_F32 || input_view.strides[0] != 4 {
            collector.fail(&name, "its input is not rows of F32".to_owned());
            return false;
        }
        let mut copy = std::mem::take(&mut collector.input);
        let on_host = (*input).buffer.is_null() || ffi::ggml_backend_buffer_is_host((*input).buffer);
        let rows = if on_host {
            (*input).data.cast::<f32>().cast_const()
        } else {
            let length = ffi::ggml_nbytes(input);
            copy.resize(length.div_ceil(4), 0.0);
            ffi::ggml_backend_tensor_get(input, copy.as_mut_ptr().cast(), 0, length);
            copy.as_ptr()
        };
        if op == ffi::GGML_OP_MUL_MAT {
            collector.add_plain(&name, weight_view, input_view, rows);
        } else {
            let routes = (*node).src[2];
            match (!routes.is_null()).then(|| View::of(&*routes)).flatten() {
                Some(view) if (*routes).type_ == ffi::GGML_TYPE_I32 => {
                    let length = ffi::ggml_nbytes(routes);
                    collector.routes.resize(length, 0);
                    ffi::ggml_backend_tensor_get(routes, collector.routes.as_mut_ptr().cast(), 0, length);
                    collector.add_routed(&name, weight_view, input_view, rows, view);
                }
                _ => collector.fail(&name, "its rows are not routed by a table of numbers".to_owned()),
            }
        }
        collector.input = copy;
        collector.failure.is_none()
    }
}
