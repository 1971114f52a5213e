//! Captures the graph that llama.cpp computes, and the numbers of its tensors, for gradients.
//!
//! The graph is learned once, without computing anything. When a chunk is computed, the values that gradients need are copied right
//! after the node that writes them: ggml reuses the memory of tensors that no later node reads. A range of nodes can be computed
//! again from what earlier nodes left, as in `checkpoint`; llama.cpp skips a node without the flag for computing.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::ffi::CStr;
use std::ffi::c_void;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use llama_cpp_sys_2 as ffi;

use super::quantize::dequantize_rows;
use crate::engine::EngineError;
use crate::engine::adjoint::graph::Gate;
use crate::engine::adjoint::graph::Graph;
use crate::engine::adjoint::graph::Node;
use crate::engine::adjoint::graph::Op;
use crate::engine::adjoint::graph::Operand;
use crate::engine::adjoint::graph::Place;
use crate::engine::adjoint::graph::Rope;
use crate::engine::adjoint::graph::Storage;
use crate::engine::adjoint::graph::Unary;
use crate::engine::adjoint::needs::Needs;
use crate::engine::adjoint::needs::Segment;
use crate::engine::adjoint::products::Weights;
use crate::engine::adjoint::strided::Value;
use crate::engine::adjoint::strided::Values;
use crate::tensor_type::TensorType;

/// The flag of a node that is to be computed.
const COMPUTE: i32 = ffi::GGML_TENSOR_FLAG_COMPUTE.cast_signed();
/// The flag of a tensor that is set from outside.
const INPUT: i32 = ffi::GGML_TENSOR_FLAG_INPUT.cast_signed();

type Pointer = NonNull<ffi::ggml_tensor>;

fn text(name: &[std::ffi::c_char; 64]) -> String {
    let bytes: Vec<u8> = name.iter().map(|byte| byte.cast_unsigned()).collect();
    CStr::from_bytes_until_nul(&bytes).map_or_else(|_| String::new(), |text| text.to_string_lossy().into_owned())
}

fn float(params: &[i32; 16], at: usize) -> f32 {
    f32::from_bits(params[at].cast_unsigned())
}

/// Returns the function of an operation on single numbers.
fn unary(number: ffi::ggml_unary_op) -> Option<Unary> {
    Some(match number {
        ffi::GGML_UNARY_OP_ABS => Unary::Abs,
        ffi::GGML_UNARY_OP_NEG => Unary::Neg,
        ffi::GGML_UNARY_OP_TANH => Unary::Tanh,
        ffi::GGML_UNARY_OP_ELU => Unary::Elu,
        ffi::GGML_UNARY_OP_RELU => Unary::Relu,
        ffi::GGML_UNARY_OP_SIGMOID => Unary::Sigmoid,
        ffi::GGML_UNARY_OP_GELU => Unary::Gelu,
        ffi::GGML_UNARY_OP_GELU_QUICK => Unary::GeluQuick,
        ffi::GGML_UNARY_OP_GELU_ERF => Unary::GeluErf,
        ffi::GGML_UNARY_OP_SILU => Unary::Silu,
        ffi::GGML_UNARY_OP_EXP => Unary::Exp,
        ffi::GGML_UNARY_OP_SOFTPLUS => Unary::Softplus,
        _ => return None,
    })
}

fn gate(number: ffi::ggml_glu_op, params: &[i32; 16]) -> Option<Gate> {
    Some(match number {
        ffi::GGML_GLU_OP_REGLU => Gate::Of(Unary::Relu),
        ffi::GGML_GLU_OP_GEGLU => Gate::Of(Unary::Gelu),
        ffi::GGML_GLU_OP_SWIGLU => Gate::Of(Unary::Silu),
        ffi::GGML_GLU_OP_GEGLU_ERF => Gate::Of(Unary::GeluErf),
        ffi::GGML_GLU_OP_GEGLU_QUICK => Gate::Of(Unary::GeluQuick),
        ffi::GGML_GLU_OP_SWIGLU_OAI => Gate::Oai {
            alpha: float(params, 2),
            limit: float(params, 3),
        },
        ffi::GGML_GLU_OP_SWIGLU_CLAMP => Gate::Clamped {
            limit: float(params, 3),
        },
        _ => return None,
    })
}

fn rope(params: &[i32; 16]) -> Option<Rope> {
    let halves = match params[2] {
        0 => false,
        2 => true,
        _ => return None,
    };
    Some(Rope {
        dimensions: usize::try_from(params[1]).ok()?,
        first: usize::try_from(params[15]).ok()?,
        halves,
        original_context: params[4],
        base: float(params, 5),
        scale: float(params, 6),
        extrapolation: float(params, 7),
        magnitude: float(params, 8),
        beta_fast: float(params, 9),
        beta_slow: float(params, 10),
    })
}

/// Returns what a node does.
fn op(node: &ffi::ggml_tensor) -> Op {
    let params = &node.op_params;
    let known = match node.op {
        ffi::GGML_OP_ADD => Some(Op::Add),
        ffi::GGML_OP_SUB => Some(Op::Sub),
        ffi::GGML_OP_MUL => Some(Op::Mul),
        ffi::GGML_OP_DIV => Some(Op::Div),
        ffi::GGML_OP_ADD_ID => Some(Op::AddId),
        ffi::GGML_OP_SCALE => Some(Op::Scale(float(params, 0))),
        ffi::GGML_OP_RMS_NORM => Some(Op::RmsNorm(float(params, 0))),
        ffi::GGML_OP_NORM => Some(Op::Norm(float(params, 0))),
        ffi::GGML_OP_L2_NORM => Some(Op::L2Norm(float(params, 0))),
        ffi::GGML_OP_ROPE => rope(params).map(Op::Rope),
        ffi::GGML_OP_SOFT_MAX => Some(Op::SoftMax(float(params, 0))),
        ffi::GGML_OP_GLU => gate(params[0].cast_unsigned(), params).map(|gate| Op::Glu {
            gate,
            swapped: params[1] != 0,
        }),
        ffi::GGML_OP_UNARY => unary(params[0].cast_unsigned()).map(Op::Unary),
        ffi::GGML_OP_SQR => Some(Op::Unary(Unary::Square)),
        ffi::GGML_OP_SQRT => Some(Op::Unary(Unary::Root)),
        ffi::GGML_OP_LOG => Some(Op::Unary(Unary::Log)),
        ffi::GGML_OP_CLAMP => Some(Op::Unary(Unary::Clamp(float(params, 0), float(params, 1)))),
        ffi::GGML_OP_SUM_ROWS => Some(Op::SumRows),
        ffi::GGML_OP_MEAN => Some(Op::Mean),
        ffi::GGML_OP_REPEAT => Some(Op::Repeat),
        ffi::GGML_OP_CONCAT => usize::try_from(params[0]).ok().filter(|at| *at < 4).map(Op::Concat),
        ffi::GGML_OP_DUP | ffi::GGML_OP_CPY | ffi::GGML_OP_CONT => Some(Op::Copy),
        ffi::GGML_OP_GET_ROWS => Some(Op::GetRows),
        ffi::GGML_OP_SET_ROWS => Some(Op::SetRows),
        ffi::GGML_OP_MUL_MAT => Some(Op::MulMat),
        ffi::GGML_OP_MUL_MAT_ID => Some(Op::MulMatId),
        ffi::GGML_OP_ARGSORT | ffi::GGML_OP_TOP_K | ffi::GGML_OP_ARGMAX | ffi::GGML_OP_FILL | ffi::GGML_OP_ARANGE => {
            Some(Op::Constant)
        }
        _ => None,
    };
    known.unwrap_or_else(|| {
        // SAFETY: the node is live; ggml returns a literal.
        let name = unsafe { CStr::from_ptr(ffi::ggml_op_desc(node)) };
        Op::Unknown(name.to_string_lossy().into_owned())
    })
}

/// What is known while the graph is learned.
#[derive(Default)]
pub(super) struct Learning {
    graph: Graph,
    storages: HashMap<usize, usize>,
    versions: HashMap<usize, usize>,
    weights: BTreeMap<usize, Pointer>,
    failure: Option<EngineError>,
}

/// What was learned: the graph, and the model's weights by the number of their storage.
pub(super) struct Learned {
    pub(super) graph: Graph,
    pub(super) weights: BTreeMap<usize, Pointer>,
}

/// Returns what a tensor is a view of, or itself.
fn root(tensor: &ffi::ggml_tensor, pointer: Pointer) -> Pointer {
    NonNull::new(tensor.view_src).unwrap_or(pointer)
}

impl Learning {
    fn fail(&mut self, node: &str, what: &str) {
        self.failure.get_or_insert(EngineError::Gradient {
            node: node.to_owned(),
            what: what.to_owned(),
        });
    }

    /// # Safety
    ///
    /// The node and its sources are live.
    unsafe fn add(&mut self, pointer: Pointer) {
        // SAFETY: the caller's promise; sources are live or null.
        unsafe {
            let node = pointer.as_ref();
            let moves_nothing = matches!(
                node.op,
                ffi::GGML_OP_NONE
                    | ffi::GGML_OP_RESHAPE
                    | ffi::GGML_OP_VIEW
                    | ffi::GGML_OP_PERMUTE
                    | ffi::GGML_OP_TRANSPOSE
            );
            let is_idle = moves_nothing || node.flags & COMPUTE == 0;
            let mut sources: Vec<Option<Operand>> = Vec::new();
            if !is_idle {
                for source in node.src {
                    let source = NonNull::new(source);
                    // A copy to a new tensor names itself as its second source.
                    let source = source.filter(|source| *source != pointer);
                    sources.push(source.map(|source| self.operand(source, None)));
                }
            }
            let at = self.graph.nodes.len();
            let output = self.operand(pointer, Some(at));
            if !is_idle {
                *self.versions.entry(output.storage).or_insert(0) += 1;
            }
            let version = self.versions.get(&output.storage).copied().unwrap_or(0);
            self.graph.nodes.push(Node {
                name: text(&node.name),
                op: op(node),
                output: Operand { version, ..output },
                sources,
                is_idle,
            });
        }
    }

    /// Returns a tensor as a part of its storage.
    ///
    /// # Safety
    ///
    /// The tensor is live, and so is what it is a view of.
    unsafe fn operand(&mut self, pointer: Pointer, node: Option<usize>) -> Operand {
        // SAFETY: the caller's promise.
        unsafe {
            let tensor = pointer.as_ref();
            let root = root(tensor, pointer);
            let storage = self.storage(root, node);
            let name = text(&tensor.name);
            let size = ffi::ggml_type_size(tensor.type_).max(1);
            let blocks = ffi::ggml_blck_size(tensor.type_) > 1;
            let mut counts = [0; 4];
            let mut strides = [0; 4];
            for dimension in 0..4 {
                counts[dimension] = usize::try_from(tensor.ne[dimension]).unwrap_or(0);
                strides[dimension] = tensor.nb[dimension] / size;
            }
            let mut offset = 0;
            if tensor.type_ != root.as_ref().type_ {
                self.fail(&name, "it reads numbers of another type");
            } else if pointer != root {
                if blocks || !tensor.view_offs.is_multiple_of(size) {
                    self.fail(&name, "it is a part of a quantized tensor");
                }
                offset = tensor.view_offs / size;
            }
            Operand {
                storage,
                version: self.versions.get(&storage).copied().unwrap_or(0),
                offset,
                counts,
                strides,
                is_real: !matches!(
                    tensor.type_,
                    ffi::GGML_TYPE_I8 | ffi::GGML_TYPE_I16 | ffi::GGML_TYPE_I32 | ffi::GGML_TYPE_I64
                ),
            }
        }
    }

    /// # Safety
    ///
    /// The tensor is live.
    unsafe fn storage(&mut self, root: Pointer, node: Option<usize>) -> usize {
        let address = root.as_ptr() as usize;
        if let Some(known) = self.storages.get(&address) {
            return *known;
        }
        // SAFETY: the caller's promise; a buffer lives as long as its tensors.
        unsafe {
            let fields = root.as_ref();
            let name = text(&fields.name);
            let is_weight = !fields.buffer.is_null()
                && ffi::ggml_backend_buffer_get_usage(fields.buffer) == ffi::GGML_BACKEND_BUFFER_USAGE_WEIGHTS;
            if !fields.buffer.is_null() && !ffi::ggml_backend_buffer_is_host(fields.buffer) {
                self.fail(&name, "it is not in the memory of this program");
            }
            let place = match (is_weight, node, fields.op) {
                (true, ..) => Place::Weight,
                (false, Some(_), _) => Place::Node,
                _ if fields.flags & INPUT != 0 => Place::Input,
                (_, _, ffi::GGML_OP_NONE) => Place::Memory,
                _ => Place::Node,
            };
            let mut counts = [0; 4];
            for (count, from) in counts.iter_mut().zip(fields.ne) {
                *count = usize::try_from(from).unwrap_or(0);
            }
            if !ffi::ggml_is_contiguous(root.as_ptr()) {
                self.fail(&name, "its rows do not follow each other in memory");
            }
            let at = self.graph.storages.len();
            self.graph.storages.push(Storage {
                name,
                place,
                len: counts.iter().product(),
                counts,
            });
            self.storages.insert(address, at);
            if place == Place::Weight {
                self.weights.insert(at, root);
            }
            at
        }
    }
}

/// What a storage's tensor held, as bytes.
type Held = Vec<(usize, Vec<u8>)>;

/// What is to be done in one computation of a chunk.
pub(super) struct Run {
    /// The nodes to compute.
    nodes: Range<usize>,
    /// The nodes whose values are to be captured.
    capture: Range<usize>,
    /// What the nodes begin with.
    from: Held,
    /// The beginnings of segments at which to keep what they begin with.
    keep: BTreeMap<usize, Vec<usize>>,
    /// What was kept, by the beginning of a segment.
    pub(super) kept: BTreeMap<usize, Held>,
    pub(super) values: Values,
    next: usize,
    tensors: HashMap<usize, Pointer>,
    failure: Option<EngineError>,
}

impl Run {
    /// Computes everything, keeps what each segment begins with, and captures the values of the last one.
    pub(super) fn first(segments: &[Segment]) -> Self {
        let end = segments.last().map_or(0, |segment| segment.nodes.end);
        let capture = segments.last().map_or(0..0, |segment| segment.nodes.clone());
        let keep = segments.iter().filter(|segment| segment.nodes.start > 0);
        Self::new(
            0..end,
            capture,
            Vec::new(),
            keep.map(|segment| (segment.nodes.start, segment.begins_with.clone()))
                .collect(),
        )
    }

    /// Computes a segment again and captures its values.
    pub(super) fn again(segment: &Segment, from: Held) -> Self {
        Self::new(segment.nodes.clone(), segment.nodes.clone(), from, BTreeMap::new())
    }

    fn new(nodes: Range<usize>, capture: Range<usize>, from: Held, keep: BTreeMap<usize, Vec<usize>>) -> Self {
        Self {
            nodes,
            capture,
            from,
            keep,
            kept: BTreeMap::new(),
            values: Values::new(),
            next: 0,
            tensors: HashMap::new(),
            failure: None,
        }
    }
}

/// What the callback does.
enum Task {
    Learn(Box<Learning>),
    Run(Box<Run>),
}

/// What llama.cpp's callback is given.
#[derive(Default)]
pub(super) struct Trace {
    learned: Option<Arc<(Graph, Needs)>>,
    task: Option<Task>,
}

impl Trace {
    /// Makes the next computation one that learns the graph and computes nothing.
    pub(super) fn learn(&mut self) {
        self.task = Some(Task::Learn(Box::default()));
    }

    /// Takes what was learned.
    ///
    /// # Errors
    ///
    /// Something that is not as this module takes it to be.
    pub(super) fn take_learned(&mut self) -> Result<Learned, EngineError> {
        let Some(Task::Learn(learning)) = self.task.take() else {
            return Ok(Learned {
                graph: Graph::default(),
                weights: BTreeMap::new(),
            });
        };
        match learning.failure {
            Some(failure) => Err(failure),
            None => Ok(Learned {
                graph: learning.graph,
                weights: learning.weights,
            }),
        }
    }

    /// Says what to capture from now on.
    pub(super) fn set(&mut self, graph: Graph, needs: Needs) {
        self.learned = Some(Arc::new((graph, needs)));
    }

    pub(super) fn learned(&self) -> Option<&Arc<(Graph, Needs)>> {
        self.learned.as_ref()
    }

    /// Makes the next computation one of a chunk.
    pub(super) fn run(&mut self, run: Run) {
        self.task = Some(Task::Run(Box::new(run)));
    }

    /// Ends a computation.
    ///
    /// # Errors
    ///
    /// A graph that is not the one that was learned.
    pub(super) fn take_run(&mut self) -> Result<Run, EngineError> {
        let nodes = self.learned.as_ref().map_or(0, |learned| learned.0.nodes.len());
        match self.task.take() {
            Some(Task::Run(mut run)) => match run.failure.take() {
                Some(failure) => Err(failure),
                None if run.next == nodes => Ok(*run),
                None => Err(changed("the last one")),
            },
            _ => Err(changed("the first one")),
        }
    }
}

fn changed(node: &str) -> EngineError {
    EngineError::Gradient {
        node: node.to_owned(),
        what: "the graph differs from the one that was learned".to_owned(),
    }
}

/// Returns the bytes of a tensor.
///
/// # Safety
///
/// The tensor is live and not being written to.
unsafe fn bytes(tensor: Pointer) -> Vec<u8> {
    // SAFETY: the caller's promise; the buffer has the length that is read.
    unsafe {
        let mut bytes = vec![0_u8; ffi::ggml_nbytes(tensor.as_ptr())];
        ffi::ggml_backend_tensor_get(tensor.as_ptr(), bytes.as_mut_ptr().cast(), 0, bytes.len());
        bytes
    }
}

/// Copies a tensor that is no view.
///
/// # Safety
///
/// The tensor is live and not being written to.
unsafe fn value(tensor: Pointer) -> Result<Value, EngineError> {
    // SAFETY: the caller's promise.
    let (fields, bytes) = unsafe { (tensor.as_ref(), bytes(tensor)) };
    match fields.type_ {
        ffi::GGML_TYPE_I32 => Ok(Value::Whole(
            bytes
                .chunks_exact(4)
                .map(|b| i64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]])))
                .collect(),
        )),
        ffi::GGML_TYPE_I64 => Ok(Value::Whole(
            bytes
                .chunks_exact(8)
                .map(|b| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
                .collect(),
        )),
        ty => {
            let unknown = || EngineError::Gradient {
                node: text(&fields.name),
                what: format!("numbers of ggml's type {ty} cannot be read"),
            };
            let ty = TensorType::from_id(ty).ok_or_else(unknown)?;
            let columns = u64::try_from(fields.ne[0]).unwrap_or(0);
            let len = fields
                .ne
                .iter()
                .map(|count| usize::try_from(*count).unwrap_or(0))
                .product();
            let mut values = vec![0.0; len];
            dequantize_rows(ty, &bytes, columns, &mut values)?;
            Ok(Value::Real(values))
        }
    }
}

impl Run {
    /// Notes a node before it is computed, and says whether to stop after it.
    ///
    /// # Safety
    ///
    /// The node and its sources are live and nothing is being computed.
    unsafe fn ask(&mut self, (graph, needs): &(Graph, Needs), mut pointer: Pointer) -> bool {
        let at = self.next;
        self.next += 1;
        // SAFETY: the caller's promise.
        let fields = unsafe { pointer.as_mut() };
        let known = graph.nodes.get(at).filter(|node| node.name == text(&fields.name));
        let Some(node) = known.filter(|_| self.failure.is_none()) else {
            self.failure.get_or_insert_with(|| changed(&text(&fields.name)));
            return true;
        };
        if node.is_idle {
            return false;
        }
        if self.nodes.contains(&at) {
            fields.flags |= COMPUTE;
        } else {
            fields.flags &= !COMPUTE;
        }
        self.tensors.insert(node.output.storage, root(fields, pointer));
        if self.capture.contains(&at) && needs.flows[at].is_some() {
            for (source, operand) in fields.src.iter().zip(&node.sources) {
                let (Some(source), Some(operand)) = (NonNull::new(*source), operand) else {
                    continue;
                };
                let wanted = operand.version == 0 && needs.has(operand.value());
                if wanted && !self.values.contains_key(&operand.value()) {
                    // SAFETY: as above; what a live tensor is a view of is live.
                    let read = unsafe { value(root(source.as_ref(), source)) };
                    self.put(operand.value(), read);
                }
            }
        }
        let next = at + 1;
        (self.capture.contains(&at) && needs.after(at).is_some())
            || self.keep.contains_key(&next)
            || next == self.capture.start
            || next == self.nodes.start
    }

    fn put(&mut self, key: (usize, usize), read: Result<Value, EngineError>) {
        match read {
            Ok(value) => {
                self.values.insert(key, value);
            }
            Err(failure) => {
                self.failure.get_or_insert(failure);
            }
        }
    }

    /// Captures, keeps and puts back values between two nodes.
    ///
    /// # Safety
    ///
    /// The tensors are live, and nothing is being computed.
    unsafe fn between(&mut self, (graph, needs): &(Graph, Needs)) {
        if self.failure.is_some() {
            return;
        }
        let next = self.next;
        // SAFETY: the caller's promise; lengths are checked.
        unsafe {
            if next == self.nodes.start {
                for (storage, bytes) in &self.from {
                    match self.tensors.get(storage) {
                        Some(tensor) if ffi::ggml_nbytes(tensor.as_ptr()) == bytes.len() => {
                            ffi::ggml_backend_tensor_set(tensor.as_ptr(), bytes.as_ptr().cast(), 0, bytes.len());
                        }
                        _ => self.failure = Some(changed(&graph.storages[*storage].name)),
                    }
                }
            }
            let before = next.checked_sub(1).filter(|before| self.capture.contains(before));
            if let Some(key) = before.and_then(|before| needs.after(before)) {
                match self.tensors.get(&key.0).copied() {
                    Some(tensor) => {
                        let read = value(tensor);
                        self.put(key, read);
                    }
                    None => self.failure = Some(changed(&graph.storages[key.0].name)),
                }
            }
            let segment = needs.segments.iter().find(|segment| segment.nodes.start == next);
            let segment = segment.filter(|_| next == self.capture.start);
            for storage in segment.iter().flat_map(|segment| &segment.begins_with) {
                // What earlier nodes have left, and the segment's gradients need.
                let writes = graph.nodes[..next].iter().filter(|node| !node.is_idle);
                let version = writes.filter(|node| node.output.storage == *storage).count();
                if needs.has((*storage, version)) {
                    match self.tensors.get(storage).copied() {
                        Some(tensor) => {
                            let read = value(tensor);
                            self.put((*storage, version), read);
                        }
                        None => self.failure = Some(changed(&graph.storages[*storage].name)),
                    }
                }
            }
            if let Some(storages) = self.keep.get(&next) {
                let tensors = storages.iter().map(|at| Some((*at, self.tensors.get(at).copied()?)));
                let tensors: Option<Vec<(usize, Pointer)>> = tensors.collect();
                match tensors {
                    Some(tensors) => {
                        let held = tensors.into_iter().map(|(at, tensor)| (at, bytes(tensor))).collect();
                        self.kept.insert(next, held);
                    }
                    None => self.failure = Some(changed("a node")),
                }
            }
        }
    }
}

/// llama.cpp's evaluation callback.
///
/// # Safety
///
/// `data` points to a [`Trace`] that nothing else uses meanwhile.
pub(super) unsafe extern "C" fn receive(node: *mut ffi::ggml_tensor, ask: bool, data: *mut c_void) -> bool {
    // SAFETY: the caller's promise; llama.cpp passes a live node of the graph, before it is computed if it asks, and after
    // it and before the next one if not.
    unsafe {
        let trace = &mut *data.cast::<Trace>();
        let Some(node) = NonNull::new(node) else { return false };
        match (&mut trace.task, &trace.learned) {
            (Some(Task::Learn(learning)), _) => {
                if ask {
                    learning.add(node);
                    (*node.as_ptr()).flags &= !COMPUTE;
                    return false;
                }
                true
            }
            (Some(Task::Run(run)), Some(learned)) => {
                if ask {
                    return run.ask(learned, node);
                }
                run.between(learned);
                run.failure.is_none()
            }
            _ => !ask,
        }
    }
}

/// The weights of a loaded model, read in place.
pub(super) struct LoadedWeights<'w>(pub(super) &'w BTreeMap<usize, Pointer>);

// SAFETY: the weights of a loaded model are not written to while this lives; reading them takes no other state.
unsafe impl Sync for LoadedWeights<'_> {}

impl Weights for LoadedWeights<'_> {
    fn rows(&self, storage: usize, matrix: usize, first: usize, out: &mut [f32]) -> Result<(), EngineError> {
        let refuse = |what: &str| EngineError::Gradient {
            node: format!("weight {storage}"),
            what: what.to_owned(),
        };
        let tensor = self.0.get(&storage).ok_or_else(|| refuse("it was not found"))?;
        // SAFETY: the weight is live, in host memory (checked when the graph was learned), and has as many bytes as `ggml_nbytes`
        // says; they are only read.
        let (fields, all) = unsafe {
            let fields = tensor.as_ref();
            let bytes = std::slice::from_raw_parts(fields.data.cast::<u8>(), ffi::ggml_nbytes(tensor.as_ptr()));
            (fields, bytes)
        };
        let ty = TensorType::from_id(fields.type_).ok_or_else(|| refuse("its type is unknown"))?;
        let columns = usize::try_from(fields.ne[0]).unwrap_or(0).max(1);
        let rows = usize::try_from(fields.ne[1]).unwrap_or(0);
        let row = ty
            .row_bytes(columns as u64)
            .ok_or_else(|| refuse("its rows are not whole blocks"))? as usize;
        let start = (matrix * rows + first) * row;
        let bytes = all.get(start..start + out.len() / columns * row);
        dequantize_rows(ty, bytes.ok_or_else(|| refuse("it is too short"))?, columns as u64, out)
    }
}
