//! How a machine's task writes to the registry.

use std::time::{Duration, Instant};

use api_types::{CloneMethod, ErrorCode, EventReason, OperationKind, VmStatus};
use spec::OperationId;

use super::root::{drop_unused_frozen, root_file};
use super::task::Task;
use super::{Edit, about};
use crate::failure::Failure;
use crate::operations::Finish;
use crate::registry::{About, Change, OperationRecord, RegistryError};

/// How long to wait before a change that could not be written is tried again.
const SAVE_RETRY: Duration = Duration::from_secs(5);
/// How often the resets of a guest are written down at most: each time is a transaction and an event, and a guest may reset
/// itself without end.
const RESETS_EVERY: Duration = Duration::from_secs(1);

impl Task {
    /// Writes what changed, if anything did. What can not be written now is tried again later.
    pub(super) async fn save(&mut self) {
        if self.save_again.is_some_and(|at| at > Instant::now()) {
            return;
        }
        if self.life.status == self.saved && self.unsaved.is_empty() {
            return;
        }
        if self.resets_due().is_some_and(|at| at > Instant::now()) {
            return;
        }
        match self.write(None).await {
            Ok(_) => self.save_again = None,
            Err(failure) => {
                tracing::error!(error = %failure, "state of a machine can not be written; it is tried again");
                self.save_again = Some(Instant::now() + SAVE_RETRY);
            }
        }
    }

    /// Writes what changed together with the beginning of an operation.
    pub(super) async fn save_with(&mut self, id: OperationId, kind: OperationKind) -> Result<OperationRecord, Failure> {
        let begun = self.write(Some((id, kind))).await?;
        begun.ok_or_else(|| Failure::new(ErrorCode::Internal, "the operation was not noted"))
    }

    /// When resets are to be written, if there are some and nothing else is to be.
    pub(super) fn resets_due(&self) -> Option<Instant> {
        let (now, saved) = (&self.life.status, &self.saved);
        if now.resets == saved.resets || !self.unsaved.is_empty() || self.somebody_waits() {
            return None;
        }
        let resets = saved.resets;
        let nothing_else = VmStatus { resets, ..now.clone() } == *saved;
        self.resets_saved.filter(|_| nothing_else).map(|at| at + RESETS_EVERY)
    }

    async fn write(&mut self, begin: Option<(OperationId, OperationKind)>) -> Result<Option<OperationRecord>, Failure> {
        let (id, name) = about(&self.vm);
        let (before, now) = (self.saved.clone(), self.life.status.clone());
        let finished = self.unsaved.clone();
        let written = self.context.registry.change(move |change| -> Result<_, RegistryError> {
            let begun = begin
                .map(|(operation, kind)| change.begin_operation(operation, kind, &name))
                .transpose()?;
            if before != now {
                change.update_vm_status(id, &now)?;
                tell(change, &About::Vm(id, &name), &before, &now)?;
            }
            for finish in &finished {
                let (phase, outcome) = finish.outcome();
                change.end_operation(finish.id, phase, outcome)?;
            }
            Ok((begun, now))
        });
        let (begun, now) = written.await?;
        if now.resets != self.saved.resets {
            self.resets_saved = Some(Instant::now());
        }
        self.saved = now;
        for Finish { id, .. } in self.unsaved.drain(..) {
            self.context.operations.end(id);
        }
        Ok(begun)
    }

    /// Fails unless the record has this revision.
    pub(super) async fn check_revision(&mut self, wanted: u64) -> Result<(), Failure> {
        let id = self.vm.id.to_string();
        let found = self.context.registry.change(move |change| change.vm(&id)).await?;
        match found.map(|vm| vm.revision) {
            Some(revision) if revision == wanted => Ok(()),
            Some(revision) => Err(Failure::new(
                ErrorCode::RevisionMismatch,
                format!(
                    "machine {} has revision {revision} by now, not {wanted}: read it again and decide anew",
                    self.vm.spec.name
                ),
            )),
            None => Err(Failure::new(ErrorCode::NotFound, "the machine is not there any more")),
        }
    }

    /// Writes down what the machine is made of from now on.
    pub(super) async fn edit(&mut self, edit: Edit) -> Result<(), Failure> {
        let vm = self.vm.clone();
        let written = self.context.registry.change(move |change| -> Result<_, Failure> {
            let spec = edit(change, &vm)?;
            change.update_vm_spec(vm.id, &spec)?;
            Ok(spec)
        });
        self.vm.spec = written.await?;
        Ok(())
    }

    /// Writes down that the root disk needs nothing of its image any more.
    pub(super) async fn note_flattened(&mut self) -> Result<(), Failure> {
        let status = &mut self.life.status;
        if let Some(root) = &mut status.root_disk {
            root.method = CloneMethod::Copy;
            "it was made to stand alone".clone_into(&mut root.reason);
            root.stands_alone = true;
            root.format = root_file(&self.context, &self.vm).1;
            status.clone_method = Some(root.method.as_str().to_owned());
        }
        self.vm.status.root_disk.clone_from(&self.life.status.root_disk);
        self.write(None).await?;
        // What is being frozen just now is not in the disk's header yet.
        if !self.held {
            drop_unused_frozen(&self.context, &self.vm);
        }
        Ok(())
    }

    /// Removes the record, then all that is kept of the machine. What can not be removed goes when the daemon starts next.
    pub(super) async fn delete_record(&mut self) -> Result<(), Failure> {
        let (id, name) = about(&self.vm);
        let mark = self.context.unfinished(id);
        std::fs::write(&mark, []).map_err(|error| {
            let code = crate::volume_store::code(&error);
            Failure::new(code, format!("{} can not be made: {error}", mark.display()))
        })?;
        let deleted = self.context.registry.change(move |change| -> Result<_, RegistryError> {
            change.delete_vm(id)?;
            change.event(
                &About::Vm(id, &name),
                EventReason::Deleted,
                &format!("machine {name} was deleted"),
            )
        });
        if let Err(error) = deleted.await {
            // The record stays, so the mark must go; if it does not, the next start removes it.
            let _ = std::fs::remove_file(&mark);
            return Err(error.into());
        }
        let (run, kept) = (self.run.clone(), self.context.vm_dir(id));
        let removed = tokio::task::spawn_blocking(move || {
            run.remove()?;
            std::fs::remove_dir_all(&kept)?;
            std::fs::remove_file(&mark)
        });
        match removed.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "files of a deleted machine remain until the daemon starts next"),
            Err(error) => tracing::error!(%error, "removing the files of a deleted machine was cut off"),
        }
        Ok(())
    }

    /// Notes that a running process was found again.
    pub(super) async fn tell_adopted(&mut self, pid: u32) {
        let (id, name) = about(&self.vm);
        let told = self.context.registry.change(move |change| {
            let text = format!("machine {name} was found running, process {pid}");
            change.event(&About::Vm(id, &name), EventReason::Adopted, &text)
        });
        if let Err::<(), RegistryError>(error) = told.await {
            tracing::error!(error = crate::failure::chain(&error), "event can not be written");
        }
    }
}

/// Events for what is different.
fn tell(change: &Change<'_>, about: &About<'_>, before: &VmStatus, now: &VmStatus) -> Result<(), RegistryError> {
    let About::Vm(_, name) = about else { return Ok(()) };
    if now.resets > before.resets {
        let text = format!("the guest of machine {name} was reset, {} times by now", now.resets);
        change.event(about, EventReason::GuestReset, &text)?;
    }
    if now.phase != before.phase {
        let why = now.message.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
        let text = format!("machine {name} is {:?}{why}", now.phase);
        change.event(about, EventReason::PhaseChanged, &text)?;
    }
    Ok(())
}
