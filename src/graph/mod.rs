//! The graph of a recipe. Its nodes are the sources and steps; an evaluation has one node for each candidate. A finished graph is
//! acyclic, every input comes from exactly one node, and the order of the nodes is deterministic.

mod render;

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fmt;

use petgraph::Direction;
use petgraph::algo::toposort;
use petgraph::graph::DiGraph;
use petgraph::graph::NodeIndex;

use crate::recipe::Calibration;
use crate::recipe::model::EngineRef;
use crate::recipe::model::EvalStep;
use crate::recipe::model::MetricsStep;
use crate::recipe::model::PolicyStep;
use crate::recipe::model::Recipe;
use crate::recipe::model::SourceDef;
use crate::recipe::model::SourceName;
use crate::recipe::model::Step;
use crate::recipe::model::StepBody;
use crate::recipe::model::StepId;
use crate::recipe::model::StepKind;

pub use render::Format;

/// The identity of a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeId {
    /// A source of the recipe.
    Source(String),
    /// A step.
    Step(StepId),
    /// An evaluation of one candidate.
    Eval {
        /// The evaluation.
        eval: StepId,
        /// The candidate, a `promote` step.
        candidate: StepId,
    },
}

impl NodeId {
    /// Returns whether the node counts as a step. Sources do not: every command examines them. An evaluation counts once for each
    /// candidate.
    pub fn is_step(&self) -> bool {
        !matches!(self, Self::Source(_))
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source(name) => write!(f, "source.{name}"),
            Self::Step(id) => write!(f, "{id}"),
            Self::Eval { eval, candidate } => write!(f, "{eval}/{}", candidate.label()),
        }
    }
}

/// What a node does.
#[derive(Debug, Clone)]
pub enum Work {
    /// A source.
    Source(SourceDef),
    /// A step that needs no more than its own settings.
    Step(Step),
    /// A candidate, with its policy.
    Promote {
        /// The step.
        step: Step,
        /// Its policy.
        policy: PolicyStep,
    },
    /// An evaluation of one candidate.
    Eval {
        /// The evaluation.
        step: Step,
        /// The candidate.
        candidate: StepId,
    },
    /// A step over the figures of candidates: a table or a gate.
    Figures {
        /// The step.
        step: Step,
        /// The evaluations whose figures it uses, in the recipe's order.
        rows: Vec<FiguresOf>,
    },
}

impl Work {
    /// Returns the step; `None` for a source.
    pub fn step(&self) -> Option<&Step> {
        match self {
            Self::Source(_) => None,
            Self::Step(step) | Self::Promote { step, .. } | Self::Eval { step, .. } | Self::Figures { step, .. } => {
                Some(step)
            }
        }
    }
}

/// Returns the engine that a step uses: its own, or the recipe's.
fn engine_of<'r>(recipe: &'r Recipe, step: Option<&'r Step>) -> &'r EngineRef {
    let own = step.and_then(|step| step.engine.as_ref());
    own.unwrap_or(&recipe.engine)
}

/// An evaluation of a candidate.
#[derive(Debug, Clone, PartialEq)]
pub struct FiguresOf {
    /// The evaluation.
    pub eval: StepId,
    /// The candidate.
    pub candidate: StepId,
    /// The engine that runs the models.
    pub engine: EngineRef,
    /// If the evaluation's text may overlap with text that the candidate was calibrated on: what is to be compared.
    pub overlaps: Option<AllowedOverlaps>,
}

/// The texts of an evaluation that allows overlaps.
#[derive(Debug, Clone, PartialEq)]
pub struct AllowedOverlaps {
    /// The corpus of the evaluation.
    pub corpus: StepId,
    /// Tokens per chunk.
    pub context: u32,
    /// The corpora that the candidate was calibrated on.
    pub calibration: Vec<StepId>,
}

impl FiguresOf {
    /// Returns the node of this evaluation.
    pub fn node(&self) -> NodeId {
        NodeId::Eval {
            eval: self.eval.clone(),
            candidate: self.candidate.clone(),
        }
    }
}

/// A node.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its identity.
    pub id: NodeId,
    /// What it does.
    pub work: Work,
    /// The engine that it uses, if it needs one.
    pub engine: EngineRef,
}

/// Why a graph cannot be built. A checked recipe has none of these errors: one that occurs is a bug in the check.
#[derive(Debug, thiserror::Error)]
pub enum GraphError {
    /// A node needs a node that does not exist.
    #[error("`{node}` needs `{missing}`, which does not exist")]
    Missing {
        /// The node.
        node: String,
        /// What it needs.
        missing: String,
    },
    /// Two nodes have the same name.
    #[error("two steps are called `{0}`")]
    Twice(String),
    /// A node needs itself.
    #[error("`{0}` needs itself")]
    Cycle(String),
}

/// The graph of a recipe.
#[derive(Debug, Clone)]
pub struct Graph {
    nodes: DiGraph<Node, ()>,
    order: Vec<NodeIndex>,
    by_id: BTreeMap<NodeId, NodeIndex>,
}

impl Graph {
    /// Returns the number of steps ([`NodeId::is_step`]).
    pub fn steps(&self) -> usize {
        self.by_id.keys().filter(|id| id.is_step()).count()
    }

    /// Builds the graph of a recipe.
    pub fn of(recipe: &Recipe) -> Result<Self, GraphError> {
        let mut graph = DiGraph::new();
        let mut by_id = BTreeMap::new();
        let mut add = |graph: &mut DiGraph<Node, ()>, id: NodeId, work: Work| {
            let engine = engine_of(recipe, work.step()).clone();
            let index = graph.add_node(Node {
                id: id.clone(),
                work,
                engine,
            });
            match by_id.insert(id.clone(), index) {
                None => Ok(()),
                Some(_) => Err(GraphError::Twice(id.to_string())),
            }
        };
        for (name, source) in &recipe.sources {
            add(
                &mut graph,
                NodeId::Source(name.as_str().to_owned()),
                Work::Source(source.clone()),
            )?;
        }
        for step in &recipe.steps {
            let id = NodeId::Step(step.id.clone());
            let step = step.clone();
            match &step.body {
                StepBody::Eval(eval) => {
                    for candidate in &eval.candidates {
                        let id = NodeId::Eval {
                            eval: step.id.clone(),
                            candidate: candidate.clone(),
                        };
                        add(
                            &mut graph,
                            id,
                            Work::Eval {
                                step: step.clone(),
                                candidate: candidate.clone(),
                            },
                        )?;
                    }
                }
                StepBody::Promote(promote) => {
                    let policy = match recipe.step(&promote.policy).map(|step| &step.body) {
                        Some(StepBody::Policy(policy)) => policy.clone(),
                        _ => return Err(missing(&id, &promote.policy)),
                    };
                    add(&mut graph, id, Work::Promote { step, policy })?;
                }
                StepBody::Metrics(metrics) => {
                    let rows = rows_of(recipe, metrics);
                    add(&mut graph, id, Work::Figures { step, rows })?;
                }
                StepBody::Gate(gate) => {
                    let rows = match recipe.step(&gate.metrics).map(|step| &step.body) {
                        Some(StepBody::Metrics(metrics)) => rows_of(recipe, metrics),
                        _ => return Err(missing(&id, &gate.metrics)),
                    };
                    add(&mut graph, id, Work::Figures { step, rows })?;
                }
                _ => add(&mut graph, id, Work::Step(step))?,
            }
        }
        let mut edges = Vec::new();
        for node in graph.node_weights() {
            for need in needs(&node.work) {
                let from = by_id.get(&need).copied().ok_or_else(|| GraphError::Missing {
                    node: node.id.to_string(),
                    missing: need.to_string(),
                })?;
                edges.push((from, by_id[&node.id]));
            }
        }
        for (from, to) in edges {
            graph.update_edge(from, to, ());
        }
        let order = toposort(&graph, None).map_err(|cycle| GraphError::Cycle(graph[cycle.node_id()].id.to_string()))?;
        Ok(Self {
            order: stable(&graph, order.len()),
            nodes: graph,
            by_id,
        })
    }

    /// Returns all nodes: each after the nodes that it needs, otherwise in the recipe's order.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.order.iter().map(|&index| &self.nodes[index])
    }

    /// Returns the number of nodes.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Returns whether the graph has no nodes.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Returns a node.
    pub fn node(&self, id: &NodeId) -> Option<&Node> {
        self.by_id.get(id).map(|&index| &self.nodes[index])
    }

    /// Returns the nodes that a node needs, in the recipe's order.
    pub fn inputs(&self, id: &NodeId) -> Vec<&NodeId> {
        self.neighbours(id, Direction::Incoming)
    }

    /// Returns the nodes that need a node, in the recipe's order.
    pub fn dependents(&self, id: &NodeId) -> Vec<&NodeId> {
        self.neighbours(id, Direction::Outgoing)
    }

    /// Returns the subgraph of the given nodes and everything that they need.
    pub fn only(&self, wanted: &[NodeId]) -> Self {
        let mut keep: Vec<NodeId> = wanted.to_vec();
        let mut at = 0;
        while at < keep.len() {
            for input in self.inputs(&keep[at].clone()) {
                if !keep.contains(input) {
                    keep.push(input.clone());
                }
            }
            at += 1;
        }
        let graph = self.nodes.filter_map(
            |_, node| keep.contains(&node.id).then(|| node.clone()),
            |_, ()| Some(()),
        );
        let by_id = graph
            .node_indices()
            .map(|index| (graph[index].id.clone(), index))
            .collect();
        let order = stable(&graph, graph.node_count());
        Self {
            nodes: graph,
            order,
            by_id,
        }
    }

    fn neighbours(&self, id: &NodeId, direction: Direction) -> Vec<&NodeId> {
        let Some(&index) = self.by_id.get(id) else {
            return Vec::new();
        };
        let mut found: Vec<NodeIndex> = self.nodes.neighbors_directed(index, direction).collect();
        found.sort_unstable();
        found.into_iter().map(|index| &self.nodes[index].id).collect()
    }
}

/// Sorts nodes topologically; nodes that do not depend on each other stay in the order in which they were added.
fn stable(graph: &DiGraph<Node, ()>, count: usize) -> Vec<NodeIndex> {
    let mut order = Vec::with_capacity(count);
    let mut waits: Vec<usize> = graph
        .node_indices()
        .map(|index| graph.neighbors_directed(index, Direction::Incoming).count())
        .collect();
    let mut ready: std::collections::BTreeSet<NodeIndex> =
        graph.node_indices().filter(|index| waits[index.index()] == 0).collect();
    while let Some(index) = ready.pop_first() {
        order.push(index);
        for next in graph.neighbors_directed(index, Direction::Outgoing) {
            waits[next.index()] -= 1;
            if waits[next.index()] == 0 {
                ready.insert(next);
            }
        }
    }
    order
}

fn missing(node: &NodeId, missing: &StepId) -> GraphError {
    GraphError::Missing {
        node: node.to_string(),
        missing: missing.to_string(),
    }
}

fn needs(work: &Work) -> Vec<NodeId> {
    let source = |name: &SourceName| NodeId::Source(name.as_str().to_owned());
    let made_by = |id: &StepId| NodeId::Step(id.clone());
    match work {
        Work::Source(_) => Vec::new(),
        Work::Promote { step, policy } => {
            let mut needs = vec![source(&policy.model)];
            needs.extend(policy.join.iter().map(made_by));
            needs.extend(policy.rounding.iter().map(|rounding| made_by(&rounding.moments)));
            needs.extend(step.body.inputs().into_iter().map(made_by));
            needs
        }
        Work::Eval { step, candidate } => {
            let mut needs: Vec<NodeId> = step.body.sources().into_iter().map(source).collect();
            if let StepBody::Eval(eval) = &step.body {
                needs.push(made_by(&eval.corpus));
            }
            needs.push(made_by(candidate));
            needs
        }
        Work::Figures { rows, .. } => rows
            .iter()
            .flat_map(|row| {
                let overlaps = row.overlaps.iter();
                let texts =
                    overlaps.flat_map(|overlaps| std::iter::once(&overlaps.corpus).chain(&overlaps.calibration));
                [made_by(&row.candidate), row.node()]
                    .into_iter()
                    .chain(texts.map(made_by))
            })
            .collect(),
        Work::Step(step) => {
            let sources = step.body.sources().into_iter().map(source);
            sources.chain(step.body.inputs().into_iter().map(made_by)).collect()
        }
    }
}

fn rows_of(recipe: &Recipe, metrics: &MetricsStep) -> Vec<FiguresOf> {
    let calibration = OnceCell::new();
    let overlaps = |eval: &EvalStep, candidate: &StepId| {
        let calibration = calibration.get_or_init(|| Calibration::of(recipe));
        AllowedOverlaps {
            corpus: eval.corpus.clone(),
            context: eval.context,
            calibration: calibration.texts(candidate).into_keys().cloned().collect(),
        }
    };
    let overlaps = &overlaps;
    let evals = metrics
        .evals
        .iter()
        .filter_map(|eval| match recipe.step(eval).map(|step| &step.body) {
            Some(StepBody::Eval(step)) => Some((eval, step, engine_of(recipe, recipe.step(eval)))),
            _ => None,
        });
    evals
        .flat_map(|(eval, step, engine)| {
            step.candidates.iter().map(move |candidate| FiguresOf {
                eval: eval.clone(),
                candidate: candidate.clone(),
                engine: engine.clone(),
                overlaps: step.allow_overlap.then(|| overlaps(step, candidate)),
            })
        })
        .collect()
}

impl NodeId {
    /// Returns the kind, as in recipes.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Source(_) => "source",
            Self::Step(id) => id.kind.as_str(),
            Self::Eval { .. } => StepKind::Eval.as_str(),
        }
    }
}
