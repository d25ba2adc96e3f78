//! Tasks: futures that run beside the one `block_on` waits for.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crate::notice::{Notice, TaskWaker};

/// The task number of the future that `block_on` waits for.
pub(crate) const MAIN: u64 = u64::MAX;

type Body = Pin<Box<dyn Future<Output = ()>>>;

struct Seat {
    generation: u32,
    /// `None` while the task runs, and in a free seat.
    body: Option<Body>,
    waker: Option<Arc<TaskWaker>>,
}

/// All tasks of one executor.
pub(crate) struct Tasks {
    notice: Arc<Notice>,
    seats: RefCell<Vec<Seat>>,
    free: RefCell<Vec<u32>>,
}

impl Tasks {
    pub(crate) fn new(notice: Arc<Notice>) -> Self {
        Self {
            notice,
            seats: RefCell::default(),
            free: RefCell::default(),
        }
    }

    pub(crate) fn spawn<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> Task<T> {
        let outcome = Rc::new(RefCell::new(Outcome {
            value: None,
            listener: None,
        }));
        let told = Rc::clone(&outcome);
        let body: Body = Box::pin(async move {
            let value = future.await;
            let mut outcome = told.borrow_mut();
            outcome.value = Some(value);
            let listener = outcome.listener.take();
            drop(outcome);
            if let Some(listener) = listener {
                listener.wake();
            }
        });
        let mut seats = self.seats.borrow_mut();
        let index = self.free.borrow_mut().pop().unwrap_or_else(|| {
            seats.push(Seat {
                generation: 0,
                body: None,
                waker: None,
            });
            u32::try_from(seats.len() - 1).unwrap_or(u32::MAX)
        });
        if let Some(seat) = seats.get_mut(index as usize) {
            let number = u64::from(seat.generation) << 32 | u64::from(index);
            let waker = Arc::new(TaskWaker::new(Arc::clone(&self.notice), number));
            seat.body = Some(body);
            seat.waker = Some(Arc::clone(&waker));
            drop(seats);
            Waker::from(waker).wake();
        }
        Task { outcome }
    }

    /// Polls the tasks of `batch` once each.
    pub(crate) fn run(&self, batch: &mut VecDeque<u64>) {
        while let Some(number) = batch.pop_front() {
            if let Some((mut body, waker)) = self.take(number) {
                waker.running();
                let waker = Waker::from(waker);
                if body.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
                    self.put_back(number, body);
                } else {
                    self.leave(number);
                }
            }
        }
    }

    /// Takes every task out, for dropping.
    pub(crate) fn evict(&self) -> Vec<Body> {
        let mut seats = self.seats.borrow_mut();
        seats.iter_mut().filter_map(|seat| seat.body.take()).collect()
    }

    fn take(&self, number: u64) -> Option<(Body, Arc<TaskWaker>)> {
        self.on_seat(number, |seat| Some((seat.body.take()?, seat.waker.clone()?)))?
    }

    fn put_back(&self, number: u64, body: Body) {
        self.on_seat(number, |seat| seat.body = Some(body));
    }

    fn leave(&self, number: u64) {
        let left = self.on_seat(number, |seat| {
            seat.waker = None;
            seat.generation = seat.generation.wrapping_add(1);
        });
        if left.is_some() {
            self.free.borrow_mut().push(index_of(number));
        }
    }

    fn on_seat<T>(&self, number: u64, act: impl FnOnce(&mut Seat) -> T) -> Option<T> {
        let mut seats = self.seats.borrow_mut();
        let seat = seats.get_mut(index_of(number) as usize)?;
        (u64::from(seat.generation) == number >> 32).then(|| act(seat))
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half")]
fn index_of(number: u64) -> u32 {
    number as u32
}

struct Outcome<T> {
    value: Option<T>,
    listener: Option<Waker>,
}

/// A spawned task. Awaiting it gives what it returned; dropping it lets it run on. If its executor ends first, it never
/// ends.
pub struct Task<T> {
    outcome: Rc<RefCell<Outcome<T>>>,
}

impl<T> Future for Task<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let mut outcome = self.outcome.borrow_mut();
        if let Some(value) = outcome.value.take() {
            return Poll::Ready(value);
        }
        outcome.listener = Some(context.waker().clone());
        Poll::Pending
    }
}
