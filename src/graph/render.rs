//! Writes a graph for other programs.

use std::fmt::Write as _;

use petgraph::dot::Config;
use petgraph::dot::Dot;
use serde::Serialize;

use super::Graph;

/// A format of the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Graphviz.
    Dot,
    /// Mermaid, which Markdown pages can contain.
    Mermaid,
    /// JSON, schema `forge.graph.v1`.
    Json,
}

#[derive(Serialize)]
struct Document<'a> {
    schema: &'static str,
    recipe: &'a str,
    nodes: Vec<NodeDocument>,
}

#[derive(Serialize)]
struct NodeDocument {
    id: String,
    kind: &'static str,
    needs: Vec<String>,
}

impl Graph {
    /// Writes the graph in a format.
    pub fn render(&self, recipe: &str, format: Format) -> String {
        match format {
            Format::Dot => {
                let named = self.nodes.map(|_, node| node.id.to_string(), |_, ()| "");
                let dot = Dot::with_attr_getters(
                    &named,
                    &[Config::EdgeNoLabel, Config::NodeNoLabel],
                    &|_, _| String::new(),
                    &|_, (_, name)| format!("label = {name:?} shape = box"),
                );
                format!("{dot:?}")
            }
            Format::Mermaid => {
                let mut text = String::from("flowchart LR\n");
                for (position, &index) in self.order.iter().enumerate() {
                    let _ = writeln!(text, "  n{position}[\"{}\"]", self.nodes[index].id);
                }
                for (position, &index) in self.order.iter().enumerate() {
                    for input in self.inputs(&self.nodes[index].id) {
                        let from = self.order.iter().position(|&other| self.nodes[other].id == *input);
                        let _ = writeln!(text, "  n{} --> n{position}", from.unwrap_or_default());
                    }
                }
                text
            }
            Format::Json => {
                let nodes = self.nodes().map(|node| NodeDocument {
                    id: node.id.to_string(),
                    kind: node.id.kind(),
                    needs: self.inputs(&node.id).into_iter().map(ToString::to_string).collect(),
                });
                let document = Document {
                    schema: "forge.graph.v1",
                    recipe,
                    nodes: nodes.collect(),
                };
                let mut text = serde_json::to_string_pretty(&document).unwrap_or_default();
                text.push('\n');
                text
            }
        }
    }
}
