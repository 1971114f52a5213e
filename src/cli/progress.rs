//! What people see of a build. In a terminal: a bar of all steps (done, running, unknown) and a line for each that runs;
//! finished steps scroll up. Elsewhere: a plain line for each finished step.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use indicatif::MultiProgress;
use indicatif::ProgressBar;
use indicatif::ProgressDrawTarget;
use indicatif::ProgressStyle;

use crate::cli::escape::escape;
use crate::cli::terminal::Terminal;
use crate::cli::terminal::columns;
use crate::graph::Graph;
use crate::graph::NodeId;
use crate::observer::ActionOutcome;
use crate::observer::Event;
use crate::observer::Observer;
use crate::observer::Phase;
use crate::observer::Unit;
use crate::prose;
use crate::report::metrics::Metrics;
use crate::report::table::Table;
use crate::vocab::verdict::StepOutcome;

/// Shows a build to people.
pub(super) struct Progress<'a> {
    terminal: &'a Terminal,
    bars: Option<MultiProgress>,
    state: Mutex<State>,
}

struct State {
    all: Option<ProgressBar>,
    running: BTreeMap<String, Running>,
    left: usize,
    /// How long the build still takes, for people.
    time_left: Option<String>,
    width: usize,
    last_line: Instant,
}

struct Running {
    bar: Option<ProgressBar>,
    unit: Option<Unit>,
    /// The phase that has a name, and its name.
    phase: Option<(Phase, String)>,
    started: Instant,
}

/// A build that takes longer says so first, in milliseconds.
const WORTH_SAYING_MS: u64 = 10_000;

impl Running {
    /// Returns the name of a step, and of its phase if that has one.
    fn name(&self, step: &str) -> String {
        match &self.phase {
            Some((_, what)) => format!("{step}: {what}:"),
            None => step.to_owned(),
        }
    }
}

/// How often a build without a terminal says that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(30);

impl<'a> Progress<'a> {
    pub(super) fn new(terminal: &'a Terminal, graph: &Graph) -> Self {
        let bars = terminal
            .progress
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10)));
        let width = graph.nodes().map(|node| node.id.to_string().len()).max().unwrap_or(0);
        let left = graph
            .nodes()
            .filter(|node| !matches!(node.id, NodeId::Source(_)))
            .count();
        let state = State {
            all: None,
            running: BTreeMap::new(),
            left,
            time_left: None,
            width,
            last_line: Instant::now(),
        };
        Self {
            terminal,
            bars,
            state: Mutex::new(state),
        }
    }

    fn line(&self, text: &str) {
        match &self.bars {
            // A bar that cannot be drawn is no reason to stop.
            Some(bars) => {
                let _ = bars.println(escape(text));
            }
            None => self.terminal.line(text),
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=- ")
}

fn left_words(left: Option<&str>) -> String {
    left.map_or_else(String::new, |left| format!(", {left} left"))
}

fn template(unit: Unit) -> &'static str {
    match unit {
        Unit::BytesHashed => "  {msg} hashing {bytes}/{total_bytes} {binary_bytes_per_sec}{prefix}",
        Unit::BytesQuantized => "  {msg} quantizing {bytes}/{total_bytes} {binary_bytes_per_sec}{prefix}",
        Unit::BytesRefined => "  {msg} refining {bytes}/{total_bytes} {binary_bytes_per_sec}{prefix}",
        Unit::BytesCompared => "  {msg} comparing {bytes}/{total_bytes} {binary_bytes_per_sec}{prefix}",
        Unit::BytesWritten => "  {msg} writing {bytes}/{total_bytes} {binary_bytes_per_sec}{prefix}",
        Unit::Chunks => "  {msg} {pos}/{len} chunks{prefix}",
        Unit::ReferenceChunks => "  {msg} reference: {pos}/{len} chunks{prefix}",
        Unit::Tensors => "  {msg} {pos}/{len} tensors",
    }
}

fn unit_words(unit: Unit, done: u64, total: u64) -> String {
    match unit {
        Unit::Chunks => format!("{done} of {total} chunks"),
        Unit::ReferenceChunks => format!("reference: {done} of {total} chunks"),
        Unit::Tensors => format!("{done} of {total} tensors"),
        Unit::BytesHashed => format!("hashed {} of {}", prose::bytes(done), prose::bytes(total)),
        Unit::BytesQuantized => format!("quantized {} of {}", prose::bytes(done), prose::bytes(total)),
        Unit::BytesRefined => format!("refined {} of {}", prose::bytes(done), prose::bytes(total)),
        Unit::BytesCompared => format!("compared {} of {}", prose::bytes(done), prose::bytes(total)),
        Unit::BytesWritten => format!("wrote {} of {}", prose::bytes(done), prose::bytes(total)),
    }
}

impl State {
    fn refresh(&self) {
        if let Some(all) = &self.all {
            let done = all.length().unwrap_or(0) - self.left as u64;
            all.set_position(done);
            let unknown = self.left.saturating_sub(self.running.len());
            all.set_message(format!(
                "{done} done, {} running, {unknown} unknown{}",
                self.running.len(),
                left_words(self.time_left.as_deref())
            ));
        }
    }
}

impl Observer for Progress<'_> {
    fn event(&self, event: &Event) {
        // The lock guards counters only; a panic elsewhere cannot have broken them.
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match event {
            Event::BuildStarted { steps, .. } => {
                if let Some(bars) = &self.bars {
                    let bar =
                        bars.add(ProgressBar::new(*steps as u64).with_style(style("[{bar:24}] {msg}  {elapsed}")));
                    bar.enable_steady_tick(Duration::from_millis(250));
                    state.all = Some(bar);
                }
            }
            Event::StepStarted { step, why, .. } => {
                if self.terminal.verbose {
                    self.line(&format!("start  {step}: {why}"));
                }
                let bar = self.bars.as_ref().map(|bars| {
                    let bar = ProgressBar::new(0).with_style(style("  {msg} {elapsed}"));
                    let bar = match &state.all {
                        Some(all) => bars.insert_before(all, bar),
                        None => bars.add(bar),
                    };
                    bar.set_message(step.clone());
                    bar
                });
                state.running.insert(
                    step.clone(),
                    Running {
                        bar,
                        unit: None,
                        phase: None,
                        started: Instant::now(),
                    },
                );
                state.refresh();
            }
            Event::Progress {
                step,
                unit,
                done,
                total,
                phase,
                left_ms,
                build_left_ms,
                ..
            } => {
                if let Some(left) = build_left_ms {
                    state.time_left = Some(prose::about_ms(*left));
                    state.refresh();
                }
                let left = left_ms.map(prose::about_ms);
                let heartbeat = self.bars.is_none() && !self.terminal.quiet && state.last_line.elapsed() >= HEARTBEAT;
                let build_left = state.time_left.clone();
                if let Some(running) = state.running.get_mut(step) {
                    if running.phase.as_ref().is_some_and(|(named, _)| Some(*named) != *phase) {
                        running.phase = None;
                    }
                    let name = running.name(step);
                    if let Some(bar) = &running.bar {
                        bar.set_prefix(left_words(left.as_deref()));
                        if running.unit != Some(*unit) && *unit != Unit::Tensors {
                            bar.reset();
                            bar.set_style(style(template(*unit)));
                            running.unit = Some(*unit);
                        }
                        if running.unit == Some(*unit) {
                            bar.set_message(name);
                            bar.set_length(*total);
                            bar.set_position(*done);
                        } else {
                            bar.set_message(format!("{step} ({})", unit_words(*unit, *done, *total)));
                        }
                    } else if heartbeat {
                        let time = prose::duration_ms(running.started.elapsed().as_millis() as u64);
                        let words = unit_words(*unit, *done, *total);
                        let left = left_words(left.as_deref());
                        let build = build_left.map_or_else(String::new, |left| format!("; build: {left} left"));
                        let name = name.trim_end_matches(':');
                        self.line(&format!("  ...  {name}: {words}, {time}{left}{build}"));
                        state.last_line = Instant::now();
                    }
                }
            }
            Event::PhaseStarted { step, phase, what, .. } => {
                if let Some(running) = state.running.get_mut(step) {
                    running.phase = Some((*phase, what.clone()));
                }
            }
            Event::MeasuringSpeeds => {
                if !self.terminal.quiet {
                    self.line("note: measuring the speed of this machine, once");
                }
            }
            Event::Estimated { time, .. } => {
                let words = prose::about_range_ms(time.likely_ms, time.least_ms, time.most_ms);
                state.time_left = Some(words.clone());
                if !self.terminal.quiet && time.likely_ms >= WORTH_SAYING_MS {
                    self.line(&format!("note: this will take about {words}"));
                }
            }
            Event::ActionFinished {
                step,
                kind,
                key,
                outcome,
                cost_ms,
                ..
            } => {
                if self.terminal.verbose && *outcome != ActionOutcome::Hit {
                    let time = prose::duration_ms(*cost_ms);
                    self.line(&format!("  {}  {step}: {kind} {} {time}", word(*outcome), key.short()));
                }
            }
            Event::Nondeterminism {
                step, kind, key, part, ..
            } => {
                let part = if part.is_empty() {
                    String::new()
                } else {
                    format!(", {part}")
                };
                self.line(&format!("DIFFERS {step}{part}: {kind} {}", key.short()));
            }
            Event::Waiting { step, holder, .. } => {
                self.line(&format!("wait   {step}: {holder} is running this action"));
            }
            Event::Warning { step, message } => self.line(&format!("warning: {step}: {message}")),
            Event::Note { step, message } => {
                if !self.terminal.quiet {
                    self.line(&format!("note: {step}: {message}"));
                }
            }
            Event::PartialTable {
                step,
                done,
                total,
                table,
            } => {
                // Not on stdout, which has the complete table only.
                if !self.terminal.quiet
                    && let Ok(table) = serde_json::from_value::<Metrics>(table.clone())
                {
                    let rows = if table.rows.iter().all(|row| row.eval == table.rows[0].eval) {
                        "candidates"
                    } else {
                        "evaluations"
                    };
                    self.line(&format!("so far: {done} of {total} {rows} ({step})"));
                    for line in Table::of(std::slice::from_ref(&table)).text(columns()).lines() {
                        self.line(line);
                    }
                    state.last_line = Instant::now();
                }
            }
            Event::OutputWritten { step, path, .. } => {
                if self.terminal.verbose {
                    self.line(&format!("wrote  {step}: {path}"));
                }
            }
            Event::StepFinished {
                step,
                outcome,
                ran,
                hit,
                elapsed_ms,
                summary,
            } => {
                if let Some(bar) = state.running.remove(step).and_then(|running| running.bar) {
                    bar.finish_and_clear();
                }
                state.left = state.left.saturating_sub(usize::from(!step.starts_with("source.")));
                let shown = match outcome {
                    StepOutcome::Ran | StepOutcome::Wrote => !self.terminal.quiet,
                    StepOutcome::Hit | StepOutcome::Skipped => self.terminal.verbose,
                    // The error itself is printed at the end, with its causes.
                    StepOutcome::Failed => true,
                };
                if shown {
                    let word = format!("{outcome:0$}", StepOutcome::WIDTH);
                    let width = state.width;
                    let time = prose::duration_ms(*elapsed_ms);
                    let parts = if *hit > 0 && *ran > 0 {
                        format!(" ({ran} of {} parts ran)", ran + hit)
                    } else {
                        String::new()
                    };
                    let text = match outcome {
                        StepOutcome::Failed | StepOutcome::Skipped => format!("{word} {step}"),
                        _ => format!("{word} {step:width$}  {time:>9}  {summary}{parts}"),
                    };
                    self.line(&text);
                    state.last_line = Instant::now();
                }
                state.refresh();
            }
            // The log is shown by `forge log show`, and what was kept is named with the error.
            Event::StepLog { .. }
            | Event::StepKept { .. }
            | Event::Table { .. }
            | Event::Outputs { .. }
            | Event::StaleOutputs { .. } => {}
            Event::BuildFinished { .. } => {
                if let Some(all) = state.all.take() {
                    all.finish_and_clear();
                }
            }
        }
    }
}

fn word(outcome: ActionOutcome) -> &'static str {
    match outcome {
        ActionOutcome::Ran => "ran",
        ActionOutcome::Hit => "hit",
        ActionOutcome::Waited => "waited",
    }
}
