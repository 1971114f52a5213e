//! Computes only a part of the graph: nodes before the first changed weight have been computed before.
//!
//! llama.cpp computes a list of nodes, the same ones in the same order for every batch of a model. To begin at a node, forge
//! needs the results of earlier nodes that this node or later ones read. In a plain transformer these are the residual stream
//! between its layers and the mask, and within a layer a little more. forge keeps these results of a chunk and restores them
//! instead of computing them again. It learns which ones they are from the graph, not from a list of architectures.
//!
//! forge does not keep memory outside of the graph (the key-value cache, states of recurrent layers), so a computation cannot
//! begin at a node if such memory is used before and after it. If a tensor is on a device, or of an unknown kind, forge
//! computes everything.
//!
//! llama.cpp calls the evaluation callback with each node before it computes the node. All backends skip a node without the flag
//! for computing.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::ffi::CStr;
use std::ffi::c_void;
use std::ops::Range;
use std::ptr::NonNull;

use llama_cpp_sys_2 as ffi;

/// The flag of a node that is to be computed.
const COMPUTE: i32 = ffi::GGML_TENSOR_FLAG_COMPUTE.cast_signed();
/// The flag of a tensor that is set from outside.
const INPUT: i32 = ffi::GGML_TENSOR_FLAG_INPUT.cast_signed();

/// A weight of the loaded model.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weight {
    pub(super) tensor: NonNull<ffi::ggml_tensor>,
    /// The size of its memory, in bytes.
    pub(super) capacity: usize,
    /// The first node that reads it.
    first: usize,
}

/// By what a node of one batch is known to be the same in another.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Signature {
    op: ffi::ggml_op,
    name: [std::ffi::c_char; 64],
}

/// Memory that nodes read and write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Storage {
    /// What a node computes.
    Node(usize),
    /// What stays between graphs, by its address.
    Outside(usize),
}

/// A node, as far as it decides what can be left out.
struct Node {
    signature: Signature,
    /// Not a view, and not left out by llama.cpp.
    computes: bool,
    /// What it reads and writes, if it computes.
    uses: BTreeSet<Storage>,
}

/// The nodes of the model's graph, in the order in which they are computed.
#[derive(Default)]
pub(super) struct Survey {
    nodes: Vec<Node>,
    pub(super) weights: BTreeMap<String, Weight>,
    /// From the first to the last node that uses it: memory outside that nodes write to.
    written: Vec<(usize, usize)>,
    /// Something is not as this module takes it to be: nothing can be left out.
    strange: bool,
}

/// What the nodes from a place on need of one batch: data of nodes before it.
type Needed = Vec<(usize, Vec<u8>)>;

/// What is kept of a chunk.
#[derive(Debug, Default)]
pub(super) struct Checkpoint {
    /// The node to begin at; 0 if nothing is kept.
    at: usize,
    batches: Vec<Needed>,
    bytes: u64,
}

impl Checkpoint {
    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// What the callback does.
enum Task {
    /// Learns the graph and computes nothing.
    Survey(Box<Learning>),
    /// Computes the nodes of a range and passes over the others.
    Run(Run),
}

/// What is known while the graph is learned.
#[derive(Default)]
struct Learning {
    survey: Survey,
    at: HashMap<usize, usize>,
    /// Memory outside, and from the first to the last node that uses it.
    outside: HashMap<usize, (usize, usize)>,
    /// That of it which nodes write to.
    written: BTreeSet<usize>,
    /// That which is neither a weight nor an input: understood only if nodes write to it.
    unknown: BTreeSet<usize>,
}

struct Run {
    range: Range<usize>,
    /// What the range needs at its beginning, and whether to keep what is needed at its end.
    from: Checkpoint,
    keep: bool,
    /// The maximum number of bytes to keep.
    limit: u64,
    kept: Checkpoint,
    batch: usize,
    next: usize,
    /// Nodes of this batch whose data is to be put back or kept.
    data: HashMap<usize, NonNull<ffi::ggml_tensor>>,
    /// Whose data the nodes from the end on need.
    needed: BTreeSet<usize>,
    failed: bool,
}

/// What llama.cpp's callback is given.
#[derive(Default)]
pub(super) struct Tap {
    survey: Survey,
    task: Option<Task>,
    passed_over: u64,
}

impl Survey {
    /// Returns the best place to begin at if only weights that are read from a node on have changed: 0 for the beginning.
    fn place(&self, first: usize) -> usize {
        // The last node is always computed: what it computes is what is asked for.
        let mut place = first.min(self.nodes.len().saturating_sub(1));
        // Memory outside that is used on both sides of the place moves it to before the first use.
        while let Some(before) = self
            .written
            .iter()
            .filter(|(first, last)| *first < place && place <= *last)
            .map(|(first, _)| *first)
            .min()
        {
            place = before;
        }
        place
    }

    /// Says that nothing can be left out.
    pub(super) fn is_strange(&self) -> bool {
        self.strange
    }

    /// Returns the place to begin at when only some weights have changed.
    pub(super) fn start<'n>(&self, changed: impl Iterator<Item = &'n str>) -> usize {
        let first = changed.map(|name| self.weights.get(name).map_or(0, |weight| weight.first));
        self.place(first.min().unwrap_or(usize::MAX))
    }

    /// Returns the nodes before a place whose data is used from it on.
    fn needed(&self, place: usize) -> BTreeSet<usize> {
        let later = self.nodes[place.min(self.nodes.len())..].iter();
        later
            .flat_map(|node| &node.uses)
            .filter_map(|storage| match storage {
                Storage::Node(at) if *at < place => Some(*at),
                _ => None,
            })
            .collect()
    }
}

impl Tap {
    /// Makes the next computation one that learns the graph and computes nothing.
    pub(super) fn learn(&mut self) {
        self.task = Some(Task::Survey(Box::default()));
    }

    /// Takes what was learned.
    pub(super) fn learned(&mut self) {
        if let Some(Task::Survey(mut learning)) = self.task.take() {
            learning.survey.strange |= !learning.unknown.is_subset(&learning.written);
            let written = learning
                .written
                .iter()
                .filter_map(|at| learning.outside.get(at).copied());
            learning.survey.written = written.collect();
            self.survey = learning.survey;
        }
    }

    pub(super) fn survey(&self) -> &Survey {
        &self.survey
    }

    /// Makes the next computation one of a chunk from where it was kept, to the end or to a place whose needs are then kept, if
    /// they take no more than `limit` bytes.
    pub(super) fn run(&mut self, from: Checkpoint, to: Option<usize>, limit: u64) {
        let nodes = self.survey.nodes.len();
        let end = to.map_or(nodes, |to| to.min(nodes.saturating_sub(1)));
        self.task = Some(Task::Run(Run {
            range: from.at..end,
            keep: to.is_some(),
            limit,
            kept: Checkpoint {
                at: end,
                ..Checkpoint::default()
            },
            needed: self.survey.needed(end),
            from,
            batch: 0,
            next: 0,
            data: HashMap::new(),
            failed: false,
        }));
    }

    /// Returns how many nodes were put back or left out so far in place of being computed.
    pub(super) fn passed_over(&self) -> u64 {
        self.passed_over
    }

    /// Says whether the graph that is being computed is the one that was learned, and was gone through to the end of a batch.
    pub(super) fn is_sound(&self) -> bool {
        match &self.task {
            Some(Task::Run(run)) => !run.failed && run.next == self.survey.nodes.len(),
            _ => false,
        }
    }

    /// Ends a computation. Returns the data that it kept, if that is within the limit, or the data that it began with. Returns
    /// `None` if the computation is not valid.
    pub(super) fn done(&mut self) -> Option<Checkpoint> {
        let sound = self.is_sound();
        match self.task.take() {
            Some(Task::Run(run)) if sound && run.keep => (run.kept.bytes <= run.limit).then_some(run.kept),
            Some(Task::Run(run)) if sound => Some(run.from),
            _ => None,
        }
    }
}

impl Learning {
    /// # Safety
    ///
    /// The node and its sources are live.
    unsafe fn add(&mut self, node: NonNull<ffi::ggml_tensor>) {
        // SAFETY: the caller's promise; sources are live or null.
        unsafe {
            let place = self.survey.nodes.len();
            let fields = node.as_ref();
            self.at.insert(node.as_ptr() as usize, place);
            let moves_nothing = matches!(
                fields.op,
                ffi::GGML_OP_NONE
                    | ffi::GGML_OP_RESHAPE
                    | ffi::GGML_OP_VIEW
                    | ffi::GGML_OP_PERMUTE
                    | ffi::GGML_OP_TRANSPOSE
            );
            let computes = !moves_nothing && fields.flags & COMPUTE != 0;
            let mut uses = BTreeSet::new();
            for source in fields.src {
                if let Some(source) = NonNull::new(source) {
                    uses.insert(self.storage(source, place, computes));
                }
            }
            if computes {
                let storage = self.storage(node, place, true);
                if let Storage::Outside(at) = storage {
                    self.written.insert(at);
                }
                uses.insert(storage);
            } else {
                uses.clear();
            }
            for used in &uses {
                if let Storage::Outside(at) = used {
                    self.outside.entry(*at).or_insert((place, place)).1 = place;
                }
            }
            self.survey.nodes.push(Node {
                signature: signature(fields),
                computes,
                uses,
            });
        }
    }

    /// Returns what a tensor's data lies in, and notes it if it is a weight.
    ///
    /// # Safety
    ///
    /// The tensor is live.
    unsafe fn storage(&mut self, tensor: NonNull<ffi::ggml_tensor>, place: usize, used: bool) -> Storage {
        // SAFETY: the caller's promise; what a tensor is a view of is live as well, and is no view itself.
        unsafe {
            let root = NonNull::new(tensor.as_ref().view_src).unwrap_or(tensor);
            let fields = root.as_ref();
            self.survey.strange |=
                used && (fields.buffer.is_null() || !ffi::ggml_backend_buffer_is_host(fields.buffer));
            let address = root.as_ptr() as usize;
            if let Some(at) = self.at.get(&address) {
                return Storage::Node(*at);
            }
            let is_weight = !fields.buffer.is_null()
                && ffi::ggml_backend_buffer_get_usage(fields.buffer) == ffi::GGML_BACKEND_BUFFER_USAGE_WEIGHTS;
            if is_weight {
                let name = CStr::from_ptr(fields.name.as_ptr()).to_string_lossy().into_owned();
                let buffers = ffi::ggml_backend_buffer_get_type(fields.buffer);
                let capacity = ffi::ggml_backend_buft_get_alloc_size(buffers, root.as_ptr());
                self.survey.weights.entry(name).or_insert(Weight {
                    tensor: root,
                    capacity,
                    first: place,
                });
            } else if fields.flags & INPUT == 0 {
                self.unknown.insert(address);
            }
            Storage::Outside(address)
        }
    }
}

impl Run {
    /// Notes a node before it is computed, and says whether to stop after it.
    ///
    /// # Safety
    ///
    /// The node is live and not being computed.
    unsafe fn ask(&mut self, survey: &Survey, mut tensor: NonNull<ffi::ggml_tensor>, passed_over: &mut u64) -> bool {
        if self.next == survey.nodes.len() {
            self.next = 0;
            self.batch += 1;
            self.data.clear();
        }
        let at = self.next;
        self.next += 1;
        // SAFETY: the caller's promise.
        let fields = unsafe { tensor.as_mut() };
        let Some(node) = survey.nodes.get(at).filter(|node| node.signature == signature(fields)) else {
            self.failed = true;
            return false;
        };
        if node.computes {
            if self.range.contains(&at) {
                fields.flags |= COMPUTE;
            } else {
                fields.flags &= !COMPUTE;
                *passed_over += 1;
            }
        }
        let put = self.from.batches.get(self.batch);
        let wanted = put.is_some_and(|needed| needed.iter().any(|(node, _)| *node == at));
        if wanted || (self.keep && self.needed.contains(&at)) {
            self.data.insert(at, tensor);
        }
        at + 1 == self.range.start || (self.keep && at + 1 == self.range.end)
    }

    /// Puts back or keeps data between two nodes.
    ///
    /// # Safety
    ///
    /// The tensors of this batch are live, and nothing is being computed.
    unsafe fn between(&mut self) {
        if self.failed {
            return;
        }
        if self.next == self.range.start {
            let Some(needed) = self.from.batches.get(self.batch) else {
                self.failed = true;
                return;
            };
            for (node, bytes) in needed {
                let tensor = self.data.get(node).copied();
                // SAFETY: the caller's promise; the length is checked.
                unsafe {
                    match tensor {
                        Some(tensor) if ffi::ggml_nbytes(tensor.as_ptr()) == bytes.len() => {
                            ffi::ggml_backend_tensor_set(tensor.as_ptr(), bytes.as_ptr().cast(), 0, bytes.len());
                        }
                        _ => self.failed = true,
                    }
                }
            }
        }
        if self.keep && self.next == self.range.end {
            let mut kept = Needed::new();
            for node in &self.needed {
                let Some(tensor) = self.data.get(node).copied() else {
                    self.failed = true;
                    return;
                };
                // SAFETY: the caller's promise; the buffer has the length that is read.
                unsafe {
                    let len = ffi::ggml_nbytes(tensor.as_ptr());
                    self.kept.bytes = self.kept.bytes.saturating_add(len as u64);
                    if self.kept.bytes > self.limit {
                        self.kept.batches.clear();
                        return;
                    }
                    let mut bytes = vec![0_u8; len];
                    ffi::ggml_backend_tensor_get(tensor.as_ptr(), bytes.as_mut_ptr().cast(), 0, len);
                    kept.push((*node, bytes));
                }
            }
            self.kept.batches.push(kept);
        }
    }
}

fn signature(fields: &ffi::ggml_tensor) -> Signature {
    Signature {
        op: fields.op,
        name: fields.name,
    }
}

/// llama.cpp's evaluation callback.
///
/// # Safety
///
/// `data` points to a [`Tap`] that nothing else uses meanwhile.
pub(super) unsafe extern "C" fn receive(node: *mut ffi::ggml_tensor, ask: bool, data: *mut c_void) -> bool {
    // SAFETY: the caller's promise; llama.cpp passes a live node of the graph, before it is computed if it asks, and after
    // it and before the next one if not.
    unsafe {
        let tap = &mut *data.cast::<Tap>();
        let Some(node) = NonNull::new(node) else { return false };
        match &mut tap.task {
            Some(Task::Survey(learning)) => {
                if ask {
                    learning.add(node);
                    (*node.as_ptr()).flags &= !COMPUTE;
                    return false;
                }
                true
            }
            Some(Task::Run(run)) => {
                if ask {
                    return run.ask(&tap.survey, node, &mut tap.passed_over);
                }
                run.between();
                true
            }
            None => !ask,
        }
    }
}
