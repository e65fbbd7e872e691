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

    /// Does `work` on one of the threads: what it calls [`Team::each`] for then begins without a
    /// message to threads that sleep.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match &self.pool {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }

    /// Calls `work(worker, task)` once for every task, `worker < threads`, and returns when all
    /// are done. A worker does one task at a time; one that the system lets wait is not waited for,
    /// unless it has begun a task.
    pub fn each(&self, tasks: usize, work: impl Fn(usize, usize) + Sync) {
        let Some(pool) = self.pool.as_ref().filter(|_| tasks > 1) else {
            return (0..tasks).for_each(|task| work(0, task));
        };
        let next = AtomicUsize::new(0);
        let drain = || {
            let worker = rayon::current_thread_index().unwrap_or(0);
            loop {
                let task = next.fetch_add(1, Ordering::Relaxed);
                if task >= tasks {
                    break;
                }
                work(worker, task);
            }
        };
        pool.install(|| spread(self.threads.min(tasks), &drain));
    }
}

/// Offers `drain` to so many workers, of which those that come in time take part.
fn spread(workers: usize, drain: &(impl Fn() + Sync)) {
    if workers == 1 {
        return drain();
    }
    rayon::join(|| spread(workers / 2, drain), || spread(workers - workers / 2, drain));
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
