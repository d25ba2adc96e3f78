//! Free space while something is written.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::HostConfig;
use crate::failure::Failure;
use crate::limits;

/// How many bytes are written between two looks at the free space.
const LOOK_EVERY_BYTES: u64 = 64 << 20;

/// Watches that work on disks leaves what must stay free: guests write to the same file system.
pub(super) struct Room<'a> {
    config: &'a HostConfig,
    /// Bytes done at the last look.
    looked_at: AtomicU64,
    lacking: Mutex<Option<Failure>>,
}

impl<'a> Room<'a> {
    pub(super) const fn of(config: &'a HostConfig) -> Self {
        Self {
            config,
            looked_at: AtomicU64::new(0),
            lacking: Mutex::new(None),
        }
    }

    /// Fails unless there is room for what is taken at once, bytes.
    pub(super) fn check(&self, wanted_bytes: u64) -> Result<(), Failure> {
        limits::check_space(self.config, wanted_bytes)
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

    fn config(dir: &std::path::Path, reserved_space_bytes: u64) -> HostConfig {
        HostConfig {
            state_dir: dir.to_owned(),
            reserved_space_bytes,
            run_dir: dir.to_owned(),
            vmm_path: dir.to_owned(),
            file_roots: Vec::new(),
            insecure_registries: Vec::new(),
            console_log_max_bytes: 0,
            console_log_keep: 0,
            image_max_bytes: 0,
            stop_timeout: std::time::Duration::ZERO,
        }
    }

    #[test]
    fn a_copy_stops_where_it_would_take_what_must_stay_free() {
        let dir = tempfile::tempdir().unwrap();
        for (reserved, lacks) in [(0, false), (u64::MAX, true)] {
            let config = config(dir.path(), reserved);
            let (meter, _watched, _cancel) = Meter::new();
            let room = Room::of(&config);
            let work = Work { meter: &meter, room };
            work.progress(LOOK_EVERY_BYTES - 1, u64::MAX);
            assert!(!work.is_stopped(), "nobody looked yet");
            work.progress(LOOK_EVERY_BYTES, u64::MAX);
            assert_eq!(work.is_stopped(), lacks);
            assert_eq!(work.room.lack().map(|failure| failure.code), lacks.then_some(ErrorCode::NoSpace));
            assert_eq!(work.room.check(0).is_err(), lacks);
        }
    }
}
