//! `forge check --twice`: runs actions twice and reports which results differ.

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::args;
use crate::cli::diagnostic::Diagnostic;
use crate::cli::escape::Block;
use crate::cli::files::Files;
use crate::cli::files::Target;
use crate::cli::files::session_failure;
use crate::cli::json;
use crate::cli::outcome;
use crate::cli::progress::Progress;
use crate::cli::selection::names_recipe;
use crate::cli::signals;
use crate::cli::terminal::Terminal;
use crate::engine::Cancel;
use crate::observer::Observer;
use crate::prose;
use crate::step::RepeatDifference;

pub(super) fn run(args: &args::Check, files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    // Words before and after the option mean the same: a recipe, or steps.
    let words = args.files.iter().chain(args.twice.iter().flatten());
    let (recipes, steps): (Vec<String>, Vec<String>) = words.cloned().partition(|word| names_recipe(word, files));
    let recipe = match (args.recipe.recipe.as_ref(), recipes.as_slice()) {
        (_, []) => args.recipe.file().to_owned(),
        (None, [recipe]) => recipe.clone(),
        _ => {
            let several = Diagnostic::error("`--twice` runs the actions of one recipe").code("usage");
            return Err(Failure::new(Exit::Usage, several.hint("give only one recipe")));
        }
    };
    let target = Target {
        steps: steps.clone(),
        ..Target::whole(recipe, args.jobs)
    };
    let cancel = Cancel::new();
    signals::stop_on_signals(&cancel, terminal);
    let (session, config) = files.session(&target, terminal, cancel)?;
    let compared = {
        let lines = json::Lines(terminal);
        let progress = Progress::new(terminal, session.graph());
        let observer: &dyn Observer = if terminal.is_json() { &lines } else { &progress };
        session
            .check_repeatability(&steps, outcome::options(&config.pools(), args.jobs), observer)
            .map_err(|error| session_failure(&error))?
    };
    for failure in &compared.report.failures {
        terminal.diagnostic(&outcome::explain(&failure.node.to_string(), &failure.error));
    }
    let mut actions: Vec<_> = compared.differences.iter().map(|difference| difference.key).collect();
    actions.sort();
    actions.dedup();
    let differ = actions.len() as u64;
    if terminal.is_json() {
        let line = serde_json::json!({
            "schema": json::SCHEMA,
            "reason": "twice",
            "actions": compared.repeated,
            "differ": differ,
        });
        terminal.data(&format!("{line}\n"));
    } else {
        terminal.data(text(&compared.differences).as_str());
        let same = compared.repeated.saturating_sub(differ);
        let verdict = match differ {
            0 => "all results are equal".to_owned(),
            _ => format!("{same} gave equal results, {differ} did not"),
        };
        terminal.line(&format!(
            "forge: ran {} twice: {verdict}",
            prose::count(compared.repeated, "action")
        ));
    }
    let exit = outcome::exit_of(&compared.report);
    Ok(match (exit, differ) {
        (Exit::Done, 1..) => Exit::Recipe,
        (exit, _) => exit,
    })
}

fn text(differences: &[RepeatDifference]) -> Block {
    let mut text = Block::new();
    for difference in differences {
        let part = if difference.part.is_empty() {
            String::new()
        } else {
            format!(", {}", difference.part)
        };
        let at = difference
            .at
            .map(|at| format!(" from byte {at} on"))
            .unwrap_or_default();
        let _ = writeln!(
            text,
            "differs  {}{part}: `{}` of {} {}{at}",
            difference.step,
            difference.output,
            difference.kind,
            difference.key.short()
        );
        let nothing = || "nothing".to_owned();
        let kept = difference.kept.clone().unwrap_or_else(nothing);
        let other = difference.differing.clone().unwrap_or_else(nothing);
        let _ = writeln!(text, "         kept {kept}");
        let _ = writeln!(text, "         then {other}");
    }
    text
}
