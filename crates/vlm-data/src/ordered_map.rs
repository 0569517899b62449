//! A parallel map that returns its results in the order of its tasks, independently of which thread
//! finishes first.
//!
//! The loader and `prepare-data` run on it. It does not limit the number of pending tasks: the
//! caller submits as many as memory allows.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, Scope};

use crossbeam_channel::{Receiver, Sender};

/// Applies a function to tasks on several threads and returns the results in the order in which the
/// tasks were submitted. Dropping it discards the tasks that no thread has started.
pub struct OrderedMap<T, R> {
    tasks: Sender<(usize, T)>,
    results: Receiver<(usize, thread::Result<R>)>,
    /// Results that arrived before those of earlier tasks.
    early: BTreeMap<usize, thread::Result<R>>,
    num_submitted: usize,
    num_returned: usize,
    stop: Arc<AtomicBool>,
    /// Empty for scoped threads, which are joined by their scope.
    threads: Vec<JoinHandle<()>>,
}

/// What each thread needs: the other ends of the channels.
struct Worker<T, R> {
    tasks: Receiver<(usize, T)>,
    results: Sender<(usize, thread::Result<R>)>,
    stop: Arc<AtomicBool>,
}

impl<T: Send, R: Send> OrderedMap<T, R> {
    /// Starts `num_threads` threads, at least one, called `name-0`, `name-1`, ….
    ///
    /// # Errors
    /// Not a single thread can be started. If only some can, a warning is logged: the results are
    /// the same.
    pub fn start(
        name: &str,
        num_threads: usize,
        map: impl Fn(T) -> R + Send + Sync + 'static,
    ) -> std::io::Result<Self>
    where
        T: 'static,
        R: 'static,
    {
        let (mut this, worker) = Self::new();
        let map = Arc::new(map);
        for k in 0..num_threads.max(1) {
            let (worker, map) = (worker.clone(), Arc::clone(&map));
            let thread = thread::Builder::new().name(format!("{name}-{k}"));
            match thread.spawn(move || worker.run(map.as_ref())) {
                Ok(thread) => this.threads.push(thread),
                Err(error) if this.threads.is_empty() => return Err(error),
                Err(error) => {
                    tracing::warn!("only {k} of {num_threads} {name} threads started: {error}");
                    break;
                }
            }
        }
        Ok(this)
    }

    /// Like [`Self::start`], on threads of `scope`, so that `map` may borrow.
    pub fn start_scoped<'scope>(
        scope: &'scope Scope<'scope, '_>,
        num_threads: usize,
        map: &'scope (impl Fn(T) -> R + Sync),
    ) -> Self
    where
        T: 'scope,
        R: 'scope,
    {
        let (this, worker) = Self::new();
        for _ in 0..num_threads.max(1) {
            let worker = worker.clone();
            scope.spawn(move || worker.run(map));
        }
        this
    }

    fn new() -> (Self, Worker<T, R>) {
        let (tasks, task_receiver) = crossbeam_channel::unbounded();
        let (result_sender, results) = crossbeam_channel::unbounded();
        let stop = Arc::new(AtomicBool::new(false));
        let worker =
            Worker { tasks: task_receiver, results: result_sender, stop: Arc::clone(&stop) };
        let early = BTreeMap::new();
        let (num_submitted, num_returned) = (0, 0);
        let threads = Vec::new();
        (Self { tasks, results, early, num_submitted, num_returned, stop, threads }, worker)
    }

    /// Queues a task.
    pub fn submit(&mut self, task: T) {
        // This cannot fail, because the threads keep the receiver until `self` is dropped.
        let _ = self.tasks.send((self.num_submitted, task));
        self.num_submitted += 1;
    }

    /// Waits for the result of the first task whose result was not returned yet; `None` if there is
    /// none.
    ///
    /// # Panics
    /// If the function panicked on that task, the panic is continued here.
    pub fn wait_next(&mut self) -> Option<R> {
        if self.num_returned == self.num_submitted {
            return None;
        }
        let result = loop {
            if let Some(result) = self.early.remove(&self.num_returned) {
                break result;
            }
            let (index, result) = self.results.recv().ok()?;
            self.early.insert(index, result);
        };
        self.num_returned += 1;
        Some(result.unwrap_or_else(|panic| resume_unwind(panic)))
    }
}

impl<T, R> Drop for OrderedMap<T, R> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Without a sender the queue of tasks ends, which ends the loops of the threads.
        self.tasks = crossbeam_channel::unbounded().0;
        for thread in self.threads.drain(..) {
            // The threads catch the panics of their tasks, so there is no result to check.
            let _ = thread.join();
        }
    }
}

impl<T, R> Worker<T, R> {
    fn run(&self, map: &impl Fn(T) -> R) {
        for (index, task) in &self.tasks {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let result = catch_unwind(AssertUnwindSafe(|| map(task)));
            if self.results.send((index, result)).is_err() {
                return;
            }
        }
    }
}

impl<T, R> Clone for Worker<T, R> {
    fn clone(&self) -> Self {
        Self {
            tasks: self.tasks.clone(),
            results: self.results.clone(),
            stop: Arc::clone(&self.stop),
        }
    }
}

/// The message of a caught panic.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|&text| text.to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use proptest::prelude::*;

    use super::*;

    fn results(map: &mut OrderedMap<usize, usize>, count: usize) -> Vec<usize> {
        (0..count).for_each(|task| map.submit(task));
        std::iter::from_fn(|| map.wait_next()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn results_come_in_the_order_of_the_tasks_on_any_number_of_threads(
            num_threads in 0..6_usize,
            count in 0..40_usize,
        ) {
            // The first tasks take longest.
            let slow_first = |task: usize| {
                (task..40).for_each(|_| thread::yield_now());
                task * task
            };
            let expected: Vec<usize> = (0..count).map(|task| task * task).collect();
            let mut map = OrderedMap::start("test", num_threads, slow_first).unwrap();
            prop_assert_eq!(&results(&mut map, count), &expected);
            prop_assert_eq!(&results(&mut map, count), &expected, "and again");
            let scoped = thread::scope(|scope| {
                let mut map = OrderedMap::start_scoped(scope, num_threads, &slow_first);
                results(&mut map, count)
            });
            prop_assert_eq!(scoped, expected);
        }
    }

    #[test]
    fn a_panic_is_passed_on_with_its_task_and_the_others_have_results() {
        let map = |task: usize| if task == 1 { panic!("task 1") } else { task };
        let mut map = OrderedMap::start("test", 2, map).unwrap();
        (0..3).for_each(|task| map.submit(task));
        assert_eq!(map.wait_next(), Some(0));
        let panic = catch_unwind(AssertUnwindSafe(|| map.wait_next())).unwrap_err();
        assert_eq!(panic_message(panic.as_ref()), "task 1");
        assert_eq!((map.wait_next(), map.wait_next()), (Some(2), None));
    }

    #[test]
    fn a_dropped_map_waits_only_for_the_tasks_that_have_begun() {
        let (release, wait) = crossbeam_channel::bounded::<()>(0);
        let num_begun = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&num_begun);
        let task = move |_: usize| {
            counter.fetch_add(1, Ordering::Relaxed);
            let _ = wait.recv();
        };
        let mut map = OrderedMap::start("test", 1, task).unwrap();
        (0..100).for_each(|task| map.submit(task));
        let yield_until = |is_true: &dyn Fn() -> bool| {
            while !is_true() {
                thread::yield_now();
            }
        };
        yield_until(&|| num_begun.load(Ordering::Relaxed) > 0);
        let stop = Arc::clone(&map.stop);
        let dropping = thread::spawn(move || drop(map));
        yield_until(&|| stop.load(Ordering::Relaxed));
        drop(release);
        dropping.join().unwrap();
        assert_eq!(num_begun.load(Ordering::Relaxed), 1);
    }
}
