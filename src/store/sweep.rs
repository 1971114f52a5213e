//! The lock between builds and garbage collection. A build takes it shared while it finds something and marks it as used. Garbage
//! collection takes it exclusively while it checks a few files again and removes them.
//!
//! `flock` is not fair: many shared holders could keep the collector out forever. So there are two files. Shared holders first
//! lock `sweep-gate` for a moment and then `sweep`. The collector locks the gate and waits until `sweep` is released.

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

/// How long the threads of one process may hold the shared lock in turns, before new ones wait until all have released it.
const TURN: Duration = Duration::from_millis(20);

/// The shared lock of one process. Its threads share it, so only the first one makes system calls.
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

/// The shared lock: while it is held, garbage collection removes nothing. Held only briefly.
#[derive(Debug)]
pub(super) struct Using<'s> {
    store: &'s Store,
}

/// The exclusive lock: the holder may remove what no build uses. Held only briefly.
#[derive(Debug)]
pub(super) struct Sweeping {
    // In the order in which they are released.
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
                // If this fails, the lock is released when the process ends.
                inside.unlock().ok();
            }
            drop(state);
            sweep.left.notify_all();
        }
    }
}

impl Store {
    /// Takes the shared lock. It is taken before any lock of [`Store::replacing`], never after.
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

    /// Waits for the exclusive lock.
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
    fn an_exclusive_lock_is_granted_among_busy_shared_users() {
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
