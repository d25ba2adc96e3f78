//! Asking for work that the machine process does on a volume under a running guest.

use api_types::{DiskMirror, ErrorCode, EventReason, Volume, VolumeSource, VolumeState, VolumeWish};
use spec::{DiskFormat, OperationId, Problems, VolumeId};

use super::edits::position;
use crate::failure::Failure;
use crate::host::Host;
use crate::registry::{About, Change, Holder, Job, Task, VolumeRecord};
use crate::volume_store::{check_wish, find, idle, live_holder, not_copied, ready};

/// Files of a volume at most. Each one costs reads of what is at the bottom a look; streaming makes one of them all.
const LAYERS_MAX: usize = 16;

impl Host {
    /// Begins to have a disk of a running machine go on in an overlay: what it holds now stays as it is below.
    pub async fn snapshot_disk(&self, vm: &str, disk: &str) -> Result<(Volume, OperationId), Failure> {
        let (vm, volume) = self.volume_of(vm, disk).await?;
        self.begin(&volume, None, move |change, record| {
            held_by(change, record, &vm)?;
            if record.files().len() >= LAYERS_MAX {
                let text = format!(
                    "volume {} consists of {LAYERS_MAX} files already: stream it first (karat volume stream {})",
                    record.name(),
                    record.name()
                );
                return Err(Failure::new(ErrorCode::WrongState, text));
            }
            let overlay = record.new_file(DiskFormat::Qcow2);
            Ok(Task::Snapshot { overlay })
        })
        .await
    }

    /// Begins to have a running machine copy into a volume's newest file what that reads from older ones and from its image.
    pub async fn stream_disk(&self, vm: &str, disk: &str) -> Result<(Volume, OperationId), Failure> {
        let (vm, volume) = self.volume_of(vm, disk).await?;
        self.begin(&volume, None, move |change, record| {
            held_by(change, record, &vm)?;
            if record.files().len() < 2 && !record.shares_image() {
                let text = format!(
                    "volume {} stands alone already: there is nothing to stream",
                    record.name()
                );
                return Err(Failure::new(ErrorCode::WrongState, text));
            }
            Ok(Task::Stream)
        })
        .await
    }

    /// Begins to have a running machine copy a disk: into a new volume, or into a new file of the same one, where it goes on.
    pub async fn mirror_disk(
        &self,
        vm: &str,
        disk: &str,
        wanted: DiskMirror,
    ) -> Result<(Volume, OperationId), Failure> {
        let (vm, volume) = self.volume_of(vm, disk).await?;
        match wanted.name {
            Some(name) => self.copy_live(vm, volume, name, wanted.format).await,
            None => {
                self.check_space(0).await?;
                self.begin(&volume, None, move |change, record| {
                    held_by(change, record, &vm)?;
                    let format = wanted.format.unwrap_or_else(|| record.top().format);
                    let target = record.new_file(format);
                    Ok(Task::Move { target })
                })
                .await
            }
        }
    }

    async fn copy_live(
        &self,
        vm: String,
        source: String,
        name: String,
        format: Option<DiskFormat>,
    ) -> Result<(Volume, OperationId), Failure> {
        let wish = VolumeWish {
            name,
            source: VolumeSource::Volume { volume: source.clone() },
            size: None,
            format,
            preallocation: api_types::Preallocation::Off,
            cluster_size: None,
            compressed: false,
        };
        let mut problems = Problems::new();
        check_wish(&wish, &mut problems);
        problems
            .into_result(())
            .map_err(|problems| Failure::refused("the copy can not be made as it is written", &problems))?;
        self.check_space(0).await?;
        let operation = OperationId::random();
        let inserted = self.registry().change(move |change| -> Result<_, Failure> {
            let source = find(change, &source)?;
            ready(&source)?;
            idle(&source)?;
            not_copied(change, &source)?;
            held_by(change, &source, &vm)?;
            let job = Job::new(operation, Task::Mirror);
            let record = copy_of(change, wish, &source, job);
            change.insert_volume(&record).map_err(|error| {
                if error.is_conflict() {
                    super::create::name_taken(record.name())
                } else {
                    error.into()
                }
            })?;
            let about = About::Volume(record.id, record.name());
            let text = format!("volume {} was created", record.name());
            change.event(&about, EventReason::Created, &text)?;
            change.begin_operation(operation, job.task.kind(), record.name())?;
            Ok((record, job))
        });
        let (record, job) = inserted.await?;
        self.spawn_job(record.clone(), job);
        // Nobody has it yet.
        Ok((self.describe_volume(record, Vec::new()).await?, operation))
    }

    /// The machine, and the volume that a disk of it is. `disk` is its name there, or the name or id of the volume.
    async fn volume_of(&self, vm: &str, disk: &str) -> Result<(String, String), Failure> {
        let vm = self.vm(vm).await?;
        let (name, disk) = (vm.spec.name.clone(), disk.to_owned());
        let found = self.registry().change(move |change| -> Result<_, Failure> {
            if disk == "root" && vm.spec.image.is_some() {
                let text = format!(
                    "the root disk is not a volume; karat flatten {} makes it stand alone",
                    vm.spec.name
                );
                return Err(Failure::new(ErrorCode::WrongState, text));
            }
            let wish = vm.spec.disks.get(position(change, &vm.spec, &disk)?);
            let volume = wish.and_then(|wish| wish.volume.as_deref());
            match volume {
                Some(volume) => Ok(find(change, volume)?.id.to_string()),
                None => Err(not_a_volume(&disk)),
            }
        });
        Ok((name, found.await?))
    }
}

fn not_a_volume(disk: &str) -> Failure {
    let text = format!("disk {disk} is not a volume: only what is recorded as one can become another file");
    Failure::new(ErrorCode::WrongState, text)
}

/// Fails unless this machine runs with the volume and may write it.
fn held_by(change: &Change<'_>, record: &VolumeRecord, vm: &str) -> Result<Holder, Failure> {
    match live_holder(change, record)? {
        Some(holder) if holder.vm == vm => Ok(holder),
        _ => Err(Failure::new(
            ErrorCode::WrongState,
            format!(
                "machine {vm} does not run with volume {} for writing: start it first",
                record.name()
            ),
        )),
    }
}

fn copy_of(change: &Change<'_>, mut wish: VolumeWish, source: &VolumeRecord, job: Job) -> VolumeRecord {
    wish.source = VolumeSource::Volume {
        volume: source.name().to_owned(),
    };
    let now = change.now();
    VolumeRecord {
        id: VolumeId::random(),
        format: wish.format.or(Some(source.top().format)),
        size_bytes: source.size_bytes,
        image: None,
        image_store: None,
        copied_from: Some(source.id),
        state: VolumeState::Creating,
        reason: Some("Copying".to_owned()),
        message: None,
        changed_at: now,
        job: Some(job),
        last_check: None,
        sent_bytes: None,
        created_at: now,
        layers: Vec::new(),
        dropped: Vec::new(),
        last_file: 0,
        revision: 1,
        wish,
    }
}
