//! One volume: its files, its state, and the work that is done on it. Nothing here knows of requests or machines' processes.
//!
//! A volume is a record in the registry and a file. Whatever takes time is a [`crate::registry::Job`]: it is written down before
//! it begins, and a daemon that finds one at its start begins it anew, under the same operation; nothing half-made is ever
//! seen, since a volume takes its place by a rename.
//!
//! ```text
//!                 Create                        Resize, Check
//!   creating ───────────────▶ ready ◀──────────────────────────▶ (ready, with a job)
//!    │  ▲ │                     │
//!    │  │ └ upload complete:    │ delete, when no machine has it
//!    │  └── Finish              ▼
//!    └─── failed ───────────▶ deleting ──▶ gone
//! ```
//!
//! Machines and jobs lock the file, so that a running machine and a job never write one at the same time, whatever the records
//! say.

mod disk;
mod files;
mod meter;
mod room;
mod settle;
mod wish;
mod work;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use api_types::{ErrorCode, VmPhase, Volume, VolumeAttachment, VolumeState};
use spec::{DiskFormat, VolumeId};
use tokio::sync::Semaphore;

pub(crate) use disk::trouble;
pub(crate) use files::{Files, clear, code, failure};
pub(crate) use meter::{Meter, cancelled};
pub(crate) use settle::{NewFile, empty_layer, new_layer, new_part, settled};
pub(crate) use wish::{SECTOR_BYTES, check_name, check_size, check_wish};
pub(crate) use work::{Outcome, carry_out, measure};

use crate::context::Context;
use crate::failure::Failure;
use crate::registry::{Change, Holder, VolumeRecord};

/// Jobs that work at the same time; further ones wait. Each keeps a thread and the storage busy.
const JOBS_MAX: usize = 4;
/// Volumes that are sent at the same time; further senders wait. Each keeps a thread.
const SENDERS_MAX: usize = 8;

/// What is known of volumes in this process only.
pub(crate) struct Keeper {
    pub(crate) jobs: Arc<Semaphore>,
    /// Turns of those who send volumes.
    pub(crate) senders: Semaphore,
    /// The turn of who removes files that volumes do not consist of any more.
    pub(crate) removal: tokio::sync::Mutex<()>,
    /// Volumes that somebody is sending.
    uploads: Mutex<HashSet<VolumeId>>,
}

impl Default for Keeper {
    fn default() -> Self {
        Self {
            jobs: Arc::new(Semaphore::new(JOBS_MAX)),
            senders: Semaphore::new(SENDERS_MAX),
            removal: tokio::sync::Mutex::new(()),
            uploads: Mutex::default(),
        }
    }
}

/// What a machine needs to open a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VolumeFile {
    /// Its file; whoever uses it locks it.
    pub(crate) path: std::path::PathBuf,
    /// Files of its own that this may be backed by.
    pub(crate) below: Vec<std::path::PathBuf>,
    /// How its bytes lie there.
    pub(crate) format: DiskFormat,
    /// The disk of the image it shares blocks with: the only other backing file it may have.
    pub(crate) image: Option<std::path::PathBuf>,
}

/// How the bytes of a sealed image lie in its file.
pub(crate) const fn sealed_format(image: &images::ImageRecord) -> DiskFormat {
    match image.disk.format {
        images::DiskFormat::Raw => DiskFormat::Raw,
        images::DiskFormat::Qcow2 => DiskFormat::Qcow2,
    }
}

/// The file of a volume that is ready. Blocks.
pub(crate) fn locate(context: &Context, name_or_id: &str) -> Result<VolumeFile, Failure> {
    let found = context.registry.change_now(|change| change.volume(name_or_id))?;
    let record = found.ok_or_else(|| unknown(name_or_id))?;
    ready(&record)?;
    let record = settle::as_settled(context, record)?;
    let files = Files::of(context, record.id);
    let mut paths = record.files().into_iter().map(|layer| files.layer(layer));
    let image = record.image.as_deref().filter(|_| record.shares_image());
    let image: Option<images::ImageDigest> = image.and_then(|digest| digest.parse().ok());
    let image = match image {
        Some(digest) => Some(work::store_of(context, &record)?.disk_path(&digest)),
        None => None,
    };
    Ok(VolumeFile {
        path: paths.next().unwrap_or_default(),
        below: paths.collect(),
        format: record.top().format,
        image,
    })
}

/// A volume as the API shows it. Looks at its files, so never within a change of the registry. Blocks shortly.
pub(crate) fn describe(context: &Context, record: &VolumeRecord, attached_to: Vec<VolumeAttachment>) -> Volume {
    let files = Files::of(context, record.id);
    let mut volume = record.describe(attached_to, files.sizes(record));
    if record.layers.len() > 1 {
        let layers = record.layers.iter().map(|layer| api_types::VolumeLayer {
            file: files.name(*layer),
            format: layer.format,
        });
        volume.layers = layers.collect();
    }
    volume
}

/// Who has a volume that somebody else wants, as far as that is known. Blocks.
pub(crate) fn in_use(context: &Context, name_or_id: &str) -> Failure {
    let looked_at = context.registry.change_now(|change| -> Result<_, Failure> {
        let record = find(change, name_or_id)?;
        not_copied(change, &record)?;
        idle(&record)?;
        let text = format!(
            "volume {} is in use by another machine or program; stop that one, or attach the volume read-only to both",
            record.name()
        );
        Ok(Failure::new(ErrorCode::InUse, text))
    });
    match looked_at {
        Ok(failure) => failure,
        Err(failure) => Failure {
            code: ErrorCode::InUse,
            ..failure
        },
    }
}

pub(crate) fn find(change: &Change<'_>, name_or_id: &str) -> Result<VolumeRecord, Failure> {
    change.volume(name_or_id)?.ok_or_else(|| unknown(name_or_id))
}

pub(crate) fn unknown(name_or_id: &str) -> Failure {
    Failure::new(
        ErrorCode::NotFound,
        format!("no volume {name_or_id:?} on this host; the list has all"),
    )
}

/// Fails unless the record has the revision somebody means.
pub(crate) fn check_revision(record: &VolumeRecord, wanted: Option<u64>) -> Result<(), Failure> {
    match wanted {
        Some(wanted) if wanted != record.revision => Err(Failure::new(
            ErrorCode::RevisionMismatch,
            format!(
                "volume {} has revision {} by now, not {wanted}: read it again and decide anew",
                record.name(),
                record.revision
            ),
        )),
        _ => Ok(()),
    }
}

/// Fails unless the volume can be used.
pub(crate) fn ready(record: &VolumeRecord) -> Result<(), Failure> {
    let name = record.name();
    let text = match (record.state, record.job) {
        (VolumeState::Ready, _) => return Ok(()),
        (VolumeState::Creating, Some(job)) => {
            format!("volume {name} is being filled; wait for operation {}", job.operation)
        }
        (VolumeState::Creating, None) => {
            format!("volume {name} was not sent yet; send it with: karat volume upload {name} FILE")
        }
        (VolumeState::Failed, _) => format!("volume {name} was not filled; delete it and create it again"),
        (VolumeState::Deleting, _) => format!("volume {name} is being deleted"),
    };
    Err(Failure::new(ErrorCode::WrongState, text))
}

/// Fails while something is being done to the volume.
pub(crate) fn idle(record: &VolumeRecord) -> Result<(), Failure> {
    match record.job {
        None => Ok(()),
        Some(job) => Err(Failure::new(
            ErrorCode::WrongState,
            format!(
                "something is being done to volume {}; wait for operation {}, or cancel it",
                record.name(),
                job.operation
            ),
        )),
    }
}

/// Fails while a machine that has a process has the volume; of those that only read it, only if it is to be written.
pub(crate) fn not_running(change: &Change<'_>, record: &VolumeRecord, to_write: bool) -> Result<(), Failure> {
    for holder in change.holders(record)? {
        if holder.runs() && (to_write || !holder.read_only) {
            return Err(Failure::new(
                ErrorCode::InUse,
                format!(
                    "machine {} runs with volume {}; stop it first",
                    holder.vm,
                    record.name()
                ),
            ));
        }
    }
    Ok(())
}

/// The machine that runs with the volume and may write it, and what the disk is called there: who has to make it larger. Fails
/// when a machine has it in a way in which it can not grow now.
pub(crate) fn live_holder(change: &Change<'_>, record: &VolumeRecord) -> Result<Option<Holder>, Failure> {
    for holder in change.holders(record)? {
        let advice = match holder.phase {
            VmPhase::Stopped | VmPhase::Failed => continue,
            VmPhase::Running | VmPhase::Paused if !holder.read_only => return Ok(Some(holder)),
            VmPhase::Running | VmPhase::Paused => "it may only read the volume; stop it first",
            VmPhase::Starting => "wait until it runs",
            VmPhase::Stopping => "wait until it has stopped",
            VmPhase::Arriving | VmPhase::Departed => "it moves between hosts",
        };
        let text = format!("machine {} has volume {}: {advice}", holder.vm, record.name());
        return Err(Failure::new(ErrorCode::InUse, text));
    }
    Ok(None)
}

/// Fails while others are copied from the volume.
pub(crate) fn not_copied(change: &Change<'_>, record: &VolumeRecord) -> Result<(), Failure> {
    let copies = change.volume_copies(record.id)?;
    if copies.is_empty() {
        return Ok(());
    }
    Err(Failure::new(
        ErrorCode::InUse,
        format!(
            "volume {} is being copied into {}; wait for that, or cancel it",
            record.name(),
            copies.join(", ")
        ),
    ))
}

impl Keeper {
    pub(crate) fn uploads(&self) -> std::sync::MutexGuard<'_, HashSet<VolumeId>> {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
