//! Who may still be using a cluster that nothing refers to any more.
//!
//! Invariant: a host cluster is given to a new use only after every operation has ended that could have learnt its place
//! while it was referred to. Each operation holds a [`Stay`] in the epoch in which it began; what is unreferenced is put
//! behind the epoch that is current then ([`Epochs::turn`]), and comes out once that epoch and all before it are empty. An
//! operation that is thrown away with its executor may have a transfer in the kernel of which nobody will hear again: its
//! stay never ends, and what waits behind it stays allocated (a leak until the image is checked, no corruption).

use std::mem;
use std::sync::Arc;

/// One operation's presence in an epoch.
#[derive(Debug)]
pub(crate) struct Stay(Option<Arc<()>>);

impl Stay {
    /// The operation is over: none of its transfers is in flight.
    pub(crate) fn end(mut self) {
        self.0 = None;
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        // Not ended: nobody knows when its transfers do.
        mem::forget(self.0.take());
    }
}

/// The presence of an operation that has not begun: dropped, it ends.
#[derive(Debug)]
pub(crate) struct Early(Option<Stay>);

impl Early {
    /// The operation begins.
    pub(crate) fn begin(mut self) -> Stay {
        Stay(self.0.take().and_then(|mut stay| stay.0.take()))
    }
}

impl Drop for Early {
    fn drop(&mut self) {
        if let Some(stay) = self.0.take() {
            stay.end();
        }
    }
}

impl From<Stay> for Early {
    fn from(stay: Stay) -> Self {
        Self(Some(stay))
    }
}

/// A past epoch, for those that wait until it is empty.
#[derive(Debug)]
pub(crate) struct Past(Arc<()>);

impl Past {
    /// No operation that began in it still runs.
    pub(crate) fn is_over(&mut self) -> bool {
        // Exclusive access also means that what the operations did happened before.
        Arc::get_mut(&mut self.0).is_some()
    }
}

/// The current epoch.
#[derive(Debug, Default)]
pub(crate) struct Epochs(Arc<()>);

impl Epochs {
    /// An operation begins.
    pub(crate) fn enter(&self) -> Stay {
        Stay(Some(Arc::clone(&self.0)))
    }

    /// Ends the current epoch for newcomers, and begins the next.
    pub(crate) fn turn(&mut self) -> Past {
        Past(mem::take(&mut self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_over_when_all_its_stays_ended() {
        let mut epochs = Epochs::default();
        let (one, two) = (epochs.enter(), epochs.enter());
        let mut past = epochs.turn();
        let later = epochs.enter();
        one.end();
        assert!(!past.is_over());
        two.end();
        assert!(past.is_over());
        drop(later);
        let mut past = epochs.turn();
        assert!(!past.is_over(), "an abandoned operation never ends");
        let (unbegun, begun) = (Early::from(epochs.enter()), Early::from(epochs.enter()));
        let mut past = epochs.turn();
        let begun = begun.begin();
        drop(unbegun);
        assert!(!past.is_over());
        begun.end();
        assert!(past.is_over(), "what has not begun is over when it is dropped");
    }
}
