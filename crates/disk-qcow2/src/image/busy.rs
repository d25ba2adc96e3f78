//! Guest clusters that are being mapped anew, and slices that are being loaded: each by one operation at a time.
//!
//! Invariants: an L2 entry changes only while its guest cluster's range is held, so that what an operation decided about it
//! (source of a copy, place of the data) stays true until it has linked it; a slice is read from the file by one loader at a
//! time, so that a late copy never replaces a newer one. Holders of a range may wait for slices, for the structure lock and
//! for a commit, none of which waits for a range: there is no cycle. Whoever holds is a guard, so that a dropped future
//! lets go.

use std::ops::Range;
use std::sync::Arc;

use event_listener::{Event, EventListener};

#[derive(Debug)]
struct Held {
    ticket: u64,
    range: Range<u64>,
    event: Option<Arc<Event>>,
}

/// Ranges in use. As many as there are operations in flight, so a list does.
#[derive(Debug, Default)]
pub(crate) struct Busy {
    held: Vec<Held>,
    next: u64,
}

impl Busy {
    /// Takes the range, and gives the ticket to let go of it; or what to wait for before trying again.
    pub(crate) fn take(&mut self, range: Range<u64>) -> Result<u64, EventListener> {
        let clash = |held: &&mut Held| held.range.start < range.end && range.start < held.range.end;
        if let Some(held) = self.held.iter_mut().find(clash) {
            return Err(held.event.get_or_insert_default().listen());
        }
        self.next += 1;
        self.held.push(Held {
            ticket: self.next,
            range,
            event: None,
        });
        Ok(self.next)
    }

    /// Lets go. Whoever waited is to be notified after the lock is dropped.
    #[must_use]
    pub(crate) fn leave(&mut self, ticket: u64) -> Option<Arc<Event>> {
        let index = self.held.iter().position(|held| held.ticket == ticket)?;
        self.held.swap_remove(index).event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_ranges_exclude_each_other() {
        let mut busy = Busy::default();
        let first = busy.take(3..5).unwrap();
        let other = busy.take(5..6).unwrap();
        assert!(busy.take(5..9).is_err() && busy.take(0..4).is_err());
        assert!(busy.leave(first).is_some());
        assert!(
            busy.leave(other).is_some(),
            "the second try waited for this one or the first"
        );
        let again = busy.take(0..9).unwrap();
        assert!(busy.leave(again).is_none());
    }
}
