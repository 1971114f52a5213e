//! The nodes of a computation, without pointers.

use std::collections::HashMap;
use std::ops::Range;

/// Where a tensor's numbers lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine) enum Place {
    /// A node computes them.
    Node,
    /// A weight of the model.
    Weight,
    /// An input of the computation.
    Input,
    /// Memory that stays between computations: the key-value cache.
    Memory,
}

/// A tensor that is no view, and that views lead to.
#[derive(Debug, Clone)]
pub(in crate::engine) struct Storage {
    pub(in crate::engine) name: String,
    pub(in crate::engine) place: Place,
    /// Its numbers.
    pub(in crate::engine) len: usize,
    /// The lengths of its dimensions, the fastest first.
    pub(in crate::engine) counts: [usize; 4],
}

/// What a node reads or writes: a part of a storage. Strides and the offset count numbers, not bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::engine) struct Operand {
    pub(in crate::engine) storage: usize,
    /// How many nodes had written to the storage before the node that reads this, or with the node that writes it.
    pub(in crate::engine) version: usize,
    pub(in crate::engine) offset: usize,
    pub(in crate::engine) counts: [usize; 4],
    pub(in crate::engine) strides: [usize; 4],
    /// Whether the numbers are floats.
    pub(in crate::engine) is_real: bool,
}

impl Operand {
    /// Returns how many numbers it has.
    pub(in crate::engine) fn len(&self) -> usize {
        self.counts.iter().product()
    }

    /// Returns the rows of its first dimension.
    pub(in crate::engine) fn rows(&self) -> usize {
        self.counts[1..].iter().product()
    }

    /// Says whether its numbers follow each other without gaps in the order of its dimensions.
    pub(in crate::engine) fn is_dense(&self) -> bool {
        let mut next = 1;
        for (count, stride) in self.counts.into_iter().zip(self.strides) {
            if count > 1 && stride != next {
                return false;
            }
            next *= count;
        }
        true
    }

    /// Returns the value that it is a part of.
    pub(in crate::engine) fn value(&self) -> (usize, usize) {
        (self.storage, self.version)
    }

    /// Returns one past the last number of its storage that it reaches.
    pub(in crate::engine) fn end(&self) -> usize {
        if self.len() == 0 {
            return self.offset;
        }
        let steps = self.counts.into_iter().zip(self.strides);
        self.offset + steps.map(|(count, stride)| (count - 1) * stride).sum::<usize>() + 1
    }
}

/// How a rotary position embedding turns pairs of numbers.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::engine) struct Rope {
    /// The numbers of a row that are turned.
    pub(in crate::engine) dimensions: usize,
    /// The first of them.
    pub(in crate::engine) first: usize,
    /// Pairs are halves of the row, not adjacent numbers.
    pub(in crate::engine) halves: bool,
    pub(in crate::engine) original_context: i32,
    pub(in crate::engine) base: f32,
    pub(in crate::engine) scale: f32,
    pub(in crate::engine) extrapolation: f32,
    pub(in crate::engine) magnitude: f32,
    pub(in crate::engine) beta_fast: f32,
    pub(in crate::engine) beta_slow: f32,
}

/// Functions of one number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::engine) enum Unary {
    Abs,
    Neg,
    Tanh,
    Elu,
    Relu,
    Sigmoid,
    Gelu,
    GeluQuick,
    GeluErf,
    Silu,
    Exp,
    Softplus,
    Square,
    Root,
    Log,
    /// Limits of a clamp.
    Clamp(f32, f32),
}

/// What gates the other half in a gated linear unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::engine) enum Gate {
    /// A function of the gate, times the other half.
    Of(Unary),
    /// As GPT-OSS has it: sigmoid with a factor, limits for both halves, and 1 added to the other half.
    Oai { alpha: f32, limit: f32 },
    /// SwiGLU whose gate has an upper limit and whose other half has two.
    Clamped { limit: f32 },
}

/// What a node does.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::engine) enum Op {
    Add,
    Sub,
    Mul,
    Div,
    /// Adds a row that a third operand chooses.
    AddId,
    Scale(f32),
    /// Divides rows by their root mean square, of that epsilon.
    RmsNorm(f32),
    /// Subtracts the mean of a row and divides by its standard deviation.
    Norm(f32),
    /// Divides rows by their length.
    L2Norm(f32),
    Rope(Rope),
    /// Softmax of rows times a factor, with a mask and extra terms in the denominator.
    SoftMax(f32),
    /// A gated linear unit; `swapped` if the second half gates the first.
    Glu {
        gate: Gate,
        swapped: bool,
    },
    Unary(Unary),
    SumRows,
    Mean,
    Repeat,
    /// Along that dimension.
    Concat(usize),
    Copy,
    GetRows,
    SetRows,
    MulMat,
    MulMatId,
    /// No gradient flows through it: indices, constants.
    Constant,
    /// It has no rule here. The text is ggml's name of the operation.
    Unknown(String),
}

/// A node that computes.
#[derive(Debug, Clone)]
pub(in crate::engine) struct Node {
    pub(in crate::engine) name: String,
    pub(in crate::engine) op: Op,
    pub(in crate::engine) output: Operand,
    pub(in crate::engine) sources: Vec<Option<Operand>>,
    /// It is a view, or llama.cpp leaves it out.
    pub(in crate::engine) is_idle: bool,
}

impl Node {
    pub(in crate::engine) fn source(&self, at: usize) -> Option<&Operand> {
        self.sources.get(at).and_then(Option::as_ref)
    }
}

/// All nodes, in the order in which they are computed.
#[derive(Debug, Clone, Default)]
pub(in crate::engine) struct Graph {
    pub(in crate::engine) storages: Vec<Storage>,
    pub(in crate::engine) nodes: Vec<Node>,
}

impl Graph {
    /// Returns the storages that hold something at a place which nodes from it on use, or nothing if memory is used on both sides of
    /// it, so that computing cannot begin there.
    pub(in crate::engine) fn crossing(&self, uses: &HashMap<usize, Range<usize>>, place: usize) -> Option<Vec<usize>> {
        let mut crossing: Vec<usize> = uses
            .iter()
            .filter(|(_, uses)| uses.start < place && place < uses.end)
            .map(|(storage, _)| *storage)
            .collect();
        crossing.retain(|storage| matches!(self.storages[*storage].place, Place::Node | Place::Memory));
        if crossing.iter().any(|at| self.storages[*at].place == Place::Memory) {
            return None;
        }
        crossing.sort_unstable();
        Some(crossing)
    }

    /// Returns for each storage the nodes from the first to the last that use it.
    pub(in crate::engine) fn uses(&self) -> HashMap<usize, Range<usize>> {
        let mut uses: HashMap<usize, Range<usize>> = HashMap::new();
        for (at, node) in self.nodes.iter().enumerate().filter(|(_, node)| !node.is_idle) {
            let operands = node.sources.iter().flatten().chain([&node.output]);
            for operand in operands {
                uses.entry(operand.storage).or_insert(at..at + 1).end = at + 1;
            }
        }
        uses
    }
}
