//! Has a machine that runs copy one of its disks to a file, where the guest's writes go too until the copy is whole.
//!
//! Whatever ends this, the machine is told to stop copying: it is the daemon's copy, and nobody follows it after that.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api_types::ErrorCode;
use control::{DiskChange, DiskJob, DiskJobState, DiskLayer, DiskReport};
use disk_image::{Chain, CreateOptions};
use spec::{DiskFormat, Name, OperationId, VmId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::freeze::lost;
use crate::failure::Failure;
use crate::host::Host;
use crate::machine::Machine;
use crate::part::Part;

/// How often the machine is asked how far it is.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// How often a machine is asked at most until it has ended a copy that it was told to end: half a minute.
const END_ASKS: u32 = 150;

impl Host {
    /// The copy, once it is whole.
    pub(super) async fn mirrored(
        &self,
        id: OperationId,
        vm: VmId,
        disk: Name,
        progress: &watch::Sender<images::Progress>,
        cancel: &CancellationToken,
    ) -> Result<(Chain, Part), Failure> {
        let (_, machine) = self.machine(&vm.to_string()).await?;
        let path = self.0.context.snapshots_dir().join(format!("{id}.qcow2"));
        let copying = Copying {
            host: self,
            machine,
            disk,
            path,
        };
        // One that an earlier daemon began.
        copying.end().await?;
        let part = Part(copying.path.clone());
        self.check_space(0).await?;
        let size_bytes = copying.report().await?.size_bytes;
        let copied = async {
            let file = copying.begin(size_bytes).await?;
            copying.follow(progress, cancel).await?;
            Ok(file)
        };
        let file = match copied.await {
            Ok(file) => file,
            Err(failure) => {
                // It may have begun although that was not answered.
                if let Err(failure) = copying.end().await {
                    tracing::warn!(error = %failure, "a machine may go on with a copy of its disk that nobody wants");
                }
                return Err(failure);
            }
        };
        let name = copying.path.display().to_string();
        Ok((Chain::of_file(name, file, DiskFormat::Qcow2, false), part))
    }
}

struct Copying<'a> {
    host: &'a Host,
    machine: Machine,
    disk: Name,
    path: PathBuf,
}

impl Copying<'_> {
    async fn report(&self) -> Result<DiskReport, Failure> {
        let reports = self.machine.disk_reports().await?.into_iter();
        let mut own = reports.filter(|report| report.name == self.disk);
        own.next().ok_or_else(|| {
            let text = format!("the machine has no disk {} any more", self.disk);
            Failure::new(ErrorCode::WrongState, text)
        })
    }

    /// How the copy stands, if the machine knows of one.
    async fn state(&self) -> Result<Option<DiskJobState>, Failure> {
        let told = self.report().await?.job;
        let own = told.filter(|job| job.job == DiskJob::Mirror && Path::new(&job.target) == self.path);
        Ok(own.map(|job| job.state))
    }

    /// Begins it; the file stays open, and with it the locks that the machine has on it.
    async fn begin(&self, size_bytes: u64) -> Result<File, Failure> {
        let path = self.path.clone();
        let made = tokio::task::spawn_blocking(move || make(&path, size_bytes));
        let file = made.await.map_err(|_| lost())??;
        let again = file.try_clone().map_err(|error| unusable(&self.path, &error))?;
        let target = DiskLayer {
            name: self.path.display().to_string(),
            format: DiskFormat::Qcow2,
            writable: true,
            data_file: None,
        };
        let change = DiskChange::Mirror {
            target,
            is_zero: true,
            pivot: false,
        };
        let fds = vec![again.into()];
        self.machine.change_disk(None, self.disk.clone(), change, fds).await?;
        Ok(file)
    }

    /// Waits until it is whole.
    async fn follow(
        &self,
        progress: &watch::Sender<images::Progress>,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        loop {
            match self.state().await? {
                Some(DiskJobState::Done) => return Ok(()),
                Some(DiskJobState::Running {
                    done_bytes,
                    total_bytes,
                }) => {
                    let phase = images::Phase::Copying;
                    progress.send_replace(images::Progress {
                        phase,
                        done_bytes: done_bytes.min(total_bytes),
                        total_bytes,
                    });
                }
                Some(DiskJobState::Failed { message }) => return Err(Failure::new(ErrorCode::MachineFailed, message)),
                Some(DiskJobState::Cancelled) | None => {
                    let text = "the machine stopped copying its disk: it was started anew, or told to; ask again";
                    return Err(Failure::new(ErrorCode::MachineFailed, text));
                }
            }
            // A full file system is the guests', too.
            self.host.check_space(0).await?;
            tokio::select! {
                () = tokio::time::sleep(ASK_EVERY) => {}
                () = cancel.cancelled() => {
                    return Err(Failure::new(ErrorCode::Cancelled, "cancelled on request"));
                }
            }
        }
    }

    /// Has the machine end it, and waits for that. Nothing is left to end where the machine has.
    async fn end(&self) -> Result<(), Failure> {
        for _ in 0..END_ASKS {
            let state = match self.state().await {
                Err(failure) if failure.code == ErrorCode::WrongState => return Ok(()),
                state => state?,
            };
            if !matches!(state, Some(DiskJobState::Running { .. })) {
                return Ok(());
            }
            let told = self
                .machine
                .change_disk(None, self.disk.clone(), DiskChange::Cancel, Vec::new());
            // It may be over by now.
            if let Err(failure) = told.await {
                tracing::debug!(error = %failure, "a copy of a disk was not cancelled");
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
        let text = "the machine does not end an earlier copy of its disk; ask again later";
        Err(Failure::new(ErrorCode::Timeout, text))
    }
}

/// An empty image of a disk of this size. Blocks.
fn make(path: &Path, size_bytes: u64) -> Result<File, Failure> {
    let mut options = File::options();
    let opened = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path);
    let file = opened.map_err(|error| unusable(path, &error))?;
    let made = disk_image::create(&file, None, &CreateOptions::qcow2(size_bytes));
    made.map_err(|error| Failure::of(ErrorCode::Internal, &error))?;
    Ok(file)
}

fn unusable(path: &Path, error: &std::io::Error) -> Failure {
    crate::volume_store::failure("be made", path, error)
}
