//! `[metrics.NAME]`: the table of candidates.

use crate::action;
use crate::action::Action;
use crate::action::MetricsRow;
use crate::action::Output;
use crate::engine::Role;
use crate::graph::FiguresOf;
use crate::graph::Node;
use crate::graph::Work;
use crate::prose;
use crate::recipe::model::Recipe;
use crate::recipe::model::StepId;
use crate::recipe::model::StepKind;
use crate::report::metrics::Metrics as Table;
use crate::step::Env;
use crate::step::Estimate;
use crate::step::Inputs;
use crate::step::Key;
use crate::step::Kind;
use crate::step::Outcome;
use crate::step::StepError;
use crate::step::key_of;
use crate::step::output;
use crate::step::overlap;
use crate::step::wrong_kind;
use crate::work::Context;
use crate::work::table_of;

/// The version of the table: raise it when its form changes.
const TABLE: u32 = 3;

/// A table of candidates.
pub struct Metrics;

fn rows(node: &Node) -> Result<(&str, &[FiguresOf]), StepError> {
    match &node.work {
        Work::Figures { step, rows } => Ok((&step.id.name, rows)),
        _ => Err(wrong_kind(node)),
    }
}

/// Returns the tables of candidates of a recipe, in its order.
pub fn tables(recipe: &Recipe) -> impl Iterator<Item = &StepId> {
    let ids = recipe.steps.iter().map(|step| &step.id);
    ids.filter(|id| id.kind == StepKind::Metrics)
}

/// Returns the inputs of a row.
pub fn row_of(of: &FiguresOf, inputs: &Inputs, env: &Env<'_>) -> Result<MetricsRow, StepError> {
    let candidate = inputs.step(&of.candidate)?;
    Ok(MetricsRow {
        eval: of.eval.label(),
        candidate: of.candidate.label(),
        file: candidate.fact(action::Promote::FILE)?,
        elements: candidate.fact(action::Promote::ELEMENTS)?,
        figures: inputs.of(&of.node())?.output(action::Eval::FIGURES)?,
        probed: candidate.fact(action::Promote::PROBED).ok(),
        engine: env.fingerprint(&of.engine, Role::Evaluator)?,
        overlaps: overlap::marks(of.overlaps.as_ref(), inputs, env)?,
    })
}

fn action_of(node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Action, StepError> {
    let (_, rows) = rows(node)?;
    let rows = rows
        .iter()
        .map(|row| row_of(row, inputs, env))
        .collect::<Result<_, _>>()?;
    Ok(Action::Metrics(action::Metrics {
        recipe: env.recipe.clone(),
        rows,
        table: TABLE,
    }))
}

/// Returns the names of the table's files: `metrics` if the recipe has one table, else `metrics-NAME`.
fn file_names(node: &Node, only_table: bool) -> Result<[(String, Output); 2], StepError> {
    let (name, _) = rows(node)?;
    Ok(files_of(name, only_table))
}

/// Returns the names of the files of a table and the outputs that they contain. `only` says whether the recipe has one table.
pub fn files_of(name: &str, only: bool) -> [(String, Output); 2] {
    let stem = stem(name, only);
    [
        (format!("{stem}.json"), action::Metrics::JSON),
        (format!("{stem}.md"), action::Metrics::MARKDOWN),
    ]
}

fn stem(name: &str, only: bool) -> String {
    if only {
        "metrics".to_owned()
    } else {
        format!("metrics-{name}")
    }
}

/// Returns the name of a table's file: `metrics.json` if the recipe has one table, else `metrics-NAME.json`.
pub fn json_name(table: &StepId, only: bool) -> String {
    format!("{}.json", stem(&table.name, only))
}

impl Kind for Metrics {
    fn key(&self, node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Key, StepError> {
        Ok(key_of(action_of(node, inputs, env)?))
    }

    fn is_wanted(&self) -> bool {
        true
    }

    fn rows<'n>(&self, node: &'n Node) -> &'n [FiguresOf] {
        rows(node).map_or(&[], |(_, rows)| rows)
    }

    fn table_so_far(&self, node: &Node, known: &Inputs, env: &Env<'_>) -> Result<Table, StepError> {
        let (_, rows) = rows(node)?;
        let known_rows = rows
            .iter()
            .filter(|row| known.of(&row.node()).is_ok() && known.step(&row.candidate).is_ok());
        let rows = known_rows.map(|row| row_of(row, known, env));
        table_of(env.store, &env.recipe, &rows.collect::<Result<Vec<_>, _>>()?)
    }

    fn intact(&self, node: &Node, outcome: &mut Outcome, _inputs: &Inputs, env: &Env<'_>) -> Result<bool, StepError> {
        for (name, output) in file_names(node, env.only_table)? {
            match output::intact(env, &output::path(env, &name)?, &outcome.output(output)?)? {
                Some(file) => outcome.files.push(file),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    fn output_names(&self, node: &Node, _outcome: Option<&Outcome>, only_table: bool) -> Vec<String> {
        let names = file_names(node, only_table).into_iter().flatten();
        names.map(|(name, _)| name).collect()
    }

    fn estimate_writing(
        &self,
        _node: &Node,
        outcome: &Outcome,
        _inputs: &Inputs,
        _env: &Env<'_>,
    ) -> Result<Estimate, StepError> {
        let written = outcome.output(action::Metrics::JSON)?.len + outcome.output(action::Metrics::MARKDOWN)?.len;
        Ok(Estimate::of_writing(written))
    }

    fn run(&self, node: &Node, inputs: &Inputs, env: &Env<'_>, work: &Context<'_>) -> Result<Outcome, StepError> {
        let (_, rows) = rows(node)?;
        overlap::perform_all(rows.iter().filter_map(|row| row.overlaps.as_ref()), inputs, work)?;
        let performed = work.perform(&action_of(node, inputs, env)?)?;
        let mut outcome = Outcome::of(performed, Vec::new());
        for (name, output) in file_names(node, env.only_table)? {
            let digest = outcome.output(output)?;
            outcome
                .files
                .push(output::place(env, work, &name, outcome.key, &digest)?);
        }
        outcome.ran |= work.counts().0 > 0;
        outcome.wrote = work.has_written();
        Ok(outcome)
    }

    fn summary(&self, outcome: &Outcome) -> String {
        let rows = outcome.fact(action::Metrics::ROWS).unwrap_or_default();
        format!(
            "{}, {} on the front",
            prose::count(rows, "row"),
            outcome.shown(action::Metrics::FRONT)
        )
    }
}
