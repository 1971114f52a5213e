//! Whether the engines that a recipe names exist, and can do what its steps ask of them.

use std::collections::BTreeSet;

use crate::engine::Capability;
use crate::engine::Engines;
use crate::graph::Graph;
use crate::recipe::model::EngineRef;
use crate::recipe::model::Place;
use crate::recipe::model::Recipe;
use crate::step;

/// An engine that cannot be used as a recipe says.
#[derive(Debug, Clone)]
pub struct EngineProblem {
    /// The engine, and where it is named.
    pub engine: EngineRef,
    /// What is wrong.
    pub what: EngineProblemKind,
}

/// What is wrong with the use of an engine.
#[derive(Debug, Clone)]
pub enum EngineProblemKind {
    /// There is none of this name.
    Unknown {
        /// Those that there are.
        known: Vec<String>,
    },
    /// It cannot do what a step needs.
    LacksCapability {
        /// What it cannot do.
        capability: Capability,
        /// The step.
        step: String,
        /// Where the step is.
        place: Place,
        /// Engines that can.
        alternatives: Vec<String>,
    },
}

/// Returns the names of the engines that the steps of a graph use.
pub fn used(graph: &Graph) -> BTreeSet<String> {
    let using = graph.nodes().filter(|node| !step::needs(node).is_empty());
    using.map(|node| node.engine.name.clone()).collect()
}

/// Checks that every engine exists and can do what the steps ask of it.
///
/// # Errors
///
/// All problems, each engine and capability once, in the order of the steps.
pub fn check(recipe: &Recipe, graph: &Graph, engines: &Engines) -> Result<(), Vec<EngineProblem>> {
    let mut problems = Vec::new();
    let (mut unknown, mut lacking) = (BTreeSet::new(), BTreeSet::new());
    // The recipe's own engine must exist even if every step names another.
    let named = std::iter::once(&recipe.engine).chain(graph.nodes().map(|node| &node.engine));
    for engine in named {
        if engines.get(&engine.name).is_none() && unknown.insert(&engine.name) {
            problems.push(EngineProblem {
                engine: engine.clone(),
                what: EngineProblemKind::Unknown {
                    known: engines.names().map(str::to_owned).collect(),
                },
            });
        }
    }
    for node in graph.nodes() {
        let Some(named) = node.work.step() else { continue };
        let Some(engine) = engines.get(&node.engine.name) else {
            continue;
        };
        for capability in step::needs(node) {
            if engine.capabilities().contains(&capability)
                || !lacking.insert((&node.engine.name, &named.id, capability))
            {
                continue;
            }
            let alternatives = engines
                .all()
                .filter(|engine| engine.capabilities().contains(&capability));
            problems.push(EngineProblem {
                engine: node.engine.clone(),
                what: EngineProblemKind::LacksCapability {
                    capability,
                    step: node.id.to_string(),
                    place: named.origin.clone(),
                    alternatives: alternatives.map(|engine| engine.name().to_owned()).collect(),
                },
            });
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}
