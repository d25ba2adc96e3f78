//! Free space while something is written.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::failure::Failure;

/// How many bytes are written between two looks at the free space.
const LOOK_EVERY_BYTES: u64 = 64 << 20;

/// Watches that work on disks leaves what must stay free: guests write to the same file system.
pub(super) struct Room<'a> {
    check: &'a (dyn Fn(u64) -> Result<(), Failure> + Sync),
    /// Bytes done at the last look.
    looked_at: AtomicU64,
    lacking: Mutex<Option<Failure>>,
}

impl<'a> Room<'a> {
    /// `check` fails unless there is room for so many bytes more.
    pub(super) const fn new(check: &'a (dyn Fn(u64) -> Result<(), Failure> + Sync)) -> Self {
        Self {
            check,
            looked_at: AtomicU64::new(0),
            lacking: Mutex::new(None),
        }
    }

    /// Fails unless there is room for what is taken at once, bytes.
    pub(super) fn check(&self, wanted_bytes: u64) -> Result<(), Failure> {
        (self.check)(wanted_bytes)
    }

    /// So many bytes are done.
    pub(super) fn done(&self, bytes: u64) {
        if bytes.saturating_sub(self.looked_at.load(Ordering::Relaxed)) < LOOK_EVERY_BYTES {
            return;
        }
        self.looked_at.store(bytes, Ordering::Relaxed);
        if let Err(failure) = self.check(0) {
            self.lacking().get_or_insert(failure);
        }
    }

    /// Why nothing more must be written, if so.
    pub(super) fn lack(&self) -> Option<Failure> {
        self.lacking().clone()
    }

    fn lacking(&self) -> std::sync::MutexGuard<'_, Option<Failure>> {
        self.lacking.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use api_types::ErrorCode;
    use disk_image::Watch;

    use super::*;
    use crate::volume_store::disk::Work;
    use crate::volume_store::meter::Meter;

    #[test]
    fn a_copy_stops_where_it_would_take_what_must_stay_free() {
        for lacks in [false, true] {
            let check = |_: u64| match lacks {
                true => Err(Failure::new(ErrorCode::NoSpace, "full")),
                false => Ok(()),
            };
            let (meter, _watched, _cancel) = Meter::new();
            let room = Room::new(&check);
            let work = Work { meter: &meter, room };
            work.progress(LOOK_EVERY_BYTES - 1, u64::MAX);
            assert!(!work.is_stopped(), "nobody looked yet");
            work.progress(LOOK_EVERY_BYTES, u64::MAX);
            assert_eq!(work.is_stopped(), lacks);
            let lack = work.room.lack().map(|failure| failure.code);
            assert_eq!(lack, lacks.then_some(ErrorCode::NoSpace));
        }
    }
}
