//! The build's side of worker processes.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Read;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::ChildStdin;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;
use std::time::Instant;

use super::protocol::Answer;
use super::protocol::Request;
use crate::engine::Cancel;
use crate::work::Located;
use crate::work::StepError;
use crate::work::locked;

/// How often a build that waits for an answer looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(50);
/// How long a worker may take to stop before it is killed.
const PATIENCE: Duration = Duration::from_secs(5);
/// Lines of a worker's standard error that are kept.
const LINES: usize = 400;
/// Lines that an error carries.
const TAIL: usize = 20;
/// Bytes of a line that are kept.
const LINE: usize = 1000;

/// How worker processes are started, and those that wait for work.
#[derive(Debug)]
pub struct Workers {
    program: PathBuf,
    arguments: Vec<OsString>,
    pub(super) idle: Mutex<Vec<Worker>>,
}

impl Workers {
    /// Starts workers from a program, a `forge`, for a store; each computes with so many threads, and within so many bytes of memory beside its model. None is started before it is
    /// needed.
    pub fn new(program: &Path, store: &Path, threads: usize, memory: Option<u64>) -> Self {
        let arguments: [OsString; 6] = [
            "exec".into(),
            "--worker".into(),
            "--cache-dir".into(),
            store.into(),
            "--jobs".into(),
            threads.to_string().into(),
        ];
        let memory = memory.map(|bytes| ["--memory".into(), bytes.to_string().into()]);
        Self {
            program: program.to_owned(),
            arguments: arguments.into_iter().chain(memory.into_iter().flatten()).collect(),
            idle: Mutex::default(),
        }
    }

    pub(super) fn take(&self) -> Result<Worker, StepError> {
        match locked(&self.idle).pop() {
            Some(worker) => Ok(worker),
            None => self.start(),
        }
    }

    fn start(&self) -> Result<Worker, StepError> {
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            // An assertion of ggml would else start a debugger.
            .env("GGML_NO_BACKTRACE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| crate::fs::PathError::new(&self.program, "start a worker process from", error))?;
        let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(StepError::input("a worker process has no pipes"));
        };
        let log = Arc::new(Mutex::new(VecDeque::new()));
        let (sender, answers) = mpsc::channel();
        std::thread::spawn({
            let log = Arc::clone(&log);
            move || read_lines(stderr, &mut |line| keep(&log, line))
        });
        std::thread::spawn({
            let log = Arc::clone(&log);
            move || {
                read_lines(stdout, &mut |line| match serde_json::from_str::<Answer>(&line) {
                    // The receiver may be gone: then nobody needs the answer.
                    Ok(answer) => drop(sender.send(answer)),
                    // Something else in the process printed it.
                    Err(_) => keep(&log, line),
                });
            }
        });
        Ok(Worker {
            child,
            stdin: Some(stdin),
            answers,
            log,
            begun: None,
        })
    }
}

/// Reads lines until the end, whatever their encoding.
fn read_lines(stream: impl Read, each: &mut dyn FnMut(String)) {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    while let Ok(1..) = reader.read_until(b'\n', &mut line) {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        if !text.is_empty() {
            each(text);
        }
        line.clear();
    }
}

fn keep(log: &Mutex<VecDeque<String>>, line: String) {
    let mut log = locked(log);
    let line: String = line.chars().filter(|c| !c.is_control()).take(LINE).collect();
    log.push_back(line);
    while log.len() > LINES {
        log.pop_front();
    }
}

/// A worker process.
#[derive(Debug)]
pub(in crate::work) struct Worker {
    child: Child,
    /// Closed when the worker is to end.
    stdin: Option<ChildStdin>,
    answers: Receiver<Answer>,
    log: Arc<Mutex<VecDeque<String>>>,
    /// The step that it works for, and where the files of that are.
    pub(super) begun: Option<(String, Arc<Located>)>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        // A worker whose input ends stops its work, removes its temporary files and ends. One that is stuck is killed.
        self.stdin = None;
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(2)),
                Ok(Some(_)) | Err(_) => return,
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Worker {
    pub(super) fn send(&mut self, request: &Request) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        let stdin = self.stdin.as_mut().ok_or(std::io::ErrorKind::BrokenPipe)?;
        stdin.write_all(&line)?;
        stdin.flush()
    }

    /// Returns the next answer.
    pub(super) fn receive(&mut self, cancel: &Cancel) -> Result<Answer, Ended> {
        let mut since: Option<Instant> = None;
        loop {
            match self.answers.recv_timeout(LOOK) {
                Ok(answer) => return Ok(answer),
                Err(RecvTimeoutError::Disconnected) => return Err(Ended::ByItself),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if cancel.is_cancelled() {
                let first = *since.get_or_insert_with(|| {
                    // One that has ended meanwhile is noticed above.
                    let _ = self.send(&Request::Cancel);
                    Instant::now()
                });
                if first.elapsed() > PATIENCE {
                    let _ = self.child.kill();
                    return Err(Ended::Killed);
                }
            }
        }
    }

    /// Waits for the end of the process and says how it ended.
    pub(super) fn end(&mut self) -> (String, Vec<String>) {
        let status = self.child.wait();
        // The last lines may still be on their way.
        std::thread::sleep(LOOK);
        let log = locked(&self.log);
        let skip = log.len().saturating_sub(TAIL);
        let how = status.map_or_else(|error| format!("ended in an unknown way ({error})"), how_it_ended);
        (how, log.iter().skip(skip).cloned().collect())
    }
}

/// Why a worker gives no more answers.
pub(super) enum Ended {
    /// Its process ended.
    ByItself,
    /// It did not stop when it was asked to.
    Killed,
}

/// Says how a process ended.
fn how_it_ended(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => {
            let name = signal_hook::low_level::signal_name(signal).unwrap_or("unknown");
            let why = if signal == signal_hook::consts::SIGKILL {
                ", which happens when memory runs out"
            } else {
                ""
            };
            format!("was killed by signal {signal} ({name}){why}")
        }
        (None, Some(code)) => format!("ended with status {code}"),
        (None, None) => "ended".to_owned(),
    }
}
