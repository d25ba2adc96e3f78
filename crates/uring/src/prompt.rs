//! Writes that are done at once, within the launch.
//!
//! A write to the page cache is a copy of some microseconds. File systems that can not promise not to wait (ext4 has no buffered
//! `RWF_NOWAIT`) make io_uring give it to another thread all the same, and two wake-ups cost ten times the copy. So it is done
//! right here, as long as it does not wait in fact: where one did (writers are throttled, a page had to be read first), writes go
//! the usual way for twenty times as long, so that waiting takes a twentieth of the thread's time at most.
#![expect(unsafe_code, reason = "pwritev on buffers by address; their owners are in `flight`")]

use std::time::{Duration, Instant};

use crate::action::Action;
use crate::file::File;
use crate::flight::Slot;
use crate::outcome::outcome;

/// Longest write that is done at once, bytes: a tenth of a millisecond or two of copying.
const LONGEST_BYTES: usize = 1 << 20;

/// A write that took so long has waited for something.
const WAITED: Duration = Duration::from_millis(1);

/// So many times as long as one waited, none is done at once.
const REST_FACTOR: u32 = 20;

/// Longest time in which none is done at once.
const REST_MAX: Duration = Duration::from_secs(10);

/// How much of one turn of the executor goes to such writes. Whoever begins more waits for the next turn, so that whatever else
/// is ready comes first.
const SHARE_OF_TURN: Duration = Duration::from_millis(1);

/// Whether writes may be done at once just now.
#[derive(Default)]
pub(crate) struct Prompt {
    rests_until: Option<Instant>,
    /// In this turn.
    spent: Duration,
}

impl Prompt {
    /// The executor's next turn begins.
    pub(crate) fn next_turn(&mut self) {
        self.spent = Duration::ZERO;
    }

    /// Has this turn had its share? What is done at once beyond it lands with the next.
    pub(crate) fn is_spent(&self) -> bool {
        self.spent >= SHARE_OF_TURN
    }

    /// Does the operation in `slot`, whose segments are listed, if it is one to be done at once. A count, or a negated errno.
    pub(crate) fn attempt(&mut self, slot: &Slot, action: &Action) -> Option<i32> {
        let Action::Write { offset, .. } = *action else {
            return None;
        };
        let file = slot.cargo.as_ref()?.file.as_ref()?;
        // SAFETY: the segments are of buffers that the slot's cargo keeps.
        unsafe { self.write(file, &slot.segments, offset) }
    }

    /// Writes `segments` if that is to be done at once. A count, or a negated errno.
    ///
    /// # Safety
    /// Each segment is memory that is good for reading during this call.
    pub(crate) unsafe fn write(&mut self, file: &File, segments: &[libc::iovec], offset: u64) -> Option<i32> {
        let lens = segments.iter().map(|segment| segment.iov_len);
        if !file.is_cached() || lens.sum::<usize>() > LONGEST_BYTES {
            return None;
        }
        let begun = Instant::now();
        if self.rests_until.is_some_and(|until| begun < until) {
            return None;
        }
        let (offset, count) = (i64::try_from(offset).ok()?, i32::try_from(segments.len()).ok()?);
        // SAFETY: `segments` are `count` segments, which the caller says are good; the file is open as it is borrowed.
        let written = unsafe { libc::pwritev(file.raw(), segments.as_ptr(), count, offset) };
        let result = outcome(written);
        self.took(begun, begun.elapsed());
        Some(result)
    }

    fn took(&mut self, begun: Instant, took: Duration) {
        self.spent += took;
        self.rests_until = (took >= WAITED).then(|| begun + took + (took * REST_FACTOR).min(REST_MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waited_rests_and_turns_are_shared() {
        let mut prompt = Prompt::default();
        let now = Instant::now();
        prompt.took(now, Duration::from_micros(600));
        assert!(prompt.rests_until.is_none() && !prompt.is_spent());
        prompt.took(now, Duration::from_micros(600));
        assert!(prompt.is_spent());
        prompt.next_turn();
        assert!(!prompt.is_spent());
        prompt.took(now, Duration::from_millis(2));
        assert_eq!(prompt.rests_until, Some(now + Duration::from_millis(42)));
        prompt.took(now, Duration::from_secs(30));
        assert_eq!(prompt.rests_until, Some(now + Duration::from_secs(40)));
    }
}
