//! Operations that go on when nobody waits for them any more.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::ring::Ring;

/// An operation on its way.
type Running<T> = Pin<Box<dyn Future<Output = T>>>;

struct Kept<T: 'static> {
    running: Option<Running<T>>,
    polled: bool,
}

impl<T: 'static> Future for Kept<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        self.polled = true;
        let Some(running) = &mut self.running else {
            return Poll::Pending;
        };
        let polled = running.as_mut().poll(context);
        if polled.is_ready() {
            self.running = None;
        }
        polled
    }
}

impl<T: 'static> Drop for Kept<T> {
    fn drop(&mut self) {
        if let Some(running) = self.running.take().filter(|_| self.polled)
            && let Ok(ring) = Ring::current()
        {
            drop(ring.spawn_kept(async move { drop(running.await) }));
        }
    }
}

/// `operation`, which goes on as a task of the thread's executor when its future is dropped after the first poll, so that what it
/// holds is let go when it is over, and not before; the executor does not end earlier. Where there is none (any more) it is cut
/// off: what it held is let go, and nothing of it is in flight.
pub fn kept<T: 'static>(operation: impl Future<Output = T> + 'static) -> Pin<Box<dyn Future<Output = T>>> {
    Box::pin(Kept {
        running: Some(Box::pin(operation)),
        polled: false,
    })
}
