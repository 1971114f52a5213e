//! What would make a build fail, found before its first step runs: missing files, sources that are not what the recipe uses them
//! as, policies that do not fit the model, texts that are too short. Nothing is stored.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::btree_map::Entry;

use super::Session;
use super::SessionError;
use super::overlap::Overlap;
use crate::engine::Role;
use crate::fs;
use crate::graph::Node;
use crate::graph::NodeId;
use crate::observer::Silent;
use crate::plan;
use crate::plan::Status;
use crate::prose;
use crate::recipe::model::SourceName;
use crate::recipe::model::StepId;
use crate::step;
use crate::step::Env;
use crate::step::StepError;
use crate::step::TextUse;
use crate::step::space::Headers;
use crate::work::Class;
use crate::work::Counted;

/// Chunks that are counted: as many as the most demanding step needs.
const ENOUGH: u64 = 2;

/// Something that would make a step fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The step or source; `None` for what all steps need.
    pub step: Option<String>,
    /// What is wrong, after the file and line of the recipe that it is about.
    pub message: String,
    /// The way out.
    pub hint: Option<String>,
    /// Whether the machine is the reason, and not the recipe or its files.
    pub is_environment: bool,
}

/// What is wrong with a recipe and its files, found before anything ran.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Findings {
    /// What would make steps fail.
    pub problems: Vec<Problem>,
    /// Evaluations on text that candidates were calibrated on.
    pub overlaps: Vec<Overlap>,
}

impl Findings {
    /// Returns whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns how much is wrong.
    pub fn len(&self) -> usize {
        self.problems.len() + self.overlaps.len()
    }
}

impl Problem {
    fn new(node: &Node, error: &StepError) -> Self {
        Self {
            step: Some(node.id.to_string()),
            message: error.to_string(),
            hint: error.hint(),
            is_environment: error.class() == Class::Environment,
        }
    }
}

impl Session {
    /// Returns why a build would be refused. Nothing if there is nothing to do. Reads the headers of models, and texts; writes
    /// nothing.
    pub fn check(&self) -> Findings {
        let env = self.env(&Silent);
        match self.problems_of_steps(&env) {
            Some(problems) => Findings {
                problems,
                overlaps: self.overlaps(),
            },
            None => Findings::default(),
        }
    }

    /// Returns what would make steps fail. Only if something would, overlaps of texts are added: the guard of a build finds them
    /// else.
    pub(super) fn problems(&self, env: &Env<'_>) -> Findings {
        let problems = self.problems_of_steps(env).unwrap_or_default();
        let overlaps = if problems.is_empty() {
            Vec::new()
        } else {
            self.overlaps()
        };
        Findings { problems, overlaps }
    }

    /// Checks the files that the user owns.
    pub(super) fn check_files(&self, env: &Env<'_>) -> Result<(), SessionError> {
        let mut headers = Headers::new(&self.graph);
        let readers = self.graph.nodes().filter(|node| step::reads_files(node));
        let checked = readers.filter_map(|node| {
            let error = step::kind_of(node).check(node, env, &mut headers).err()?;
            Some(Problem::new(node, &error))
        });
        let problems: Vec<Problem> = checked.collect();
        if problems.is_empty() {
            Ok(())
        } else {
            Err(SessionError::Refused(Findings {
                problems,
                overlaps: Vec::new(),
            }))
        }
    }

    /// Returns what would make steps fail; `None` if there is nothing to do.
    fn problems_of_steps(&self, env: &Env<'_>) -> Option<Vec<Problem>> {
        let (plan, _) = plan::survey(&self.graph, env);
        if plan.is_fresh() {
            return None;
        }
        let mut problems = Vec::new();
        if let Err(error) = fs::check_writable(&env.out) {
            problems.push(Problem {
                step: None,
                message: format!("the output folder cannot be used: {error}"),
                hint: Some("choose another folder: `--out DIR`".to_owned()),
                is_environment: true,
            });
        }
        let mut headers = Headers::new(&self.graph);
        let mut texts = Texts::default();
        for (node, entry) in self.graph.nodes().zip(&plan.entries) {
            // The others have a result.
            if matches!(entry.status, Status::Hit { .. } | Status::Write { .. }) {
                continue;
            }
            if let Err(error) = step::kind_of(node).check(node, env, &mut headers) {
                problems.push(Problem::new(node, &error));
                continue;
            }
            // What is wrong with the files of the text or of the model is reported by their own nodes.
            for read in step::kind_of(node).texts(node) {
                problems.extend(texts.check(self, node, read, env));
            }
        }
        if env.machine.cancel.is_cancelled() {
            return None;
        }
        // The same text is too short for every candidate of an evaluation.
        let mut messages = BTreeSet::new();
        problems.retain(|problem| messages.insert(problem.message.clone()));
        Some(problems)
    }
}

/// A text in the tokens of a model: the engine that tokenizes, the model, the corpus, and the tokens in a chunk.
type Reading<'n> = (&'n str, &'n SourceName, &'n StepId, u32);

/// Texts whose chunks were counted.
#[derive(Default)]
struct Texts<'n>(BTreeMap<Reading<'n>, Result<Counted, StepError>>);

impl<'n> Texts<'n> {
    /// Checks that a text has as many chunks as a node needs, and that the engine can read the vocabulary of the model. Nothing is
    /// checked if the files cannot be read: that is reported for the nodes that they belong to.
    fn check(&mut self, session: &'n Session, node: &'n Node, read: TextUse<'n>, env: &Env<'_>) -> Option<Problem> {
        let corpus = session.graph.node(&NodeId::Step(read.corpus.clone()))?;
        let model = session.graph.node(&NodeId::Source(read.model.as_str().to_owned()))?;
        let texts = step::kind_of(corpus).files(corpus, env).ok()?;
        let files = step::kind_of(model).files(model, env).ok()?;
        if !texts.iter().chain(&files).all(|path| fs::open(path).is_ok()) {
            return None;
        }
        let engine = env.fingerprint(&node.engine, Role::Evaluator).ok()?;
        let reading = (node.engine.name.as_str(), read.model, read.corpus, read.context);
        let counted = match self.0.entry(reading) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(free) => {
                let count = step::corpus::count_of(corpus, env, engine, &files, (read.context, ENOUGH)).ok()?;
                free.insert(count.count(&env.machine))
            }
        };
        let (about, error) = match counted {
            Ok(counted) if counted.chunks >= read.minimum => return None,
            Ok(counted) => (node, too_short(read, *counted, texts.len())),
            // The machine may be better when the step runs; if it is not, the step says so.
            Err(error) if error.class() != Class::Step => return None,
            Err(error) => (model, StepError::input(error.to_string())),
        };
        Some(Problem::new(about, &step::at(step::place_of(about), &error)))
    }
}

fn too_short(read: TextUse<'_>, counted: Counted, texts: usize) -> StepError {
    let per_file = if texts > 1 { " in one file" } else { "" };
    let needed = if read.minimum == 1 {
        "one is".to_owned()
    } else {
        format!("{} are", read.minimum)
    };
    StepError::input_hint(
        format!(
            "the text of `{}` is too short: {} make {} of {} tokens{per_file}, and {needed} needed",
            read.corpus,
            prose::count(counted.tokens, "token"),
            prose::count(counted.chunks, "chunk"),
            read.context,
        ),
        "give the corpus more text, or lower `context`",
    )
}
