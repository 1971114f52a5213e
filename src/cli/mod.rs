//! The command line: the only place that prints, colours, exits and reads the environment. One file per command.

mod args;
mod build;
mod bundle;
mod cache;
pub mod check;
mod check_files;
mod clean;
pub mod diagnostic;
mod diff;
mod environment;
mod escape;
mod exec;
mod files;
mod graph;
mod help;
pub mod init;
mod init_files;
mod json;
mod lock;
mod log;
mod outcome;
mod plan;
mod policy;
mod policy_chart;
mod policy_exchange;
mod policy_groups;
mod policy_show;
mod policy_source;
mod progress;
mod repeat;
mod reproduce;
mod revision;
mod selection;
mod settings;
pub mod show;
mod show_table;
mod sign;
mod signals;
mod stale;
mod table;
mod targets;
mod terminal;
mod text_file;
mod trace;
mod verify;
mod why;

use std::io::Write as _;
use std::process::ExitCode;

use clap::FromArgMatches as _;

use crate::cli::args::Args;
use crate::cli::args::Command;
use crate::cli::diagnostic::Diagnostic;
use crate::cli::terminal::Terminal;
use crate::engine::Role;

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    /// Done, or nothing to do.
    Done,
    /// The recipe or a step is at fault.
    Recipe,
    /// The command line was wrong.
    Usage,
    /// The environment is at fault.
    Environment,
    /// A signal stopped it.
    Stopped,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Recipe => 1,
            Exit::Usage => 2,
            Exit::Environment => 3,
            Exit::Stopped => signals::exit_status(),
        })
    }
}

/// A failed command: what to print, and the exit status.
struct Failure {
    diagnostics: Vec<Diagnostic>,
    exit: Exit,
}

impl Failure {
    fn new(exit: Exit, diagnostic: Diagnostic) -> Self {
        Self {
            diagnostics: vec![diagnostic],
            exit,
        }
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    signals::survive_file_size_limit();
    let args = match parse() {
        Ok(args) => args,
        Err(error) => return usage(&error),
    };
    let terminal = Terminal::new(&args.global);
    let exit = run(&args, &terminal).unwrap_or_else(|failure| {
        for diagnostic in &failure.diagnostics {
            terminal.diagnostic(diagnostic);
        }
        failure.exit
    });
    match terminal.write_error() {
        // Whoever takes what was printed for the whole would be wrong.
        Some(error) => {
            let cut =
                Diagnostic::error("the output is incomplete: stdout could not be written").code("environment::stdout");
            terminal.styled_line(&cut.caused_by(error.to_string()).render(diagnostic::Style::PLAIN));
            Exit::Environment.into()
        }
        None => exit.into(),
    }
}

/// Reads the command line.
fn parse() -> Result<Args, clap::Error> {
    let mut command = help::command();
    let mut matches = command.try_get_matches_from_mut(std::env::args_os())?;
    Args::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
}

/// Help and versions go to stdout and are no failure; anything else is one of usage, as JSON where that was asked for.
fn usage(error: &clap::Error) -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    let json = args.iter().any(|arg| arg == "--message-format=json")
        || args
            .windows(2)
            .any(|pair| pair[0] == "--message-format" && pair[1] == "json");
    if error.use_stderr() && json {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default();
        let diagnostic = Diagnostic::error(first.trim_start_matches("error: ")).code("usage");
        let _ = writeln!(std::io::stdout(), "{}", diagnostic.to_json());
    } else if args
        .iter()
        .any(|arg| arg.to_string_lossy().chars().any(escape::is_terminal_control))
    {
        // A message quotes arguments, and a pattern of the shell may have made them of file names.
        let _ = write!(std::io::stderr(), "{}", escape::escape_lines(&error.to_string()));
    } else {
        // Nothing can be said where even this cannot be printed.
        let _ = error.print();
    }
    if error.use_stderr() {
        Exit::Usage.into()
    } else {
        Exit::Done.into()
    }
}

fn run(args: &Args, terminal: &Terminal) -> Result<Exit, Failure> {
    let files = files::Files::new(&args.global);
    match &args.command {
        Command::Init(init) => init_files::run(init, &files, terminal),
        Command::Check(check) if check.twice.is_some() => repeat::run(check, &files, terminal),
        Command::Check(check) => check_files::run(check, &files, terminal),
        Command::Show(show) => files.show(&selection::only_recipe(&show.recipe, "show", &files)?, show, terminal),
        Command::Plan(plan) => plan::run(plan, &files, terminal),
        Command::Build(build) => build::run(build, &files, terminal),
        Command::Clean(clean) => clean::run(clean, &files, terminal),
        Command::Why(why) => why::run(why, &files, terminal),
        Command::Table(table) => show_table::run(table, &files, terminal),
        Command::Diff(diff) => diff::run(diff, &files, terminal),
        Command::Log(log) => log::run(log, &files, terminal),
        Command::Graph(graph) => graph::run(graph, &files, terminal),
        Command::Policy(policy) => policy::run(policy, &files, terminal),
        Command::Cache(cache) => cache::run(cache, &files, terminal),
        Command::Lock(lock) => lock::run(lock, &files, terminal),
        Command::Reproduce(reproduce) => reproduce::run(reproduce, &files, terminal),
        Command::Verify(verify) => verify::run(verify, &files, terminal),
        Command::Sign(sign) => sign::run(sign, &files, terminal),
        Command::Key(key) => sign::key(key, &files, terminal),
        Command::Bundle(bundle) => bundle::run(bundle, &files, terminal),
        Command::Schema => {
            terminal.data(init::SCHEMA);
            Ok(Exit::Done)
        }
        Command::Exec(exec) => exec::run(exec, &files, terminal),
        Command::Engine => {
            let engines = files::known_engines();
            let names: Vec<&str> = engines.names().collect();
            let identities = names
                .iter()
                .flat_map(|name| Role::ALL.map(|role| engines.identity(name, role)));
            for identity in identities.flatten() {
                if terminal.is_json() {
                    terminal.data(&json::engine_line(identity));
                    continue;
                }
                terminal.data(&format!("{}  {}\n", identity.fingerprint(), identity.role));
                for (fact, value) in &identity.facts {
                    terminal.data(&format!("  {fact}: {value}\n"));
                }
            }
            Ok(Exit::Done)
        }
    }
}
