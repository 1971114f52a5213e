//! `forge exec`: runs actions of the store from their documents, in this process.

use std::io;
use std::path::Path;

use crate::action::Action;
use crate::action::ActionResult;
use crate::action::InspectModel;
use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::args;
use crate::cli::diagnostic::Diagnostic;
use crate::cli::escape::escape;
use crate::cli::files;
use crate::cli::files::Files;
use crate::cli::outcome;
use crate::cli::signals;
use crate::cli::terminal::Terminal;
use crate::container;
use crate::content::Content;
use crate::digest::ActionDigest;
use crate::engine::Cancel;
use crate::fs;
use crate::observer::Event;
use crate::observer::Observer;
use crate::work::ActionOutputs;
use crate::work::Context;
use crate::work::INDEX;
use crate::work::Located;
use crate::work::Machine;
use crate::work::Models;
use crate::work::SourceFile;
use crate::work::StepError;
use crate::work::serve;

/// The maximum length of a document of an action.
const ACTION_CAP: u64 = 16 << 20;

/// Prints what users should know; progress is not shown.
struct Reports<'t>(&'t Terminal);

impl Observer for Reports<'_> {
    fn event(&self, event: &Event) {
        match event {
            Event::Warning { message, .. } => self.0.line(&format!("warning: {message}")),
            Event::Note { message, .. } => self.0.line(&format!("note: {message}")),
            _ => {}
        }
    }
}

pub(super) fn run(args: &args::Exec, files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    let store = files.store(terminal)?;
    let (_, settings) = files.cache()?;
    let runtime = files::runtime(args.jobs, &settings)?;
    if args.worker {
        signals::ignore_stop_signals();
        #[expect(
            clippy::exit,
            reason = "the build that this process works for is gone, and its work does not stop"
        )]
        let give_up = || std::process::exit(0);
        let served = serve(
            io::BufReader::new(io::stdin()),
            io::stdout(),
            &store,
            &runtime.engines,
            args.memory.or(runtime.memory),
            give_up,
        );
        return served.map(|()| Exit::Done).map_err(|error| failure("worker", &error));
    }
    let cancel = Cancel::new();
    signals::stop_on_signals(&cancel, terminal);
    let _lease = store.lease().map_err(|error| failure("store", &error.into()))?;
    let reports = Reports(terminal);
    let models = Models::default();
    let machine = Machine {
        store: &store,
        observer: &reports,
        cancel,
        engines: &runtime.engines,
        workers: None,
        models: &models,
        repeat: None,
        failed: None,
        forecast: None,
        memory: runtime.memory,
    };
    let context = Context::new("exec", &machine, Located::default());
    for source in &args.source {
        let name = source.display().to_string();
        locate(&context, &files.path(source)).map_err(|error| failure(&name, &error))?;
    }
    let mut fine = true;
    for named in &args.actions {
        match execute(&context, named, args, files) {
            Ok(done) => print(terminal, named, &done),
            Err(error) => {
                fine = false;
                terminal.diagnostic(&outcome::explain(named, &error));
            }
        }
        if context.cancel().is_cancelled() {
            return Ok(Exit::Stopped);
        }
    }
    Ok(if fine { Exit::Done } else { Exit::Recipe })
}

/// The outcome of an action.
struct Executed {
    key: ActionDigest,
    kind: &'static str,
    made: ActionOutputs,
    /// The result of the store, if it has one.
    recorded: Option<ActionResult>,
    /// Whether the action ran: with `--commit`, a result of the store is used.
    is_run: bool,
}

impl Executed {
    /// Says how the result compares with the one of the store.
    fn verdict(&self) -> &'static str {
        match &self.recorded {
            Some(_) if !self.is_run => "hit",
            None => "new",
            Some(recorded) if recorded.outputs == self.made.outputs && recorded.facts == self.made.facts => "same",
            Some(_) => "differs",
        }
    }
}

/// Adds a file to those that actions find by digest, and what is in it if it is a model.
fn locate(context: &Context<'_>, path: &Path) -> Result<(), StepError> {
    let paths = container::parts(path);
    let mut found = Vec::with_capacity(paths.len());
    for path in &paths {
        found.push(SourceFile::read(context.store(), path, &|_| {})?);
    }
    for file in &found {
        context.locate(|located| located.add_file(file.clone()));
    }
    if matches!(Content::of(path), Ok(Content::Model)) {
        let action = Action::InspectModel(InspectModel {
            files: found.iter().map(|file| file.digest).collect(),
            index: INDEX,
        });
        let inspected = context.perform(&action)?;
        context.locate(|located| located.add(&inspected.result, &found));
    }
    Ok(())
}

/// Reads an action: from a file, or by its digest from the store.
fn action_of(context: &Context<'_>, named: &str, files: &Files) -> Result<Action, StepError> {
    if let Ok(key) = named.parse::<ActionDigest>() {
        return context.action(&key);
    }
    let bytes = fs::read_small(&files.path(named), ACTION_CAP)?;
    Action::parse(&bytes).map_err(|error| StepError::Document {
        what: "action",
        problem: error.to_string(),
    })
}

fn execute(context: &Context<'_>, named: &str, args: &args::Exec, files: &Files) -> Result<Executed, StepError> {
    let action = action_of(context, named, files)?;
    let key = action.digest();
    let recorded = context.store().lookup(&key)?;
    let is_run = !(args.commit && recorded.is_some());
    if let Some(out) = &args.out {
        let out = files.path(out);
        fs::create_dir_all(&out)?;
        context.write_candidate_in(&out);
    }
    let made = if args.commit {
        let performed = context.perform(&action)?;
        ActionOutputs {
            outputs: performed.result.outputs,
            facts: performed.result.facts,
        }
    } else {
        context.run(&action)?
    };
    if let (Some(out), Some(written)) = (&args.out, context.take_candidate()) {
        let name = container::file_name(&key.hash().short());
        written.persist(&files.path(out).join(name), fs::Durability::Synced)?;
    }
    Ok(Executed {
        key,
        kind: action.kind(),
        made,
        recorded,
        is_run,
    })
}

fn print(terminal: &Terminal, named: &str, done: &Executed) {
    if terminal.is_json() {
        let line = serde_json::json!({
            "schema": crate::cli::diagnostic::SCHEMA,
            "reason": "executed",
            "action": done.key,
            "kind": done.kind,
            "result": done.verdict(),
            "outputs": done.made.outputs,
            "facts": done.made.facts,
        });
        terminal.data(&format!("{line}\n"));
        return;
    }
    let verdict = match done.verdict() {
        "hit" => "already in the store, not run",
        "same" => "the same as in the store",
        "differs" => "not the same as in the store",
        _ => "not in the store",
    };
    terminal.data(&format!("{} {}: {verdict}\n", done.kind, escape(named)));
    for (name, digest) in &done.made.outputs {
        terminal.data(&format!("  {name}: {digest}\n"));
    }
    for (name, value) in &done.made.facts {
        terminal.data(&format!("  {name} = {}\n", escape(value)));
    }
}

fn failure(what: &str, error: &StepError) -> Failure {
    let exit = match error.class() {
        crate::work::Class::Environment => Exit::Environment,
        crate::work::Class::Step | crate::work::Class::Stopped => Exit::Recipe,
    };
    let mut diagnostic = Diagnostic::error(format!("`{what}`: {error}")).code("exec::failed");
    if let Some(hint) = error.hint() {
        diagnostic = diagnostic.hint(hint);
    }
    Failure::new(exit, diagnostic)
}
