//! Root disks that are made to stand alone: nothing of the image that they were made from is needed any more.
//!
//! What the machine is booted with is kept beside the disk first; then whatever the disk reads from the image is copied into it, by the
//! machine's process where there is one. Each step can be begun anew, so the next daemon goes on with what this one was at; the disk's
//! own header says whether it is done.

use std::time::Duration;

use api_types::{ErrorCode, OperationKind, OperationPhase, Vm, VmPhase};
use control::{DiskChange, DiskJob, DiskJobState};
use spec::{Name, NameError, OperationId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::begun;
use crate::failure::Failure;
use crate::host::Host;
use crate::machine::{self, Machine};
use crate::operations::Worker;
use crate::registry::OperationRecord;

/// How often the machine is asked how far it is.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// What a machine's own disk is called.
const ROOT: &str = "root";

impl Host {
    /// Begins to make a machine's root disk stand alone. With `revision`, only if its record still has that one.
    pub async fn flatten_vm(&self, name_or_id: &str, revision: Option<u64>) -> Result<OperationRecord, Failure> {
        let vm = self.vm(name_or_id).await?;
        let wrong = |text: String| Failure::new(ErrorCode::WrongState, text);
        if revision.is_some_and(|revision| revision != vm.revision) {
            let text = format!(
                "machine {} has revision {} by now: read it again",
                vm.spec.name, vm.revision
            );
            return Err(Failure::new(ErrorCode::RevisionMismatch, text));
        }
        match &vm.status.root_disk {
            None => {
                return Err(wrong(format!(
                    "machine {} has no disk made from an image",
                    vm.spec.name
                )));
            }
            Some(root) if root.stands_alone && !machine::has_frozen(&self.0.context, &vm) => {
                let text = format!("the root disk of machine {} stands alone already", vm.spec.name);
                return Err(wrong(text));
            }
            Some(_) => {}
        }
        if matches!(
            vm.status.phase,
            VmPhase::Starting | VmPhase::Stopping | VmPhase::Arriving | VmPhase::Departed
        ) {
            let text = format!(
                "machine {} is on its way to another state; ask again when it is there",
                vm.spec.name
            );
            return Err(wrong(text));
        }
        let subject = vm.spec.name.clone();
        let begun = self.registry().change(move |change| -> Result<_, Failure> {
            let operations = change.operations()?.into_iter();
            let mut same =
                operations.filter(|other| other.kind == OperationKind::VmFlatten && other.subject == subject);
            if let Some(other) = same.find(|other| !other.phase.is_final()) {
                let text = format!(
                    "operation {} is at work on that already; wait for it, or cancel it",
                    other.id
                );
                return Err(Failure::new(ErrorCode::WrongState, text));
            }
            Ok(change.begin_operation(OperationId::random(), OperationKind::VmFlatten, &subject)?)
        });
        let operation = begun.await?;
        self.spawn_flatten(operation.clone());
        Ok(operation)
    }

    /// Goes on with what an earlier daemon was at.
    pub(crate) fn resume_flattens(&self, operations: Vec<(OperationRecord, u32)>) {
        for (operation, begun) in operations {
            if begun::too_often(begun) {
                tracing::error!(
                    vm = operation.subject,
                    "a root disk is not made to stand alone any further"
                );
                let host = self.clone();
                tokio::spawn(async move { host.note_flatten(operation.id, Err(begun::failure())).await });
            } else {
                tracing::info!(vm = operation.subject, "a root disk is made to stand alone, further");
                self.spawn_flatten(operation);
            }
        }
    }

    fn spawn_flatten(&self, operation: OperationRecord) {
        let (progress, watched) = watch::channel(images::Progress::default());
        let cancel = CancellationToken::new();
        let operations = &self.0.context.operations;
        operations.begin(operation.id, Worker::Pull(watched, cancel.clone()));
        let host = self.clone();
        tokio::spawn(async move {
            let ended = host.flatten(&operation.subject, &progress, &cancel).await;
            if ended.is_ok() || !host.0.context.operations.closing() {
                host.note_flatten(operation.id, ended).await;
            }
            host.0.context.operations.end(operation.id);
        });
    }

    async fn flatten(
        &self,
        vm: &str,
        progress: &watch::Sender<images::Progress>,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        let (_, machine) = self.machine(vm).await?;
        let vm = self.vm(vm).await?;
        let context = self.0.context.clone();
        let kept = vm.clone();
        let kept = tokio::task::spawn_blocking(move || machine::keep_boot(&context, &kept));
        kept.await.map_err(|_| lost())??;
        match vm.status.phase {
            VmPhase::Stopped | VmPhase::Failed => self.rebase_root(vm, progress, cancel).await?,
            _ => self.stream_root(&machine, progress, cancel).await?,
        }
        machine.stands_alone().await?;
        // The image may have had its last use.
        self.0.boot.wake.notify_one();
        Ok(())
    }

    /// Has the machine's process do it.
    async fn stream_root(
        &self,
        machine: &Machine,
        progress: &watch::Sender<images::Progress>,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        let root: Name = ROOT
            .parse()
            .map_err(|error: NameError| Failure::of(ErrorCode::Internal, &error))?;
        let (mut asked, mut cancelled, mut lack) = (false, false, None);
        loop {
            let reports = machine.disk_reports().await?.into_iter();
            let report = reports.into_iter().find(|report| report.name == root);
            let report = report.ok_or_else(|| Failure::new(ErrorCode::Internal, "the machine has no root disk"))?;
            if report.layers.len() < 2 {
                return Ok(());
            }
            match report.job.filter(|job| job.job == DiskJob::Stream).map(|job| job.state) {
                Some(DiskJobState::Running {
                    done_bytes,
                    total_bytes,
                }) => {
                    asked = true;
                    let phase = images::Phase::Copying;
                    progress.send_replace(images::Progress {
                        phase,
                        done_bytes: done_bytes.min(total_bytes),
                        total_bytes,
                    });
                }
                Some(DiskJobState::Failed { message }) if asked => {
                    return Err(Failure::new(ErrorCode::MachineFailed, message));
                }
                Some(DiskJobState::Cancelled) if asked => return Err(lack.unwrap_or_else(given_up)),
                _ if cancel.is_cancelled() => return Err(given_up()),
                _ => {
                    self.check_space(0).await?;
                    asked = true;
                    machine
                        .change_disk(None, root.clone(), DiskChange::Stream, Vec::new())
                        .await?;
                }
            }
            if !cancelled && let Err(failure) = self.check_space(0).await {
                // Others need what is left.
                let told = machine.change_disk(None, root.clone(), DiskChange::Cancel, Vec::new());
                cancelled = told.await.is_ok();
                lack = Some(failure);
            }
            if cancel.is_cancelled() {
                if self.0.context.operations.closing() {
                    // The machine goes on, and the next daemon follows.
                    return Err(given_up());
                }
                if !cancelled {
                    let told = machine.change_disk(None, root.clone(), DiskChange::Cancel, Vec::new());
                    cancelled = told.await.is_ok();
                }
            }
            tokio::select! {
                () = tokio::time::sleep(ASK_EVERY) => {}
                () = cancel.cancelled(), if !cancel.is_cancelled() => {}
            }
        }
    }

    /// Does it to the files of a machine that stands still.
    async fn rebase_root(
        &self,
        vm: Vm,
        progress: &watch::Sender<images::Progress>,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        self.check_space(0).await?;
        let (context, progress, stop) = (self.0.context.clone(), progress.clone(), cancel.clone());
        let done = tokio::task::spawn_blocking(move || machine::rebase_root(&context, &vm, &progress, &stop));
        match done.await.map_err(|_| lost())? {
            Err(_) if cancel.is_cancelled() => Err(given_up()),
            done => done,
        }
    }

    async fn note_flatten(&self, id: OperationId, ended: Result<(), Failure>) {
        let noted = self.write_down("the end of an operation", move |change| {
            let phase = match &ended {
                Ok(()) => OperationPhase::Succeeded,
                Err(failure) if failure.code == ErrorCode::Cancelled => OperationPhase::Cancelled,
                Err(_) => OperationPhase::Failed,
            };
            change.end_operation(id, phase, ended.as_ref().map(|()| None))
        });
        let _ = noted.await; // The next daemon settles what this one can not.
    }
}

fn given_up() -> Failure {
    Failure::new(ErrorCode::Cancelled, "cancelled on request")
}

fn lost() -> Failure {
    Failure::new(ErrorCode::Internal, "the work was lost")
}
