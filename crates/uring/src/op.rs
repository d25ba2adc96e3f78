//! One operation as a future.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use guestmem::IoBuf;

use crate::flight::{Key, Landing, Progress};
use crate::inner::Inner;

/// How an operation ended: the kernel's count, the buffers, the eventfd's counter.
pub(crate) struct Ending {
    pub(crate) result: io::Result<usize>,
    pub(crate) bufs: Vec<IoBuf>,
    pub(crate) word: u64,
}

/// An operation that was started when this was made, and goes to the kernel with its executor's next turn.
///
/// Dropping it does not take it back. Transfers and changes of files run to their end unseen; what may wait for ever (streams,
/// events, sleep) is cancelled. Buffers and file are kept until the kernel is done with them either way.
#[must_use = "the operation runs, but its outcome is lost"]
pub struct Op<T> {
    inner: Rc<Inner>,
    state: State,
    finish: fn(Ending) -> T,
}

enum State {
    Flying(Key),
    Refused(Ending),
    Taken,
}

impl<T> Op<T> {
    pub(crate) fn flying(inner: Rc<Inner>, key: Key, finish: fn(Ending) -> T) -> Self {
        Self {
            inner,
            state: State::Flying(key),
            finish,
        }
    }

    pub(crate) fn refused(inner: Rc<Inner>, error: io::Error, bufs: Vec<IoBuf>, finish: fn(Ending) -> T) -> Self {
        Self {
            inner,
            state: State::Refused(Ending {
                result: Err(error),
                bufs,
                word: 0,
            }),
            finish,
        }
    }

    /// A way to cancel this operation from elsewhere on this thread.
    pub fn canceller(&self) -> Canceller {
        let key = match self.state {
            State::Flying(key) => Some(key),
            State::Refused(_) | State::Taken => None,
        };
        Canceller {
            inner: Rc::clone(&self.inner),
            key,
        }
    }
}

/// Operations are moved about freely: nothing of theirs is in the future itself.
impl<T> Unpin for Op<T> {}

impl<T> Future for Op<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let ending = match std::mem::replace(&mut self.state, State::Taken) {
            State::Flying(key) => match self.inner.progress(key, context.waker()) {
                Some(Progress::Landed(Landing { result, bufs, word })) => {
                    let result = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
                    Ending { result, bufs, word }
                }
                Some(Progress::Flying) => {
                    self.state = State::Flying(key);
                    return Poll::Pending;
                }
                None => return Poll::Pending,
            },
            State::Refused(ending) => ending,
            // Polled after it was ready: nothing more will come.
            State::Taken => return Poll::Pending,
        };
        Poll::Ready((self.finish)(ending))
    }
}

impl<T> Drop for Op<T> {
    fn drop(&mut self) {
        if let State::Flying(key) = self.state {
            self.inner.abandon(key);
        }
    }
}

/// Cancels one operation. Outlives it harmlessly.
#[derive(Clone)]
pub struct Canceller {
    inner: Rc<Inner>,
    key: Option<Key>,
}

impl Canceller {
    /// Asks the kernel to give the operation up. Its future then ends with `ECANCELED`, or as if nothing had been asked if it was
    /// too late; a transfer that has begun on a regular file is usually too late.
    pub fn cancel(&self) {
        if let Some(key) = self.key {
            self.inner.cancel(key);
        }
    }
}
