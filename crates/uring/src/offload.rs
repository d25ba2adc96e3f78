//! Computing beside an executor: jobs of some ten microseconds and more, on threads that the whole process shares.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;

use sandbox::{NewThread, ThreadKind};

/// Most threads, on hosts with many CPUs: what one machine's disks may take from the others.
const THREADS_MAX: usize = 4;

type Job = Box<dyn FnOnce() + Send>;

/// Does `job` on another thread. The future gives what it returned, or none if it panicked; dropped, the job still runs.
///
/// For jobs that compute and end; one that waits keeps others from running. Where no thread can be had, it is done here and now.
pub fn offload<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> Offloaded<T> {
    let outcome = Arc::new(Mutex::new(Outcome::Awaited(None)));
    let told = Arc::clone(&outcome);
    let job = Box::new(move || {
        let value = catch_unwind(AssertUnwindSafe(job)).ok();
        let before = std::mem::replace(&mut *lock(&told), Outcome::There(value));
        if let Outcome::Awaited(Some(waker)) = before {
            waker.wake();
        }
    });
    if let Some(job) = Crew::of_the_process().hire(job) {
        job();
    }
    Offloaded(outcome)
}

/// A job that was given away; see [`offload`].
#[must_use = "the job runs, but what it returns is lost"]
pub struct Offloaded<T>(Arc<Mutex<Outcome<T>>>);

enum Outcome<T> {
    Awaited(Option<Waker>),
    There(Option<T>),
}

impl<T> Future for Offloaded<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        let mut outcome = lock(&self.0);
        match &mut *outcome {
            Outcome::There(value) => Poll::Ready(value.take()),
            Outcome::Awaited(waker) => {
                *waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// Counts the processors of the process, which reads files, while that may be done: before a thread that computes for an executor
/// is wanted, by a worker that may open nothing any more.
pub(crate) fn prepare() {
    Crew::of_the_process();
}

/// The threads, and what waits for them.
struct Crew {
    line: Mutex<Line>,
    work: Condvar,
    size_max: usize,
}

#[derive(Default)]
struct Line {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

impl Crew {
    fn of_the_process() -> &'static Self {
        static CREW: OnceLock<Crew> = OnceLock::new();
        CREW.get_or_init(|| Self {
            line: Mutex::default(),
            work: Condvar::new(),
            size_max: thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX),
        })
    }

    /// Lines a job up; it comes back if there is nobody to do it.
    fn hire(&'static self, job: Job) -> Option<Job> {
        let mut line = lock(&self.line);
        if line.idle <= line.jobs.len() && line.threads < self.size_max {
            let name = format!("offload-{}", line.threads);
            let thread = NewThread::new(ThreadKind::Offload, name);
            if thread.spawn(|| self.serve()).is_ok() {
                line.threads += 1;
            }
        }
        if line.threads == 0 {
            return Some(job);
        }
        line.jobs.push_back(job);
        drop(line);
        self.work.notify_one();
        None
    }

    fn serve(&self) {
        let mut line = lock(&self.line);
        loop {
            let Some(job) = line.jobs.pop_front() else {
                line.idle += 1;
                line = self.work.wait(line).unwrap_or_else(PoisonError::into_inner);
                line.idle -= 1;
                continue;
            };
            drop(line);
            job();
            line = lock(&self.line);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Executor;

    #[test]
    fn jobs_come_back_from_other_threads() {
        let here = thread::current().id();
        let ended = Executor::new(8).unwrap().block_on(async {
            let jobs: Vec<_> = (0..200_u64)
                .map(|number| offload(move || (number * number, thread::current().id())))
                .collect();
            let mut ended = Vec::new();
            for job in jobs {
                ended.push(job.await.unwrap());
            }
            ended
        });
        for (number, (square, thread)) in (0..200_u64).zip(ended.unwrap()) {
            assert_eq!(square, number * number);
            assert_ne!(thread, here);
        }
    }

    #[test]
    fn a_panic_is_the_jobs_own() {
        let ended = Executor::new(8).unwrap().block_on(async {
            let bad = offload(|| [1, 2].iter().map(|one| one / (one - 1)).sum::<i32>()).await;
            drop(offload(|| 1));
            (bad, offload(|| 2).await)
        });
        assert_eq!(ended.unwrap(), (None, Some(2)));
    }
}
