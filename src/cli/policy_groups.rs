//! `forge policy groups`: which tensors of a model always get the same type.

use std::collections::HashSet;

use serde_json::json;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::args;
use crate::cli::diagnostic::Diagnostic;
use crate::cli::files::Files;
use crate::cli::table;
use crate::cli::table::Cell;
use crate::cli::table::left;
use crate::cli::table::right;
use crate::cli::terminal::Terminal;
use crate::container;
use crate::fs;
use crate::imatrix::Imatrix;
use crate::policy;
use crate::policy::Energies;
use crate::policy::GroupOptions;
use crate::policy::Grouping;
use crate::policy::ModelFacts;
use crate::policy::Span;
use crate::policy::TensorFacts;
use crate::policy::TensorGroup;
use crate::work::policy::energies_of;

/// The maximum length of an imatrix.
const IMATRIX_CAP: u64 = 4 << 30;

pub(super) fn run(args: &args::PolicyGroups, files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    let failed = |what: String, cause: String| {
        let diagnostic = Diagnostic::error(what).code("policy::unreadable").caused_by(cause);
        Failure::new(Exit::Recipe, diagnostic)
    };
    let unreadable = |path: &std::path::Path, cause: String| failed(format!("can't read `{}`", path.display()), cause);
    let model =
        container::open(&files.path(&args.model)).map_err(|error| unreadable(&args.model, error.to_string()))?;
    let tensors = model.tensors().iter().map(|tensor| TensorFacts::from(&tensor.info));
    let facts = ModelFacts::from_metadata(model.metadata(), tensors.collect())
        .map_err(|error| unreadable(&args.model, error.to_string()))?;
    let energies = match &args.imatrix {
        None => Energies::new(),
        Some(path) => {
            let bytes =
                fs::read_small(&files.path(path), IMATRIX_CAP).map_err(|error| unreadable(path, error.to_string()))?;
            let imatrix = Imatrix::parse(&bytes).map_err(|error| unreadable(path, error.to_string()))?;
            let names: HashSet<&str> = facts.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
            let mut energies = energies_of(&imatrix);
            energies.retain(|name, _| names.contains(name.as_str()));
            energies
        }
    };
    let options = GroupOptions {
        tied: true,
        fuse: args.fuse.clone(),
    };
    let spans = if args.show_floors {
        let options = policy::Ashq1 {
            budget: 0,
            size: policy::FileSize {
                header: 0,
                alignment: model.alignment(),
            },
            depth: false,
            free: false,
            qat: args.qat,
            keep: &[],
            floors: &[],
            ceilings: &[],
        };
        let (spans, _) = policy::spans(&facts, &options).map_err(|error| unreadable(&args.model, error.to_string()))?;
        Some(spans)
    } else {
        None
    };
    let groups = policy::groups(&facts, &energies, &options);
    if terminal.is_json() {
        for group in &groups {
            terminal.data(&line(&facts, group, spans.as_deref()));
        }
    } else {
        let rows: Vec<Vec<Cell>> = groups
            .iter()
            .map(|group| row(&facts, group, spans.as_deref()))
            .collect();
        terminal.data(&table::rows(&rows, 2));
    }
    Ok(Exit::Done)
}

fn word_of(grouping: Grouping) -> &'static str {
    match grouping {
        Grouping::Alone => "alone",
        Grouping::Tied => "tied",
        Grouping::Fused => "fused",
    }
}

fn elements(facts: &ModelFacts, group: &TensorGroup) -> u64 {
    let members = group.members.iter().map(|at| &facts.tensors[*at].dims);
    members.map(|dims| dims.iter().product::<u64>()).sum()
}

/// The range of types of each member, if it was asked for.
fn floors<'a>(group: &'a TensorGroup, spans: Option<&'a [Span]>) -> Option<impl Iterator<Item = (&'a Span, usize)>> {
    spans.map(|spans| group.members.iter().map(|at| (&spans[*at], *at)))
}

fn row(facts: &ModelFacts, group: &TensorGroup, spans: Option<&[Span]>) -> Vec<Cell> {
    let first = floors(group, spans).and_then(|mut spans| spans.next());
    let span = match first {
        None => String::new(),
        Some((Span::Fixed { to, .. }, _)) => to.to_string(),
        Some((Span::Free { floor, ceiling }, _)) => format!("{floor} to {ceiling}"),
    };
    vec![
        left(word_of(group.grouping)),
        right(elements(facts, group).to_string()),
        left(&group.name),
        left(span),
    ]
}

fn line(facts: &ModelFacts, group: &TensorGroup, spans: Option<&[Span]>) -> String {
    let names: Vec<&str> = group
        .members
        .iter()
        .map(|at| facts.tensors[*at].name.as_str())
        .collect();
    let floors = floors(group, spans).map(|spans| {
        let of = |(span, at): (&Span, usize)| {
            let (floor, ceiling) = match span {
                Span::Fixed { to, .. } => (to, to),
                Span::Free { floor, ceiling } => (floor, ceiling),
            };
            let name = facts.tensors[at].name.clone();
            (name, json!({ "floor": floor.name(), "ceiling": ceiling.name() }))
        };
        spans.map(of).collect::<serde_json::Map<_, _>>()
    });
    let line = json!({
        "schema": crate::cli::json::SCHEMA,
        "reason": "group",
        "name": group.name,
        "grouping": word_of(group.grouping),
        "tensors": names,
        "elements": elements(facts, group),
        "floors": floors,
    });
    format!("{line}\n")
}
