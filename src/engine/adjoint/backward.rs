//! Goes through a graph from its end and applies the chain rule.

use std::borrow::Cow;
use std::ops::Range;

use super::graph::Graph;
use super::graph::Node;
use super::graph::Op;
use super::graph::Operand;
use super::graph::Place;
use super::needs::Needs;
use super::needs::weight_of;
use super::products;
use super::products::Weights;
use super::rules;
use super::strided;
use super::strided::Value;
use super::strided::Values;
use crate::engine::Cancel;
use crate::engine::EngineError;

/// The rows of a weight's input that one of its matrices was multiplied with, and the gradients at what came out.
#[derive(Debug, Clone, Copy)]
pub struct MatrixGradient<'a> {
    /// The number of the matrix: an expert, or 0.
    pub matrix: usize,
    /// Rows of [`WeightGradient::columns`] numbers, or, if the weight's rows were looked up, the number of the row for each.
    pub inputs: Inputs<'a>,
    /// As many rows of [`WeightGradient::outputs`] numbers: the gradient of the loss by each output of the product; of the numbers of
    /// a row that was looked up.
    pub deltas: &'a [f32],
}

/// What a weight was multiplied with.
#[derive(Debug, Clone, Copy)]
pub enum Inputs<'a> {
    /// Rows of numbers.
    Rows(&'a [f32]),
    /// A row of the weight was looked up for each row of deltas: an embedding.
    Lookup(&'a [i64]),
}

/// A use of a weight in the computation of a chunk.
#[derive(Debug, Clone, Copy)]
pub struct WeightGradient<'a> {
    /// The weight's name in the file.
    pub tensor: &'a str,
    /// The numbers of one of its rows.
    pub columns: usize,
    /// The numbers of a row of deltas: the rows of a matrix, or [`WeightGradient::columns`] where rows are looked up.
    pub outputs: usize,
    /// The matrices that it has.
    pub matrices: usize,
    /// Those of its matrices that took part, in ascending order.
    pub parts: &'a [MatrixGradient<'a>],
}

/// Receives each use of a weight, in the reverse order of the computation. Its error ends the computation.
pub type EachGradient<'a> = dyn FnMut(&WeightGradient<'_>) -> Result<(), EngineError> + 'a;

/// The gradients of storages while the graph is gone through.
pub(in crate::engine) struct Backward<'g> {
    graph: &'g Graph,
    needs: &'g Needs,
    gradients: Vec<Option<Vec<f32>>>,
}

/// Rows of a product that belong to a matrix: their places among the inputs and among the outputs.
#[derive(Default, Clone)]
struct Routed {
    inputs: Vec<usize>,
    outputs: Vec<usize>,
}

fn select(values: &[f32], columns: usize, rows: &[usize]) -> Vec<f32> {
    let mut out = Vec::with_capacity(rows.len() * columns);
    for row in rows {
        out.extend_from_slice(&values[row * columns..][..columns]);
    }
    out
}

impl<'g> Backward<'g> {
    /// Begins with the gradient of the loss by an operand.
    pub(in crate::engine) fn new(graph: &'g Graph, needs: &'g Needs, at: &Operand, gradient: Vec<f32>) -> Self {
        let mut begun = Self {
            graph,
            needs,
            gradients: graph.storages.iter().map(|_| None).collect(),
        };
        begun.add(at, gradient);
        begun
    }

    /// Goes through the nodes of a range from its end.
    ///
    /// # Errors
    ///
    /// [`EngineError::Gradient`], [`EngineError::Cancelled`], and what `each` and reading weights end with.
    pub(in crate::engine) fn go(
        &mut self,
        nodes: Range<usize>,
        values: &Values,
        weights: &dyn Weights,
        cancel: &Cancel,
        each: &mut EachGradient<'_>,
    ) -> Result<(), EngineError> {
        for at in nodes.rev() {
            cancel.check()?;
            let Some(flows) = &self.needs.flows[at] else { continue };
            let node = &self.graph.nodes[at];
            let Some(gradient) = self.take(node) else { continue };
            let step = Step {
                graph: self.graph,
                node,
                flows,
                values,
                weights,
                cancel,
            };
            for (source, gradient) in step.apply(gradient, each)? {
                if matches!(self.graph.storages[source.storage].place, Place::Node | Place::Memory) {
                    self.add(&source, gradient);
                }
            }
        }
        Ok(())
    }

    /// Takes the gradient of what a node writes: it is the first to have written that. `SET_ROWS` takes its rows itself.
    fn take(&mut self, node: &Node) -> Option<Vec<f32>> {
        let output = &node.output;
        let slot = &mut self.gradients[output.storage];
        if node.op == Op::SetRows {
            return slot.take();
        }
        let is_whole = output.offset == 0 && output.is_dense() && output.len() == slot.as_ref()?.len();
        if is_whole {
            return slot.take();
        }
        slot.as_mut().map(|slot| strided::take(slot, output))
    }

    fn add(&mut self, to: &Operand, gradient: Vec<f32>) {
        let len = self.graph.storages[to.storage].len;
        let slot = &mut self.gradients[to.storage];
        match slot {
            None if to.offset == 0 && to.is_dense() && to.len() == len => *slot = Some(gradient),
            _ => strided::add(slot.get_or_insert_with(|| vec![0.0; len]), to, &gradient),
        }
    }
}

/// One node.
struct Step<'s> {
    graph: &'s Graph,
    node: &'s Node,
    flows: &'s [bool],
    values: &'s Values,
    weights: &'s dyn Weights,
    cancel: &'s Cancel,
}

impl Step<'_> {
    fn fail(&self, what: impl Into<String>) -> EngineError {
        EngineError::Gradient {
            node: self.node.name.clone(),
            what: what.into(),
        }
    }

    fn flows_to(&self, at: usize) -> bool {
        self.flows.get(at).copied().unwrap_or(false)
    }

    fn source(&self, at: usize) -> Result<&Operand, EngineError> {
        self.node
            .source(at)
            .ok_or_else(|| self.fail(format!("it has no source {at}")))
    }

    /// Returns the whole storage of an operand.
    fn storage(&self, operand: &Operand) -> Result<&[f32], EngineError> {
        match self.values.get(&operand.value()) {
            Some(Value::Real(values)) if operand.end() <= values.len() => Ok(values),
            _ => Err(self.fail(format!(
                "the numbers of `{}` were not captured",
                self.graph.storages[operand.storage].name
            ))),
        }
    }

    /// Returns the numbers of an operand in dense order.
    fn dense(&self, operand: &Operand) -> Result<Cow<'_, [f32]>, EngineError> {
        Ok(strided::gather(self.storage(operand)?, operand))
    }

    /// Returns the whole numbers of a source.
    fn whole(&self, at: usize) -> Result<(&[i64], &Operand), EngineError> {
        let operand = self.source(at)?;
        match self.values.get(&operand.value()) {
            Some(Value::Whole(values)) if operand.end() <= values.len() => Ok((values, operand)),
            _ => Err(self.fail(format!("its indices (source {at}) were not captured"))),
        }
    }

    /// Returns a source repeated to the shape of the output: a closure of the row and the column of the output.
    fn repeated<'v>(
        &self,
        at: usize,
        values: &'v [f32],
    ) -> Result<impl Fn(usize, usize) -> f32 + Sync + 'v, EngineError> {
        let (large, small) = (self.node.output.counts, self.source(at)?.counts);
        Ok(move |row, column| values[strided::repeated_row(large, small, row) + column % small[0]])
    }

    /// Returns the gradients of the sources.
    fn apply(&self, g: Vec<f32>, each: &mut EachGradient<'_>) -> Result<Vec<(Operand, Vec<f32>)>, EngineError> {
        let node = self.node;
        let counts = node.output.counts;
        let columns = counts[0];
        let g = g.as_slice();
        let one = |gradient: Vec<f32>| Ok(vec![(self.source(0)?.clone(), gradient)]);
        match &node.op {
            Op::MulMat | Op::MulMatId => self.product(g, each),
            Op::GetRows => self.get_rows(g, each),
            Op::SetRows => self.set_rows(g),
            Op::Add | Op::Sub | Op::AddId | Op::Mul | Op::Div => self.arithmetic(g),
            Op::Scale(factor) => one(strided::map(g.len(), |at| factor * g[at])),
            Op::RmsNorm(epsilon) => one(rules::rms_norm(*epsilon, columns, &self.dense(self.source(0)?)?, g)),
            Op::Norm(epsilon) => one(rules::norm(*epsilon, columns, &self.dense(self.source(0)?)?, g)),
            Op::L2Norm(epsilon) => one(rules::l2_norm(*epsilon, columns, &self.dense(self.source(0)?)?, g)),
            Op::SoftMax(scale) => one(rules::soft_max(*scale, columns, &self.dense(&node.output)?, g)),
            Op::Unary(super::graph::Unary::Root) => {
                one(rules::unary(super::graph::Unary::Root, &self.dense(&node.output)?, g))
            }
            Op::Unary(function) => one(rules::unary(*function, &self.dense(self.source(0)?)?, g)),
            Op::Rope(rope) => {
                let (positions, at) = self.whole(1)?;
                let positions = &positions[at.offset..at.end()];
                let factors = node.source(2).map(|factors| self.dense(factors)).transpose()?;
                let turned = rules::rope(rope, counts, positions, factors.as_deref(), g);
                one(turned.ok_or_else(|| self.fail("there are too few positions or frequency factors"))?)
            }
            Op::Glu { gate, swapped } => self.gated(*gate, *swapped, g),
            Op::SumRows | Op::Mean => {
                let source = self.source(0)?;
                let columns = source.counts[0];
                let factor = match node.op {
                    Op::Mean => 1.0 / columns as f32,
                    _ => 1.0,
                };
                one(strided::map_rows(source.rows(), columns, |row, out| {
                    out.fill(factor * g[row]);
                }))
            }
            Op::Repeat => {
                let source = self.source(0)?.counts;
                // ggml repeats whole tensors: the number at i comes from i modulo the source's length.
                one(strided::reduce(counts, source, |row, at| g[row * columns + at]))
            }
            Op::Concat(dimension) => self.concatenated(*dimension, g),
            Op::Copy => one(g.to_vec()),
            Op::Constant | Op::Unknown(_) => Err(self.fail("no gradient is defined for it")),
        }
    }

    fn arithmetic(&self, g: &[f32]) -> Result<Vec<(Operand, Vec<f32>)>, EngineError> {
        let node = self.node;
        let large = node.output.counts;
        let (columns, rows) = (large[0], node.output.rows());
        let mut out = Vec::new();
        if self.flows_to(0) {
            let gradient = match node.op {
                Op::Mul | Op::Div => {
                    let values = self.dense(self.source(1)?)?;
                    let small = self.source(1)?.counts;
                    let divides = node.op == Op::Div;
                    let apply = |g: f32, factor: f32| if divides { g / factor } else { g * factor };
                    strided::map_rows(rows, columns, |row, out| {
                        let g = &g[row * columns..][..columns];
                        let factors = &values[strided::repeated_row(large, small, row)..][..small[0]];
                        // The repeated row is as long as this one, or shorter: mostly a single number.
                        for (out, g) in out.chunks_mut(small[0]).zip(g.chunks(small[0])) {
                            for ((out, g), factor) in out.iter_mut().zip(g).zip(factors) {
                                *out = apply(*g, *factor);
                            }
                        }
                    })
                }
                _ => g.to_vec(),
            };
            out.push((self.source(0)?.clone(), gradient));
        }
        if self.flows_to(1) {
            let small = self.source(1)?.counts;
            let plain = |row: usize, at: usize| g[row * columns + at];
            let gradient = match node.op {
                Op::Mul => {
                    let first = self.dense(self.source(0)?)?;
                    strided::reduce(large, small, |row, at| plain(row, at) * first[row * columns + at])
                }
                Op::Div => {
                    let (first, second) = (self.dense(self.source(0)?)?, self.dense(self.source(1)?)?);
                    let second = self.repeated(1, &second)?;
                    strided::reduce(large, small, |row, at| {
                        let divisor = second(row, at);
                        -plain(row, at) * first[row * columns + at] / (divisor * divisor)
                    })
                }
                Op::Sub => strided::reduce(large, small, |row, at| -plain(row, at)),
                _ => strided::reduce(large, small, plain),
            };
            out.push((self.source(1)?.clone(), gradient));
        }
        Ok(out)
    }

    fn gated(
        &self,
        gate: super::graph::Gate,
        swapped: bool,
        g: &[f32],
    ) -> Result<Vec<(Operand, Vec<f32>)>, EngineError> {
        let first = self.source(0)?.clone();
        let (x, y) = if let Some(second) = self.node.source(1) {
            (first, second.clone())
        } else {
            let mut left = first;
            left.counts[0] /= 2;
            let mut right = left.clone();
            right.offset += left.counts[0] * left.strides[0];
            if swapped { (right, left) } else { (left, right) }
        };
        let halves = rules::glu(gate, &self.dense(&x)?, &self.dense(&y)?, g);
        let (by_x, by_y) = halves.ok_or_else(|| self.fail("its gate has no rule"))?;
        Ok(vec![(x, by_x), (y, by_y)])
    }

    fn concatenated(&self, dimension: usize, g: &[f32]) -> Result<Vec<(Operand, Vec<f32>)>, EngineError> {
        let output = Operand {
            strides: dense_strides(self.node.output.counts),
            offset: 0,
            ..self.node.output.clone()
        };
        let mut out = Vec::new();
        let mut offset = 0;
        for at in 0..2 {
            let source = self.source(at)?;
            let part = Operand {
                counts: source.counts,
                offset,
                ..output.clone()
            };
            if self.flows_to(at) {
                out.push((source.clone(), strided::gather(g, &part).into_owned()));
            }
            offset += source.counts[dimension] * output.strides[dimension];
        }
        Ok(out)
    }

    /// Calls `each` for the rows that are looked up: the row of the output, and where the row of the first source begins in dense
    /// order.
    fn looked_up(&self, mut each: impl FnMut(usize, usize, i64)) -> Result<(), EngineError> {
        let (indices, at) = self.whole(1)?;
        let from = self.source(0)?.counts;
        let counts = self.node.output.counts;
        let rows = i64::try_from(from[1]).unwrap_or(0);
        for i3 in 0..counts[3] {
            for i2 in 0..counts[2] {
                for i1 in 0..counts[1] {
                    let place = at.offset + i1 * at.strides[0] + i2 * at.strides[1] + i3 * at.strides[2];
                    let index = indices.get(place).copied().filter(|index| (0..rows).contains(index));
                    let index = index.ok_or_else(|| self.fail("an index is out of bounds"))?;
                    let row = index as usize + from[1] * (i2 % from[2] + from[2] * (i3 % from[3]));
                    each(i1 + counts[1] * (i2 + counts[2] * i3), row * from[0], index);
                }
            }
        }
        Ok(())
    }

    fn get_rows(&self, g: &[f32], each: &mut EachGradient<'_>) -> Result<Vec<(Operand, Vec<f32>)>, EngineError> {
        let source = self.source(0)?;
        let columns = source.counts[0];
        if let Some(weight) = weight_of(self.graph, self.node) {
            let mut rows = Vec::with_capacity(self.node.output.rows());
            self.looked_up(|_, _, index| rows.push(index))?;
            let storage = &self.graph.storages[weight.storage];
            if storage.counts[2] * storage.counts[3] != 1 {
                return Err(self.fail("it looks rows up in a weight of several matrices"));
            }
            each(&WeightGradient {
                tensor: &storage.name,
                columns,
                outputs: columns,
                matrices: 1,
                parts: &[MatrixGradient {
                    matrix: 0,
                    inputs: Inputs::Lookup(&rows),
                    deltas: g,
                }],
            })?;
            return Ok(Vec::new());
        }
        let mut gradient = vec![0.0; source.len()];
        self.looked_up(|row, start, _| {
            for (to, value) in gradient[start..start + columns].iter_mut().zip(&g[row * columns..]) {
                *to += value;
            }
        })?;
        Ok(vec![(source.clone(), gradient)])
    }

    /// `whole` is the gradient of the whole storage that is written to. What was there before gets what is left.
    fn set_rows(&self, whole: &[f32]) -> Result<Vec<(Operand, Vec<f32>)>, EngineError> {
        let (indices, at) = self.whole(1)?;
        let (from, to) = (self.source(0)?, &self.node.output);
        if to.end() > whole.len() {
            return Err(self.fail("it writes out of bounds"));
        }
        let mut rest = whole.to_vec();
        let mut gradient = Vec::with_capacity(from.len());
        let rows = i64::try_from(to.counts[1]).unwrap_or(0);
        let mut starts = Vec::with_capacity(from.rows());
        for i3 in 0..from.counts[3] {
            for i2 in 0..from.counts[2] {
                for i1 in 0..from.counts[1] {
                    let place = at.offset
                        + i1 * at.strides[0]
                        + i2 % at.counts[1] * at.strides[1]
                        + i3 % at.counts[2] * at.strides[2];
                    let index = indices.get(place).copied().filter(|index| (0..rows).contains(index));
                    let index = index.ok_or_else(|| self.fail("an index is out of bounds"))? as usize;
                    starts.push(to.offset + index * to.strides[1] + i2 * to.strides[2] + i3 * to.strides[3]);
                }
            }
        }
        for start in &starts {
            gradient.extend((0..from.counts[0]).map(|column| whole[start + column * to.strides[0]]));
        }
        for start in &starts {
            (0..from.counts[0]).for_each(|column| rest[start + column * to.strides[0]] = 0.0);
        }
        if to.version == 1 {
            // Nothing had been written before.
            return Ok(vec![(from.clone(), gradient)]);
        }
        let before = Operand {
            offset: 0,
            counts: [rest.len(), 1, 1, 1],
            strides: [1, rest.len(), rest.len(), rest.len()],
            ..to.clone()
        };
        Ok(vec![(from.clone(), gradient), (before, rest)])
    }

    fn product(&self, g: &[f32], each: &mut EachGradient<'_>) -> Result<Vec<(Operand, Vec<f32>)>, EngineError> {
        let out = self.node.output.counts;
        let (first, second) = (self.source(0)?, self.source(1)?);
        if weight_of(self.graph, self.node).is_some() {
            return self.weight_product(g, each);
        }
        let shapes = || self.fail("the shapes of its factors do not agree");
        let mut gradients = Vec::new();
        if self.flows_to(0) {
            let values = (self.storage(second)?, second);
            let gradient = products::by_second(first, values, g, out).ok_or_else(shapes)?;
            gradients.push((first.clone(), gradient));
        }
        if self.flows_to(1) {
            let values = (self.storage(first)?, first);
            let gradient = products::by_first(values, second.counts[0], g, out).ok_or_else(shapes)?;
            gradients.push((second.clone(), gradient));
        }
        Ok(gradients)
    }

    /// Returns the rows of each matrix of a weight.
    fn routes(&self, matrices: usize) -> Result<Vec<Routed>, EngineError> {
        let out = self.node.output.counts;
        let (weight, input) = (self.source(0)?.counts, self.source(1)?.counts);
        let mut routes = vec![Routed::default(); matrices];
        if self.node.op == Op::MulMatId {
            let (indices, at) = self.whole(2)?;
            for token in 0..out[2] {
                for slot in 0..out[1] {
                    let place = at.offset + slot * at.strides[0] + token * at.strides[1];
                    let index = indices.get(place).and_then(|index| usize::try_from(*index).ok());
                    let route = index.and_then(|index| routes.get_mut(index));
                    let route = route.ok_or_else(|| self.fail(format!("a row is routed to expert {index:?}")))?;
                    route.inputs.push(token * input[1] + slot % input[1]);
                    route.outputs.push(token * out[1] + slot);
                }
            }
            return Ok(routes);
        }
        let (repeat2, repeat3) = (out[2] / weight[2].max(1), out[3] / weight[3].max(1));
        for i3 in 0..out[3] {
            for i2 in 0..out[2] {
                let matrix = i3 / repeat3.max(1) * weight[2] + i2 / repeat2.max(1);
                let route = routes
                    .get_mut(matrix)
                    .ok_or_else(|| self.fail("it has too few matrices"))?;
                let start = (i3 * out[2] + i2) * out[1];
                route.inputs.extend(start..start + out[1]);
                route.outputs.extend(start..start + out[1]);
            }
        }
        Ok(routes)
    }

    fn weight_product(&self, g: &[f32], each: &mut EachGradient<'_>) -> Result<Vec<(Operand, Vec<f32>)>, EngineError> {
        let (weight, input) = (self.source(0)?, self.source(1)?);
        let storage = &self.graph.storages[weight.storage];
        if weight.counts != storage.counts {
            return Err(self.fail("it multiplies with a part of a weight"));
        }
        let [columns, outputs, ..] = weight.counts;
        let matrices = weight.counts[2] * weight.counts[3];
        let values = self.dense(input)?;
        let multiply = |matrix, deltas: &[f32]| {
            let place = (weight.storage, matrix);
            products::by_weight(self.weights, place, deltas, outputs, columns, self.cancel)
        };
        let report = |parts: &[MatrixGradient<'_>], each: &mut EachGradient<'_>| {
            each(&WeightGradient {
                tensor: &storage.name,
                columns,
                outputs,
                matrices,
                parts,
            })
        };
        if matrices == 1 && self.node.op == Op::MulMat {
            let part = MatrixGradient {
                matrix: 0,
                inputs: Inputs::Rows(&values),
                deltas: g,
            };
            report(&[part], each)?;
            if !self.flows_to(1) {
                return Ok(Vec::new());
            }
            return Ok(vec![(input.clone(), multiply(0, g)?)]);
        }
        let routes = self.routes(matrices)?;
        let used: Vec<(usize, Vec<f32>, Vec<f32>)> = routes
            .iter()
            .enumerate()
            .filter(|(_, route)| !route.outputs.is_empty())
            .map(|(matrix, route)| {
                let inputs = select(&values, columns, &route.inputs);
                (matrix, inputs, select(g, outputs, &route.outputs))
            })
            .collect();
        let parts: Vec<MatrixGradient<'_>> = used
            .iter()
            .map(|(matrix, inputs, deltas)| MatrixGradient {
                matrix: *matrix,
                inputs: Inputs::Rows(inputs),
                deltas,
            })
            .collect();
        report(&parts, each)?;
        if !self.flows_to(1) {
            return Ok(Vec::new());
        }
        let mut gradient = vec![0.0; input.len()];
        for (matrix, _, deltas) in &used {
            let rows = multiply(*matrix, deltas)?;
            for (row, values) in routes[*matrix].inputs.iter().zip(rows.chunks_exact(columns)) {
                for (to, value) in gradient[row * columns..].iter_mut().zip(values) {
                    *to += value;
                }
            }
        }
        Ok(vec![(input.clone(), gradient)])
    }
}

fn dense_strides(counts: [usize; 4]) -> [usize; 4] {
    [1, counts[0], counts[0] * counts[1], counts[0] * counts[1] * counts[2]]
}
