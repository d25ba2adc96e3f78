//! Keeping a guest's changes and a job's copies apart, range by range, across threads.

use std::future::poll_fn;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// Who is at work where. A job announces its range at once, and waits for the changes that are in it; changes that come later wait
/// for the job. So neither keeps the other out for ever, and there is no circle: who changes holds one range only.
#[derive(Default)]
pub(super) struct Ranges {
    /// Changes keep away from each other as well: they have to come in one order in two places.
    exclusive: bool,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    next: u64,
    changes: Vec<(u64, Range<u64>)>,
    copies: Vec<(u64, Range<u64>)>,
    waiting: Vec<Waker>,
}

/// A range that is worked on until this is dropped.
pub(super) struct Held {
    ranges: Arc<Ranges>,
    number: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut table = self.ranges.lock();
        table.changes.retain(|(number, _)| *number != self.number);
        table.copies.retain(|(number, _)| *number != self.number);
        let waiting = std::mem::take(&mut table.waiting);
        drop(table);
        waiting.into_iter().for_each(Waker::wake);
    }
}

fn overlap(list: &[(u64, Range<u64>)], range: &Range<u64>) -> bool {
    list.iter()
        .any(|(_, held)| held.start < range.end && range.start < held.end)
}

impl Ranges {
    /// With changes one after the other where they overlap.
    pub(super) fn exclusive() -> Self {
        Self {
            exclusive: true,
            table: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a guest's change.
    pub(super) async fn change(self: &Arc<Self>, range: Range<u64>) -> Held {
        poll_fn(|context| {
            let mut table = self.lock();
            if overlap(&table.copies, &range) || (self.exclusive && overlap(&table.changes, &range)) {
                table.waiting.push(context.waker().clone());
                return Poll::Pending;
            }
            let number = table.next;
            table.next += 1;
            table.changes.push((number, range.clone()));
            Poll::Ready(Held {
                ranges: Arc::clone(self),
                number,
            })
        })
        .await
    }

    /// For a job's copy; a job works on one range at a time.
    pub(super) async fn copy(self: &Arc<Self>, range: Range<u64>) -> Held {
        let held = {
            let mut table = self.lock();
            let number = table.next;
            table.next += 1;
            table.copies.push((number, range.clone()));
            Held {
                ranges: Arc::clone(self),
                number,
            }
        };
        poll_fn(|context| {
            let mut table = self.lock();
            if overlap(&table.changes, &range) {
                table.waiting.push(context.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
        held
    }
}
