//! The token a paused device leaves behind.

/// Work a device still has in flight after it was asked to pause.
///
/// The machine is quiet only when every token has been waited for; dropping one without waiting waits too, since a
/// forgotten token would let a worker write guest memory that is thought to be still.
#[must_use = "the device is not quiet until the token was waited for"]
pub struct Draining(Option<Box<dyn FnOnce() + Send>>);

impl Draining {
    /// Nothing is in flight.
    pub const fn done() -> Self {
        Self(None)
    }

    /// `wait` blocks until the device is quiet. It must not depend on a vCPU or on another device making progress.
    pub fn until(wait: impl FnOnce() + Send + 'static) -> Self {
        Self(Some(Box::new(wait)))
    }

    /// Blocks until the device is quiet.
    pub fn wait(mut self) {
        self.finish();
    }

    fn finish(&mut self) {
        if let Some(wait) = self.0.take() {
            wait();
        }
    }
}

impl Drop for Draining {
    fn drop(&mut self) {
        self.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn waits_exactly_once_whether_waited_or_dropped() {
        let count = Arc::new(AtomicU32::new(0));
        for drop_it in [false, true] {
            let seen = Arc::clone(&count);
            let token = Draining::until(move || {
                seen.fetch_add(1, Ordering::SeqCst);
            });
            if drop_it { drop(token) } else { token.wait() }
        }
        assert_eq!(count.load(Ordering::SeqCst), 2);
    }
}
