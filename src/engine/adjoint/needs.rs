//! What a gradient takes: through which nodes it flows, which values they need, and how the nodes are cut into segments whose
//! values fit into memory together.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::HashSet;
use std::ops::Range;

use super::graph::Graph;
use super::graph::Node;
use super::graph::Op;
use super::graph::Operand;
use super::graph::Place;
use super::graph::Unary;

/// A node that no gradient can be passed through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::engine) struct NoRule {
    pub(in crate::engine) node: String,
    pub(in crate::engine) what: String,
}

/// What is computed once of a graph.
#[derive(Debug, Default)]
pub(in crate::engine) struct Needs {
    /// For each node which of its sources a gradient flows to; `None` if no gradient flows through the node.
    pub(in crate::engine) flows: Vec<Option<Vec<bool>>>,
    /// Values by storage and version, and their bytes.
    values: HashMap<(usize, usize), u64>,
    /// Values that a node writes, by the node.
    written: BTreeMap<usize, (usize, usize)>,
    /// Parts of the graph, each of which is computed again for its values; in order.
    pub(in crate::engine) segments: Vec<Segment>,
    /// The most memory that values and what segments begin with take at once, in bytes.
    pub(in crate::engine) bytes: u64,
    /// The values of the largest segment, in bytes.
    pub(in crate::engine) largest: u64,
}

/// Nodes whose values are captured together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::engine) struct Segment {
    pub(in crate::engine) nodes: Range<usize>,
    /// The storages of earlier nodes that these and later nodes use.
    pub(in crate::engine) begins_with: Vec<usize>,
}

/// Says whether a node multiplies with a weight of the model, or looks its rows up.
pub(in crate::engine) fn weight_of<'n>(graph: &Graph, node: &'n Node) -> Option<&'n Operand> {
    let weight = match node.op {
        Op::MulMat | Op::MulMatId | Op::GetRows => node.source(0),
        _ => None,
    };
    weight.filter(|weight| graph.storages[weight.storage].place == Place::Weight)
}

/// What a node's gradient reads.
struct Reads {
    sources: Vec<usize>,
    output: bool,
}

/// Returns what the gradient of a node reads if it flows to some of its sources.
fn reads(graph: &Graph, node: &Node, flows: &[bool]) -> Result<Reads, NoRule> {
    let refuse = |what: &str| {
        Err(NoRule {
            node: node.name.clone(),
            what: what.to_owned(),
        })
    };
    let to = |at: usize| flows.get(at).copied().unwrap_or(false);
    let of = |sources: &[usize]| {
        Ok(Reads {
            sources: sources.to_vec(),
            output: false,
        })
    };
    let output = Ok(Reads {
        sources: Vec::new(),
        output: true,
    });
    match &node.op {
        Op::AddId if to(1) => refuse("ADD_ID with computed rows"),
        Op::Add
        | Op::AddId
        | Op::Sub
        | Op::Scale(_)
        | Op::SumRows
        | Op::Mean
        | Op::Repeat
        | Op::Concat(_)
        | Op::Copy
        | Op::Constant => of(&[]),
        Op::Mul => match (to(0), to(1)) {
            (true, true) => of(&[0, 1]),
            (true, false) => of(&[1]),
            (false, _) => of(&[0]),
        },
        Op::Div if to(1) => of(&[0, 1]),
        Op::Rope(_) => of(&[1, 2]),
        Op::SoftMax(_) => {
            if to(1) || to(2) {
                return refuse("SOFT_MAX with a computed mask");
            }
            output
        }
        Op::Glu { .. } => of(&[0, 1]),
        Op::Unary(Unary::Root) => output,
        Op::RmsNorm(_) | Op::Norm(_) | Op::L2Norm(_) | Op::Unary(_) => of(&[0]),
        Op::Div | Op::GetRows | Op::SetRows => of(&[1]),
        Op::MulMat => match (weight_of(graph, node).is_some(), to(0), to(1)) {
            (true, ..) | (false, true, false) => of(&[1]),
            (false, true, true) => of(&[0, 1]),
            (false, false, _) => of(&[0]),
        },
        Op::MulMatId if weight_of(graph, node).is_some() => of(&[1, 2]),
        Op::MulMatId => refuse("MUL_MAT_ID with a computed matrix"),
        Op::Unknown(name) => refuse(name),
    }
}

impl Needs {
    /// Works out what the gradient of a graph needs, with segments whose values take at most `limit` bytes where the graph can be cut
    /// so finely.
    ///
    /// # Errors
    ///
    /// A node without a rule that a gradient would flow through.
    pub(in crate::engine) fn new(graph: &Graph, limit: u64) -> Result<Self, NoRule> {
        let mut active: HashSet<usize> = HashSet::new();
        let mut flows = Vec::with_capacity(graph.nodes.len());
        let mut values: HashMap<(usize, usize), u64> = HashMap::new();
        let mut readers: Vec<Vec<(usize, usize)>> = Vec::with_capacity(graph.nodes.len());
        for node in &graph.nodes {
            let to: Vec<bool> = node
                .sources
                .iter()
                .map(|source| {
                    source
                        .as_ref()
                        .is_some_and(|source| source.is_real && active.contains(&source.storage))
                })
                .collect();
            let begins = weight_of(graph, node).is_some();
            let passes = (begins || to.contains(&true)) && node.output.is_real && node.op != Op::Constant;
            if node.is_idle || !passes {
                flows.push(None);
                readers.push(Vec::new());
                continue;
            }
            let reads = reads(graph, node, &to)?;
            let sources = reads.sources.iter().filter_map(|at| node.source(*at));
            let operands = sources.chain(reads.output.then_some(&node.output));
            let mut mine = Vec::new();
            for operand in operands {
                let size = if operand.is_real { 4 } else { 8 };
                let bytes = graph.storages[operand.storage].len as u64 * size;
                values.insert(operand.value(), bytes);
                mine.push(operand.value());
            }
            readers.push(mine);
            active.insert(node.output.storage);
            flows.push(Some(to));
        }
        let written: BTreeMap<usize, (usize, usize)> = graph
            .nodes
            .iter()
            .enumerate()
            .filter(|(_, node)| !node.is_idle && values.contains_key(&node.output.value()))
            .map(|(at, node)| (at, node.output.value()))
            .collect();
        let mut needs = Self {
            flows,
            values,
            written,
            segments: Vec::new(),
            bytes: 0,
            largest: 0,
        };
        needs.cut(graph, &readers, limit);
        Ok(needs)
    }

    /// Returns the value to capture after a node.
    pub(in crate::engine) fn after(&self, node: usize) -> Option<(usize, usize)> {
        self.written.get(&node).copied()
    }

    /// Says whether a value is needed.
    pub(in crate::engine) fn has(&self, value: (usize, usize)) -> bool {
        self.values.contains_key(&value)
    }

    /// Cuts the graph into segments, from the end to the beginning.
    fn cut(&mut self, graph: &Graph, readers: &[Vec<(usize, usize)>], limit: u64) {
        let uses = graph.uses();
        let bytes_of = |at: usize| graph.storages[at].len as u64 * 4;
        let places: BTreeMap<usize, Vec<usize>> = (1..graph.nodes.len())
            .filter(|place| !graph.nodes[*place].is_idle)
            .filter_map(|place| Some((place, graph.crossing(&uses, place)?)))
            .collect();
        let mut end = graph.nodes.len();
        let mut largest = 0;
        let mut begins = 0;
        while end > 0 {
            // The values of the nodes from a place to the end, for each place before the end.
            let mut seen = HashSet::new();
            let mut sum = 0_u64;
            let mut best: Option<(u64, usize, u64)> = None;
            let mut start = end;
            while start > 0 {
                start -= 1;
                for value in &readers[start] {
                    if seen.insert(*value) {
                        sum += self.values.get(value).copied().unwrap_or(0);
                    }
                }
                if sum > limit && best.is_some() {
                    break;
                }
                if start == 0 {
                    best = Some((0, 0, sum));
                    break;
                }
                let Some(crossing) = places.get(&start) else { continue };
                let crossing: u64 = crossing.iter().copied().map(bytes_of).sum();
                // Among the places that leave at least half of the limit used, the one with the least to keep; else the earliest.
                let is_full = best.is_none_or(|(_, _, bytes)| bytes < limit / 2);
                if is_full || best.is_some_and(|(least, ..)| crossing < least) {
                    best = Some((crossing, start, sum));
                }
                if sum > limit {
                    break;
                }
            }
            let (crossing, start, sum) = best.unwrap_or((0, 0, sum));
            largest = largest.max(sum);
            begins += crossing;
            self.segments.push(Segment {
                nodes: start..end,
                begins_with: places.get(&start).filter(|_| start > 0).cloned().unwrap_or_default(),
            });
            end = start;
        }
        self.segments.reverse();
        self.largest = largest;
        self.bytes = largest + begins;
    }
}

#[cfg(test)]
mod tests {
    use super::super::graph::Storage;
    use super::*;

    /// A weight, an input, and a chain of nodes: a product with the weight, and then these operations.
    fn chain(ops: &[Op]) -> Graph {
        let mut graph = Graph::default();
        let storage = |name: &str, place| Storage {
            name: name.to_owned(),
            place,
            len: 16,
            counts: [4, 4, 1, 1],
        };
        graph.storages.push(storage("weight", Place::Weight));
        graph.storages.push(storage("input", Place::Input));
        let operand = |storage, version| Operand {
            storage,
            version,
            offset: 0,
            counts: [4, 4, 1, 1],
            strides: [1, 4, 16, 16],
            is_real: true,
        };
        let mut before = operand(1, 0);
        for (at, op) in std::iter::once(&Op::MulMat).chain(ops).enumerate() {
            graph.storages.push(storage(&format!("node {at}"), Place::Node));
            let output = operand(at + 2, 1);
            let sources = match op {
                Op::MulMat => vec![Some(operand(0, 0)), Some(before)],
                _ => vec![Some(before)],
            };
            before = output.clone();
            graph.nodes.push(Node {
                name: format!("node {at}"),
                op: op.clone(),
                output,
                sources,
                is_idle: false,
            });
        }
        graph
    }

    #[test]
    fn an_operation_without_a_rule_is_named() {
        let unknown = Op::Unknown("SSM_SCAN".to_owned());
        let refused = Needs::new(&chain(&[Op::Copy, unknown.clone()]), u64::MAX).unwrap_err();
        assert_eq!((refused.node.as_str(), refused.what.as_str()), ("node 2", "SSM_SCAN"));
        // No gradient flows through indices, so what follows needs no rule.
        assert!(Needs::new(&chain(&[Op::Constant, unknown]), u64::MAX).is_ok());
    }

    #[test]
    fn a_graph_is_cut_where_its_values_fit() {
        let graph = chain(&[Op::RmsNorm(1e-6), Op::RmsNorm(1e-6), Op::RmsNorm(1e-6), Op::MulMat]);
        let whole = Needs::new(&graph, u64::MAX).unwrap();
        assert_eq!(whole.segments.len(), 1);
        // Each norm reads what it is applied to: 16 numbers.
        let cut = Needs::new(&graph, 64).unwrap();
        assert!(cut.segments.len() > 2, "{:?}", cut.segments);
        assert_eq!(cut.largest, 64);
        let mut next = 0;
        for segment in &cut.segments {
            assert_eq!(segment.nodes.start, next);
            next = segment.nodes.end;
            // A chain passes one storage on.
            assert_eq!(segment.begins_with.len(), usize::from(segment.nodes.start > 0));
        }
        assert_eq!(next, graph.nodes.len());
        assert_eq!(Needs::new(&graph, 63).unwrap().largest, 64);
    }
}
