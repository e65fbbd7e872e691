//! The threads of a backend and how they share the tasks of one step.
//!
//! The caller works with the others. Between two steps of a network pass microseconds, and to wake a
//! thread takes longer than a small layer: who waits stays awake for a moment before it sleeps.

use crate::error::{Error, Result};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a thread that waits stays awake.
const AWAKE: Duration = Duration::from_micros(200);

/// A fixed number of workers, the caller one of them.
pub(super) struct Team {
    shared: Arc<Shared>,
    /// The workers from 1 on.
    helpers: Vec<Helper>,
    /// Held while the tasks of a step are under way.
    turn: Mutex<()>,
    /// The next of each worker's own tasks.
    next: Vec<Front>,
}

/// A counter on a cache line of its own, and the next, which processors fetch with it.
#[derive(Default)]
#[repr(align(128))]
struct Front(AtomicUsize);

struct Helper {
    thread: JoinHandle<()>,
    is_asleep: Arc<AtomicBool>,
}

/// What the caller and its helpers agree on.
#[derive(Default)]
struct Shared {
    /// The number of [`Shared::job`].
    begun: AtomicUsize,
    job: RwLock<Option<Job>>,
    /// Helpers that have not yet left the job.
    busy: AtomicUsize,
    /// What the first helper that panicked said.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    is_over: AtomicBool,
}

/// What every worker below a number is to do.
#[derive(Clone)]
struct Job {
    number: usize,
    work: Work,
    workers: usize,
    caller: Thread,
}

/// Good for as long as a helper is counted in [`Shared::busy`].
#[derive(Clone, Copy)]
struct Work(*const (dyn Fn(usize) + Sync));

// SAFETY: what it points to may be called by any thread, and [`Team::work`] keeps it alive.
unsafe impl Send for Work {}
// SAFETY: as above.
unsafe impl Sync for Work {}

impl Team {
    pub fn new(threads: usize) -> Result<Team> {
        if threads == 0 {
            return Err(Error::usage("the CPU backend needs at least one thread"));
        }
        let shared = Arc::new(Shared::default());
        let next = (0..threads).map(|_| Front::default()).collect();
        let (helpers, turn) = (Vec::with_capacity(threads - 1), Mutex::new(()));
        let mut team = Team { shared: shared.clone(), helpers, turn, next };
        for worker in 1..threads {
            let is_asleep = Arc::new(AtomicBool::new(false));
            let (shared, asleep) = (shared.clone(), is_asleep.clone());
            let thread = thread::Builder::new()
                .name(format!("cpu-{worker}"))
                .spawn(move || shared.help(worker, &asleep))
                .map_err(|e| Error::device(format!("starting {threads} threads: {e}")))?;
            team.helpers.push(Helper { thread, is_asleep });
        }
        Ok(team)
    }

    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `work(worker, task)` once for every task, `worker < threads`, and returns when all
    /// are done. A worker does one task at a time. A task must not call this again.
    ///
    /// Each worker begins with its share of the tasks in a row: what it wrote in one step it is likely
    /// to read in the next, out of its own cache. Then it takes over those of others.
    pub fn each(&self, tasks: usize, work: impl Fn(usize, usize) + Sync) {
        let workers = self.threads().min(tasks);
        if workers <= 1 {
            return (0..tasks).for_each(|task| work(0, task));
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let share = |worker: usize| share(tasks, workers, worker);
        for (worker, next) in self.next[..workers].iter().enumerate() {
            next.0.store(share(worker), Ordering::Relaxed);
        }
        self.work(workers, &|worker| {
            for owner in (worker..workers).chain(0..worker) {
                loop {
                    let task = self.next[owner].0.fetch_add(1, Ordering::Relaxed);
                    if task >= share(owner + 1) {
                        break;
                    }
                    work(worker, task);
                }
            }
        });
    }

    /// When the last of so many workers is done, if each task takes them what `cost` says.
    pub fn rehearse(tasks: usize, workers: usize, cost: impl Fn(usize) -> usize) -> usize {
        let share = |worker: usize| share(tasks, workers, worker);
        let mut next: Vec<usize> = (0..workers).map(share).collect();
        let mut busy = vec![0; workers];
        for _ in 0..tasks {
            let worker = (0..workers).min_by_key(|&worker| busy[worker]).expect("one at least");
            let mut owners = (worker..workers).chain(0..worker);
            let owner = owners.find(|&owner| next[owner] < share(owner + 1));
            let task = &mut next[owner.expect("a task is left")];
            busy[worker] += cost(*task);
            *task += 1;
        }
        busy.into_iter().max().unwrap_or(0)
    }

    /// Calls `work` with each worker's number below `workers` at once, on threads of their own but
    /// for the caller's, who has the turn. A panic of one is passed on when all have returned.
    fn work(&self, workers: usize, work: &(dyn Fn(usize) + Sync)) {
        let shared = &*self.shared;
        // SAFETY: both are the same pointer. Only helpers that are counted in `busy` follow it, and
        // nothing below returns or unwinds before that count is 0 again.
        let shared_work = Work(unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync)>(
                work,
            )
        });
        shared.busy.store(workers - 1, Ordering::Relaxed);
        let number = shared.begun.load(Ordering::Relaxed).wrapping_add(1);
        let job = Job { number, work: shared_work, workers, caller: thread::current() };
        *shared.job.write().unwrap_or_else(PoisonError::into_inner) = Some(job);
        // Either this sees that a helper sleeps, or the helper sees that there is a job.
        shared.begun.store(number, Ordering::SeqCst);
        for helper in &self.helpers[..workers - 1] {
            if helper.is_asleep.load(Ordering::SeqCst) {
                helper.thread.thread().unpark();
            }
        }
        let own = catch_unwind(AssertUnwindSafe(|| work(0)));
        let is_done = || shared.busy.load(Ordering::Acquire) == 0;
        if !stay_awake(is_done) {
            while !is_done() {
                thread::park();
            }
        }
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = own.err().or(panic) {
            resume_unwind(panic);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        for helper in self.helpers.drain(..) {
            helper.thread.thread().unpark();
            // What a task of it said when it panicked went to the caller.
            let _ = helper.thread.join();
        }
    }
}

impl Shared {
    /// What a helper does from its start to its end.
    fn help(&self, worker: usize, is_asleep: &AtomicBool) {
        let mut last = 0;
        loop {
            let is_due =
                || self.begun.load(Ordering::SeqCst) != last || self.is_over.load(Ordering::SeqCst);
            if !stay_awake(is_due) {
                is_asleep.store(true, Ordering::SeqCst);
                while !is_due() {
                    thread::park();
                }
                is_asleep.store(false, Ordering::SeqCst);
            }
            if self.is_over.load(Ordering::SeqCst) {
                return;
            }
            let job = self.job.read().unwrap_or_else(PoisonError::into_inner).clone();
            // A job without this worker may be over by now, and the next one written: its number
            // counts. One with this worker stays until the worker has left it.
            let Some(Job { number, work, caller, workers }) = job else { continue };
            if number == std::mem::replace(&mut last, number) || worker >= workers {
                continue;
            }
            // SAFETY: this worker is counted until it has left.
            let work = AssertUnwindSafe(|| unsafe { (*work.0)(worker) });
            if let Err(panic) = catch_unwind(work) {
                let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
                first.get_or_insert(panic);
            }
            if self.busy.fetch_sub(1, Ordering::AcqRel) == 1 {
                caller.unpark();
            }
        }
    }
}

/// The first of the tasks a worker begins with.
fn share(tasks: usize, workers: usize, worker: usize) -> usize {
    worker * tasks / workers
}

/// Waits without sleeping, for a moment; returns whether that was enough.
fn stay_awake(is_over: impl Fn() -> bool) -> bool {
    /// Looks between two at the clock.
    const LOOKS: usize = 32;
    let start = Instant::now();
    loop {
        for _ in 0..LOOKS {
            if is_over() {
                return true;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() > AWAKE {
            return false;
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

    /// Steps follow each other faster and slower than threads fall asleep, from several callers.
    #[test]
    fn steps_of_several_callers_take_turns() {
        let team = Team::new(4).unwrap();
        let run = |caller: usize| {
            let inside: [AtomicUsize; 4] = Default::default();
            for step in 0..2000 {
                let sum = AtomicUsize::new(0);
                let tasks = (step * 7 + caller) % 9;
                team.each(tasks, |worker, task| {
                    assert_eq!(inside[worker].fetch_add(1, Ordering::SeqCst), 0, "one at a time");
                    sum.fetch_add(task + 1, Ordering::Relaxed);
                    inside[worker].fetch_sub(1, Ordering::SeqCst);
                });
                assert_eq!(sum.into_inner(), tasks * (tasks + 1) / 2);
                if step % 200 == 0 {
                    thread::sleep(AWAKE * 3);
                }
            }
        };
        thread::scope(|scope| {
            let run = &run;
            for caller in 0..3 {
                scope.spawn(move || run(caller));
            }
        });
    }

    /// A task that panics, whoever did it, is the caller's panic, and the team goes on.
    #[test]
    fn a_panic_reaches_the_caller() {
        let team = Team::new(3).unwrap();
        for bad in 0..30 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                team.each(30, |_, task| {
                    thread::sleep(Duration::from_micros(20));
                    assert!(task != bad, "task {bad} is bad");
                });
            }));
            let said = caught.unwrap_err();
            assert_eq!(said.downcast_ref::<String>(), Some(&format!("task {bad} is bad")));
        }
        let done = AtomicUsize::new(0);
        team.each(9, |_, _| {
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.into_inner(), 9);
    }
}
