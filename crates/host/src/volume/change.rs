//! Asking for changes of a volume that is there.

use api_types::{ErrorCode, EventReason, Volume, VolumeRepair, VolumeState};
use spec::{ByteSize, OperationId, Problems};

use crate::failure::Failure;
use crate::host::Host;
use crate::registry::{About, Change, Job, RegistryError, Task, VolumeRecord};
use crate::volume_store::{Files, check_revision, check_size, find, idle, live_holder, not_copied, not_running, ready};

/// What every refused size is told first.
const REFUSED: &str = "the volume can not be made that large";

impl Host {
    /// Begins to make a volume larger.
    pub async fn resize_volume(
        &self,
        name_or_id: &str,
        revision: Option<u64>,
        size: ByteSize,
    ) -> Result<(Volume, OperationId), Failure> {
        let size_bytes = size.bytes();
        let mut problems = Problems::new();
        check_size(size_bytes, &mut problems);
        problems
            .into_result(())
            .map_err(|problems| Failure::refused(REFUSED, &problems))?;
        self.begin(name_or_id, revision, move |change, record| {
            let has = record.size_bytes.unwrap_or(0);
            if size_bytes < has {
                let text = format!(
                    "{size_bytes} bytes; volume {} has {has}, and volumes do not shrink: copy what is needed into a smaller one",
                    record.name()
                );
                return Err(Failure::refused_field(REFUSED, "size", text));
            }
            live_holder(change, record)?;
            Ok(Task::Resize { size_bytes })
        })
        .await
    }

    /// Begins to check a volume, and to repair what `repair` names.
    pub async fn check_volume(
        &self,
        name_or_id: &str,
        revision: Option<u64>,
        repair: Option<VolumeRepair>,
    ) -> Result<(Volume, OperationId), Failure> {
        self.begin(name_or_id, revision, move |change, record| {
            not_running(change, record, repair.is_some())?;
            Ok(Task::Check { repair })
        })
        .await
    }

    /// Removes a volume no machine has.
    pub async fn delete_volume(&self, name_or_id: &str, revision: Option<u64>) -> Result<(), Failure> {
        let (host, wanted) = (self.clone(), name_or_id.to_owned());
        let begun = self.registry().change(move |change| -> Result<_, Failure> {
            let mut record = find(change, &wanted)?;
            check_revision(&record, revision)?;
            if host.0.volumes.uploads().contains(&record.id) {
                let text = format!("volume {} is being sent; end that first, or wait for it", record.name());
                return Err(Failure::new(ErrorCode::InUse, text));
            }
            let holders = change.holders(&record)?;
            if let Some(holder) = holders.first() {
                return Err(Failure::new(
                    ErrorCode::InUse,
                    format!(
                        "volume {} is a disk of {}; detach it first: karat volume detach {} {}",
                        record.name(),
                        holders.iter().map(|one| one.vm.as_str()).collect::<Vec<_>>().join(", "),
                        record.name(),
                        holder.vm
                    ),
                ));
            }
            idle(&record)?;
            not_copied(change, &record)?;
            record.enter(VolumeState::Deleting, None, None, change.now());
            change.update_volume(&record)?;
            Ok(record)
        });
        self.remove_volume(begun.await?).await
    }

    /// Removes the files, then the record: after a crash in between, the record tells that there is something to remove.
    pub(super) async fn remove_volume(&self, record: VolumeRecord) -> Result<(), Failure> {
        let files = Files::of(&self.0.context, record.id);
        let removed = tokio::task::spawn_blocking(move || files.remove_all());
        removed
            .await
            .map_err(|_| Failure::new(ErrorCode::Internal, "the work was lost"))??;
        let forgotten = self.registry().change(move |change| -> Result<_, RegistryError> {
            change.delete_volume(record.id)?;
            let text = format!("volume {} was deleted", record.name());
            change.event(&About::Volume(record.id, record.name()), EventReason::Deleted, &text)
        });
        forgotten.await?;
        // An image may have had its last use.
        self.0.boot.wake.notify_one();
        Ok(())
    }

    /// Writes a job down and begins it, if the volume is ready and `decide` finds that it may be.
    pub(super) async fn begin(
        &self,
        name_or_id: &str,
        revision: Option<u64>,
        decide: impl FnOnce(&Change<'_>, &VolumeRecord) -> Result<Task, Failure> + Send + 'static,
    ) -> Result<(Volume, OperationId), Failure> {
        let wanted = name_or_id.to_owned();
        let operation = OperationId::random();
        let begun = self.registry().change(move |change| -> Result<_, Failure> {
            let mut record = find(change, &wanted)?;
            check_revision(&record, revision)?;
            ready(&record)?;
            idle(&record)?;
            not_copied(change, &record)?;
            let task = decide(change, &record)?;
            let job = Job::new(operation, task);
            record.job = Some(job);
            record.last_file = task.new_file().map_or(record.last_file, |file| file.number);
            change.update_volume(&record)?;
            record.revision += 1;
            change.begin_operation(operation, task.kind(), record.name())?;
            let attached_to = change.attachments(&record)?;
            Ok((record, job, attached_to))
        });
        let (record, job, attached_to) = begun.await?;
        self.spawn_job(record.clone(), job);
        Ok((self.describe_volume(record, attached_to).await?, operation))
    }
}
