//! Disks of this host at one instant, to become images.
//!
//! | disk | how it is had |
//! |---|---|
//! | of a machine that stands still, or a volume nobody writes | its files, locked against everybody who would write them |
//! | of a machine that runs or is paused | a copy that the machine makes: the guest's writes go to both, so that the copy is the disk of the instant in which it is done |
//!
//! A daemon that dies leaves at most the copy, which the next one removes; that takes the disk anew, as it is then.

use api_types::{ErrorCode, ImageImport, Vm, VmPhase};
use images::{BootParts, ImageDigest, LocalDisk};
use spec::{Name, NameError, OperationId, VmId, VmPlan};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::frozen::Frozen;
use super::intake::IntakeError;
use super::lineage::Lineage;
use crate::context::Context;
use crate::failure::Failure;
use crate::host::Host;
use crate::machine::{self, Standing};
use crate::registry::Change;
use crate::volume::{name_at, position};
use crate::volume_store::{find, idle, live_holder, ready};

/// What every refused snapshot is told first; the fields follow.
const REFUSED: &str = "the snapshot can not be taken";
/// What a machine's own disk is called.
const ROOT: &str = "root";
/// Property of images whose guests have to be quieted first.
const QUIESCE: &str = "os_require_quiesce";

/// A disk, found.
struct Found {
    title: String,
    vm: Option<VmId>,
    base: Option<String>,
    /// The machine that boots from it.
    owner: Option<Box<Vm>>,
    place: Place,
}

enum Place {
    /// Nobody runs with it.
    Standing(Standing),
    /// A machine does, and calls it so.
    Live(VmId, Name),
}

impl Host {
    /// The same with ids for names, so that it means the same disk for good. Other imports stay as they are.
    pub(super) async fn pin_snapshot(&self, from: ImageImport) -> Result<ImageImport, Failure> {
        let ImageImport::Snapshot {
            vm,
            disk,
            volume,
            options,
        } = from
        else {
            return Ok(from);
        };
        let limits = self.0.context.limits.clone();
        let pinned = self.registry().change(move |change| -> Result<_, Failure> {
            let found = change.find_disk(vm.as_deref(), disk.as_deref(), volume.as_deref(), &limits)?;
            let volume = volume.map(|volume| find(change, &volume)).transpose()?;
            Ok((found.vm, disk, volume.map(|volume| volume.id.to_string())))
        });
        let (vm, disk, volume) = pinned.await?;
        Ok(ImageImport::Snapshot {
            vm: vm.map(|vm| vm.to_string()),
            disk,
            volume,
            options,
        })
    }

    /// The disk that an import names, with nobody writing it. Nothing for imports of other things.
    pub(super) async fn freeze(
        &self,
        id: OperationId,
        from: &ImageImport,
        progress: &watch::Sender<images::Progress>,
        cancel: &CancellationToken,
    ) -> Result<Option<Frozen>, IntakeError> {
        let ImageImport::Snapshot { vm, disk, volume, .. } = from else {
            return Ok(None);
        };
        let (vm, disk, volume) = (vm.clone(), disk.clone(), volume.clone());
        let limits = self.0.context.limits.clone();
        let found = self
            .registry()
            .change(move |change| change.find_disk(vm.as_deref(), disk.as_deref(), volume.as_deref(), &limits));
        let found = found.await.map_err(IntakeError::not_frozen)?;
        match self.frozen(id, found, progress, cancel).await {
            Err(_) if cancel.is_cancelled() => Err(IntakeError::cancelled()),
            frozen => frozen.map(Some).map_err(IntakeError::not_frozen),
        }
    }

    async fn frozen(
        &self,
        id: OperationId,
        found: Found,
        progress: &watch::Sender<images::Progress>,
        cancel: &CancellationToken,
    ) -> Result<Frozen, Failure> {
        let (chain, part) = match found.place {
            Place::Live(vm, disk) => {
                self.check_quiet(found.base.as_deref()).await?;
                let (chain, part) = self.mirrored(id, vm, disk, progress, cancel).await?;
                (chain, Some(part))
            }
            Place::Standing(standing) => {
                let context = self.0.context.clone();
                let opened = tokio::task::spawn_blocking(move || machine::read(&context, &standing));
                (opened.await.map_err(|_| lost())??, None)
            }
        };
        let (context, base, owner) = (self.0.context.clone(), found.base.clone(), found.owner);
        let looked = tokio::task::spawn_blocking(move || {
            let size_bytes = disk_image::virtual_size(&chain);
            let size_bytes = size_bytes.map_err(|error| Failure::of(ErrorCode::DiskRefused, &error))?;
            let boot = match owner {
                Some(vm) => machine::boot_parts(&context, &vm)?,
                None => boot_parts(&context, base.as_deref())?,
            };
            Ok::<_, Failure>((chain, size_bytes, boot))
        });
        let (chain, size_bytes, boot) = looked.await.map_err(|_| lost())??;
        Ok(Frozen {
            disk: LocalDisk {
                chain,
                name: found.title,
                boot,
            },
            lineage: Lineage {
                vm: found.vm,
                base: found.base,
                size_bytes,
                signature: Vec::new(),
            },
            part,
        })
    }

    /// Fails where the disk's image wants its guest to be quieted, which nobody can do here.
    async fn check_quiet(&self, base: Option<&str>) -> Result<(), Failure> {
        let Some(base) = base.map(str::to_owned) else {
            return Ok(());
        };
        let rows = self.registry().change(move |change| change.images_of(&base)).await?;
        let wants = |row: &crate::registry::ImageRow| row.record.properties().get(QUIESCE) == Some("yes");
        if rows.iter().any(wants) {
            let text = "the machine's image asks that its guest is quieted for snapshots (os_require_quiesce), and guests can not be: \
                        stop the machine first";
            return Err(Failure::new(ErrorCode::WrongState, text));
        }
        Ok(())
    }
}

impl Change<'_> {
    fn find_disk(
        &self,
        vm: Option<&str>,
        disk: Option<&str>,
        volume: Option<&str>,
        limits: &spec::HostLimits,
    ) -> Result<Found, Failure> {
        match (vm, volume) {
            (Some(vm), None) => {
                let found = self.vm(vm)?.ok_or_else(|| {
                    let text = format!("no machine {vm:?} on this host; the list has all");
                    Failure::new(ErrorCode::NotFound, text)
                })?;
                self.find_disk_of(found, disk.unwrap_or(ROOT), limits)
            }
            (None, Some(volume)) if disk.is_none() => self.find_volume(volume),
            _ => {
                let text = "name one machine, and one of its disks if it is not root; or one volume";
                Err(Failure::refused_field(REFUSED, "import", text))
            }
        }
    }

    fn find_disk_of(&self, vm: Vm, disk: &str, limits: &spec::HostLimits) -> Result<Found, Failure> {
        let title = format!("disk {disk} of machine {}", vm.spec.name);
        let id = vm.id;
        if disk == ROOT && vm.spec.image.is_some() {
            let base = vm.image_digest.clone();
            let owner = Some(Box::new(vm.clone()));
            let place = place(&vm.clone(), ROOT, || Ok(Standing::Root(Box::new(vm))))?;
            return Ok(Found {
                title,
                vm: Some(id),
                base,
                owner,
                place,
            });
        }
        let index = position(self, &vm.spec, disk)?;
        if let Some(volume) = vm.spec.disks.get(index).and_then(|wish| wish.volume.as_deref()) {
            let found = self.find_volume(volume)?;
            return Ok(Found {
                title,
                vm: Some(id),
                ..found
            });
        }
        let name = name_at(&vm.spec, index)?.to_string();
        let place = place(&vm, &name, || {
            let plan = VmPlan::new(&vm.spec, limits).map_err(|problems| Failure::refused(REFUSED, &problems))?;
            let plan = plan.disks.into_iter().find(|plan| plan.index == index);
            let plan = plan.ok_or_else(|| Failure::new(ErrorCode::Internal, "the machine's disk has no plan"))?;
            Ok(Standing::Path(Box::new(plan)))
        })?;
        Ok(Found {
            title,
            vm: Some(id),
            base: None,
            owner: None,
            place,
        })
    }

    fn find_volume(&self, name_or_id: &str) -> Result<Found, Failure> {
        let record = find(self, name_or_id)?;
        ready(&record)?;
        idle(&record)?;
        let place = match live_holder(self, &record)? {
            Some(holder) => Place::Live(holder.id, parsed(&holder.disk)?),
            None => Place::Standing(Standing::Volume(record.id.to_string())),
        };
        Ok(Found {
            title: format!("volume {}", record.name()),
            vm: None,
            base: record.image.clone(),
            owner: None,
            place,
        })
    }
}

fn place(vm: &Vm, disk: &str, standing: impl FnOnce() -> Result<Standing, Failure>) -> Result<Place, Failure> {
    match vm.status.phase {
        VmPhase::Stopped | VmPhase::Failed => Ok(Place::Standing(standing()?)),
        VmPhase::Running | VmPhase::Paused => Ok(Place::Live(vm.id, parsed(disk)?)),
        VmPhase::Starting | VmPhase::Stopping | VmPhase::Arriving | VmPhase::Departed => {
            let text = format!(
                "machine {} is on its way to another state; ask again when it is there",
                vm.spec.name
            );
            Err(Failure::new(ErrorCode::WrongState, text))
        }
    }
}

fn parsed(disk: &str) -> Result<Name, Failure> {
    disk.parse()
        .map_err(|error: NameError| Failure::of(ErrorCode::Internal, &error))
}

/// What the image of a disk brings beside that. Blocks shortly.
fn boot_parts(context: &Context, base: Option<&str>) -> Result<BootParts, Failure> {
    let Some(Ok(digest)) = base.map(str::parse::<ImageDigest>) else {
        return Ok(BootParts::default());
    };
    let store = context.store_of(&digest);
    let failed = |error| Failure::of(crate::failure::store_code(&error), &error);
    let image = match store.get(&digest) {
        // The disk stands alone, or its files would tell.
        Err(images::StoreError::NotFound(_)) => return Ok(BootParts::default()),
        other => other.map_err(failed)?,
    };
    let kernel = image.kernel.as_ref().map(|_| store.open_kernel(&digest)).transpose();
    let initrd = image.initrd.as_ref().map(|_| store.open_initrd(&digest)).transpose();
    Ok(BootParts {
        kernel: kernel.map_err(failed)?,
        initrd: initrd.map_err(failed)?,
        cmdline: image.cmdline,
    })
}

pub(super) fn lost() -> Failure {
    Failure::new(ErrorCode::Internal, "the work was lost")
}
