//! The threads of a backend and how they share the tasks of one step.

use crate::error::{Error, Result};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A fixed number of workers.
pub(super) struct Team {
    /// `None` for a team of one: the caller does the work itself.
    pool: Option<rayon::ThreadPool>,
    threads: usize,
}

impl Team {
    pub fn new(threads: usize) -> Result<Team> {
        let pool = match threads {
            0 => return Err(Error::usage("the CPU backend needs at least one thread")),
            1 => None,
            _ => Some(
                rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .thread_name(|i| format!("cpu-{i}"))
                    .build()
                    .map_err(|e| Error::device(format!("starting {threads} threads: {e}")))?,
            ),
        };
        Ok(Team { pool, threads })
    }

    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Calls `work(worker, task)` once for every task, `worker < threads`, and returns when all
    /// are done. A worker does one task at a time.
    pub fn each(&self, tasks: usize, work: impl Fn(usize, usize) + Sync) {
        match &self.pool {
            Some(pool) if tasks > 1 => {
                let next = AtomicUsize::new(0);
                pool.broadcast(|worker| {
                    loop {
                        let task = next.fetch_add(1, Ordering::Relaxed);
                        if task >= tasks {
                            break;
                        }
                        work(worker.index(), task);
                    }
                });
            }
            _ => (0..tasks).for_each(|task| work(0, task)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_done_once() {
        assert!(Team::new(0).is_err());
        for threads in [1, 3] {
            let team = Team::new(threads).unwrap();
            for tasks in [0, 1, 2, 100] {
                let done: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                team.each(tasks, |worker, task| {
                    assert!(worker < threads);
                    done[task].fetch_add(1, Ordering::Relaxed);
                });
                assert!(done.iter().all(|d| d.load(Ordering::Relaxed) == 1));
            }
        }
    }
}
