//! Work that outlives daemons, and may be what ends them.
//!
//! Images and uploads come from outside. One that makes the daemon end, by its memory or by a defect, would do so at each start if
//! the next daemon always went on with it. So every daemon counts what it begins, before it does, and one that stops in order
//! takes that back.

use api_types::ErrorCode;

use crate::failure::Failure;
use crate::registry::{Change, ImageRow, OperationRecord, RegistryError, VolumeRecord};

/// How many daemons begin one piece of work.
const BEGUN_MAX: u32 = 3;

/// What an earlier daemon had begun and this one goes on with.
pub(crate) struct Begun {
    /// All volumes, with or without something to go on with.
    pub(crate) volumes: Vec<VolumeRecord>,
    /// Pulls, and how many daemons have begun each.
    pub(crate) pulls: Vec<(OperationRecord, u32)>,
    /// Root disks that are made to stand alone, and how many daemons have begun each.
    pub(crate) flattens: Vec<(OperationRecord, u32)>,
    /// All images, with or without an import or a deletion to go on with.
    pub(crate) images: Vec<ImageRow>,
}

/// Counts what this daemon goes on with.
pub(crate) fn count(change: &Change<'_>, begun: &mut Begun) -> Result<(), RegistryError> {
    for record in &mut begun.volumes {
        // What machines do ends nobody here: it is only followed.
        if let Some(job) = record.job.as_mut().filter(|job| !job.task.is_live()) {
            job.begun = job.begun.saturating_add(1);
            change.update_volume(record)?;
            record.revision += 1;
        }
    }
    for (operation, times) in begun.pulls.iter_mut().chain(&mut begun.flattens) {
        *times = change.operation_begun_again(operation.id)?;
    }
    for image in &mut begun.images {
        if image.operation().is_some() {
            image.begun = image.begun.saturating_add(1);
            image.resumes = image.resumes.saturating_add(1);
            change.update_image(image)?;
        }
    }
    Ok(())
}

/// Takes the counts back: this daemon stops in order.
pub(crate) fn forget(change: &Change<'_>) -> Result<(), RegistryError> {
    for mut record in change.volumes()? {
        if let Some(job) = record.job.as_mut().filter(|job| job.begun > 0) {
            job.begun = 0;
            change.update_volume(&record)?;
        }
    }
    for mut image in change.images()? {
        if image.operation().is_some() && image.begun > 0 {
            image.begun = 0;
            change.update_image(&mut image)?;
        }
    }
    change.no_operation_was_begun()
}

/// Whether this was begun too often to be begun now; this time counts.
pub(crate) const fn too_often(begun: u32) -> bool {
    begun > BEGUN_MAX
}

/// Why it is not begun.
pub(crate) fn failure() -> Failure {
    let text = format!(
        "{BEGUN_MAX} daemons in a row ended while they worked on this, perhaps because of it: look into the log before you ask \
         for it again"
    );
    Failure::new(ErrorCode::Internal, text)
}
