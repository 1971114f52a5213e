//! The lock between those who use what is there and the collector: shared for the moment in which something is found and
//! marked, alone for the moment in which a few things are looked at again and removed.
//!
//! `flock` is not fair: a stream of sharers could keep the collector out for ever. So there are two files. Sharers pass
//! through `sweep-gate` on their way to `sweep`; the collector shuts the gate and waits for those inside to leave.

use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use crate::fs;
use crate::fs::File;
use crate::fs::FileLock;
use crate::fs::PathError;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::layout;

const GATE: &str = "sweep-gate";
const SWEEP: &str = "sweep";

/// How long threads of one process may keep the lock shared by passing it on, before new ones wait for all to leave.
const TURN: Duration = Duration::from_millis(20);

/// One process's part of the lock: its threads share one hold, so that taking it is two calls of the kernel for the first
/// and none for the rest.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    state: Mutex<State>,
    left: Condvar,
}

#[derive(Debug, Default)]
struct State {
    files: Option<(File, File)>,
    holders: usize,
    since: Option<Instant>,
}

/// While this lives, nothing is collected. For moments.
#[derive(Debug)]
pub(super) struct Using<'s> {
    store: &'s Store,
}

/// The right to remove what nobody uses. For moments.
#[derive(Debug)]
pub(super) struct Sweeping {
    // In the order in which they are let go: first those who wait inside, then those at the gate.
    _sweep: FileLock,
    _gate: FileLock,
}

impl Drop for Using<'_> {
    fn drop(&mut self) {
        let sweep = &self.store.inner.sweep;
        let mut state = sweep.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.holders -= 1;
        if state.holders == 0 {
            if let Some((_, inside)) = &state.files {
                // Nothing can be done if this fails; the lock ends with the process.
                inside.unlock().ok();
            }
            drop(state);
            sweep.left.notify_all();
        }
    }
}

impl Store {
    /// Holds collectors off for a moment. Taken before any lock of a name (`replacing`), never after.
    pub(super) fn using(&self) -> Result<Using<'_>, StoreError> {
        let sweep = &self.inner.sweep;
        let mut state = sweep.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.holders > 0 && state.since.is_some_and(|since| since.elapsed() > TURN) {
            state = sweep.left.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.holders == 0 {
            let locks = self.root().join(layout::LOCKS);
            let (gate, inside) = match state.files.take() {
                Some(files) => files,
                None => (fs::open_lock(&locks.join(GATE))?, fs::open_lock(&locks.join(SWEEP))?),
            };
            let passed = gate
                .lock_shared()
                .and_then(|()| inside.lock_shared())
                .map_err(PathError::on(&locks.join(SWEEP), "lock"));
            gate.unlock().ok();
            state.files = Some((gate, inside));
            passed?;
            state.since = Some(Instant::now());
        }
        state.holders += 1;
        Ok(Using { store: self })
    }

    /// Waits until nobody is using anything, and keeps it so for a moment.
    pub(super) fn sweeping(&self) -> Result<Sweeping, StoreError> {
        let locks = self.root().join(layout::LOCKS);
        let gate = FileLock::exclusive(&locks.join(GATE))?;
        let sweep = FileLock::exclusive(&locks.join(SWEEP))?;
        Ok(Sweeping {
            _sweep: sweep,
            _gate: gate,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn a_sweeper_comes_to_its_turn_among_busy_users_and_is_alone_then() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("store");
        let stores: Vec<Store> = (0..3).map(|_| Store::open(&root).unwrap()).collect();
        let (inside, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let worst = std::thread::scope(|scope| {
            for number in 0..9 {
                let (store, inside, stop) = (&stores[number % 3], &inside, &stop);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let _using = store.using().unwrap();
                        inside.fetch_add(1, Ordering::SeqCst);
                        std::thread::sleep(Duration::from_millis(1));
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
            let sweeper = Store::open(&root).unwrap();
            let mut worst = Duration::ZERO;
            for _ in 0..20 {
                let asked = Instant::now();
                let sweeping = sweeper.sweeping().unwrap();
                worst = worst.max(asked.elapsed());
                assert_eq!(inside.load(Ordering::SeqCst), 0);
                std::thread::sleep(Duration::from_millis(1));
                assert_eq!(inside.load(Ordering::SeqCst), 0);
                drop(sweeping);
            }
            stop.store(true, Ordering::Relaxed);
            worst
        });
        assert!(worst < Duration::from_secs(5), "{worst:?}");
    }
}
