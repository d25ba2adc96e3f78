//! The target of a mirror, as queues see it.

use std::sync::{Arc, Mutex, PoisonError};

use disk::{Disk, DiskError};

/// Where changes go as well, and whether one of them did not.
pub(super) struct Copying {
    target: Arc<dyn Disk>,
    failure: Mutex<Option<DiskError>>,
}

impl Copying {
    pub(super) fn to(target: Arc<dyn Disk>) -> Self {
        Self {
            target,
            failure: Mutex::new(None),
        }
    }

    pub(super) fn target(&self) -> &dyn Disk {
        &*self.target
    }

    pub(super) fn shared_target(&self) -> Arc<dyn Disk> {
        Arc::clone(&self.target)
    }

    /// The target is not what the disk is.
    pub(super) fn fail(&self, error: DiskError) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert(error);
    }

    /// The first failure, if there was one.
    pub(super) fn check(&self) -> Result<(), DiskError> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.clone().map_or(Ok(()), Err)
    }
}
