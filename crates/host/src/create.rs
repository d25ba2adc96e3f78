//! Making a machine: check, clone, record. Nothing is left behind when it fails.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use api_types::{CloneMethod, ErrorCode, EventReason, RootDisk, Vm, VmPhase, VmStatus};
use image_catalog::Condition;
use images::{BootParts, CloneError, CloneWay, ImageRecord, Store};
use jiff::Timestamp;
use spec::{ByteSize, DiskFormat, Problems, VmId, VmPlan, VmSpec};
use tokio::sync::SemaphorePermit;

use crate::catalogue::shape;
use crate::context::Context;
use crate::failure::Failure;
use crate::failure::store_code;
use crate::host::Host;
use crate::machine::{self, Machine};
use crate::placing::way_name;
use crate::registry::About;
use crate::volume::check_disks;
use crate::volume_store::{SECTOR_BYTES, check_name, sealed_format};

/// What every refused machine is told first; the fields follow.
const REFUSED: &str = "the machine can not be made as it is written";
/// How long a machine waits for its turn to get a disk.
const TURN_TIMEOUT: Duration = Duration::from_secs(60);

impl Host {
    /// Makes a machine, which stands still until it is started.
    pub async fn create_vm(&self, spec: VmSpec) -> Result<Vm, Failure> {
        let context = &self.0.context;
        let plan = VmPlan::new(&spec, &context.limits).map_err(|problems| Failure::refused(REFUSED, &problems))?;
        let mut problems = Problems::new();
        check_name::<VmId>(&spec.name, &mut problems);
        problems
            .into_result(())
            .map_err(|problems| Failure::refused(REFUSED, &problems))?;
        let _name = self.reserve(&spec.name).await?;
        let wanted = spec.clone();
        self.registry()
            .change(move |change| check_disks(change, &wanted, None))
            .await?;
        // Before the image is held: whoever waits must not keep others from removing one.
        let _turn = match &plan.image {
            Some(_) => Some(self.turn().await?),
            None => None,
        };
        let _image_stays = match &plan.image {
            Some(image) => self.hold_image(image).await?,
            None => self.0.images.read().await,
        };
        let image = match &plan.image {
            Some(image) => Some(self.usable_image(image).await?.ok_or_else(|| unknown_image(image))?),
            None => None,
        };
        let (spec, unmet) = match &image {
            Some(image) => shape(spec, image, REFUSED)?,
            None => (spec, Vec::new()),
        };
        let plan = VmPlan::new(&spec, &context.limits).map_err(|problems| Failure::refused(REFUSED, &problems))?;
        let boot = match &image {
            Some(image) => self.named_boot(&spec, image, REFUSED).await?,
            None => BootParts::default(),
        };
        let (image, store) = match image {
            Some(image) => (Some(image.sealed), image.store),
            None => (None, context.store.clone()),
        };
        check_kernel(&plan, image.as_ref(), &boot)?;
        let (probed, wanted) = (Arc::clone(context), plan.clone());
        tokio::task::spawn_blocking(move || machine::probe(&probed, &wanted))
            .await
            .map_err(|_| Failure::new(ErrorCode::Internal, "the work was lost"))?
            .map_err(|problems| Failure::refused(REFUSED, &problems))?;
        let id = VmId::random();
        // Checks what depends on the image, such as its command line.
        plan.machine(id, image.as_ref().and_then(|image| image.cmdline.as_deref()))
            .map_err(|problems| Failure::refused(REFUSED, &problems))?;
        let directory = Unfinished::make(context, id)?;
        self.put_boot(id, boot).await?;
        let root_disk = match &image {
            Some(image) => Some(self.make_root(id, (&store, image), plan.root_size).await?),
            None => None,
        };
        let vm = Vm {
            id,
            spec,
            image_digest: image.map(|image| image.digest.to_string()),
            status: stands_still(root_disk),
            conditions: Vec::new(),
            created_at: Timestamp::now(),
            revision: 1,
        };
        self.record(&vm, unmet).await?;
        directory.keep();
        let machine = Machine::supervise(context, vm.clone());
        self.lock_machines().insert(id, machine);
        Ok(self.with_conditions(vm))
    }

    /// Keeps a kernel and a ramdisk that are images of their own with the machine, which needs these images no more.
    async fn put_boot(&self, id: VmId, boot: BootParts) -> Result<(), Failure> {
        if boot.kernel.is_none() && boot.initrd.is_none() {
            return Ok(());
        }
        let context = Arc::clone(&self.0.context);
        let put = tokio::task::spawn_blocking(move || machine::put_boot(&context, id, boot));
        put.await
            .map_err(|_| Failure::new(ErrorCode::Internal, "the work was lost"))?
    }

    pub(crate) async fn record(&self, vm: &Vm, unmet: Vec<Condition>) -> Result<(), Failure> {
        let row = vm.clone();
        let recorded = self.registry().change(move |change| -> Result<(), Failure> {
            check_disks(change, &row.spec, None)?;
            change.insert_vm(&row).map_err(|error| {
                if error.is_conflict() {
                    name_taken(&row.spec.name)
                } else {
                    error.into()
                }
            })?;
            let text = format!("machine {} was created", row.spec.name);
            let about = About::Vm(row.id, &row.spec.name);
            change.event(&about, EventReason::Created, &text)?;
            for one in unmet {
                let text = format!("made without {}: {} ({})", one.property, one.message, one.code());
                change.event(&about, EventReason::ConditionChanged, &text)?;
            }
            Ok(())
        });
        recorded.await
    }

    /// Keeps others from making a machine of this name meanwhile.
    pub(crate) async fn reserve(&self, name: &str) -> Result<Reserved, Failure> {
        let fresh = self
            .0
            .names
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name.to_owned());
        if !fresh {
            return Err(name_taken(name));
        }
        let reserved = Reserved {
            host: self.clone(),
            name: name.to_owned(),
        };
        let wanted = name.to_owned();
        match self.registry().change(move |change| change.vm(&wanted)).await? {
            Some(vm) if vm.spec.name == name => Err(name_taken(name)),
            _ => Ok(reserved),
        }
    }

    async fn turn(&self) -> Result<SemaphorePermit<'_>, Failure> {
        match tokio::time::timeout(TURN_TIMEOUT, self.0.clones.acquire()).await {
            Ok(Ok(turn)) => Ok(turn),
            _ => Err(Failure::new(
                ErrorCode::WrongState,
                "the disks of other machines are still being made; ask again when they are",
            )),
        }
    }

    /// Makes a machine's root disk from an image of a store, in the way that is configured for that.
    async fn make_root(
        &self,
        id: VmId,
        (store, image): (&Store, &ImageRecord),
        wished: Option<ByteSize>,
    ) -> Result<RootDisk, Failure> {
        let context = &self.0.context;
        let sectors = image.disk.virtual_bytes.next_multiple_of(SECTOR_BYTES);
        let size_bytes = wished.map_or(sectors, ByteSize::bytes);
        let (way, setting) = context.clone_way(store.name());
        // What is put on top of an image is qcow2; any other disk has its image's format.
        let format = match way {
            CloneWay::Overlay => DiskFormat::Qcow2,
            CloneWay::Reflink | CloneWay::Copy => sealed_format(image),
        };
        self.check_space(0).await?;
        let path = context.root_disk(id, format);
        let made = store.make_disk(&image.digest, &path, size_bytes, way).await;
        let made = made.map_err(|error| clone_failure(&error))?;
        let method = match made.method {
            images::CloneMethod::Overlay => CloneMethod::Overlay,
            images::CloneMethod::Reflink => CloneMethod::Reflink,
            images::CloneMethod::SparseCopy => CloneMethod::Copy,
        };
        let recorded = context.recorded(store);
        let from = recorded.as_ref().map(|store| format!(", in store {store}"));
        let reason = format!(
            "{setting} is {}: {}{}",
            way_name(way),
            made.reason,
            from.unwrap_or_default()
        );
        Ok(RootDisk {
            method,
            reason,
            format,
            stands_alone: false,
            store: recorded,
        })
    }
}

/// How a new machine is.
pub(crate) fn stands_still(root_disk: Option<RootDisk>) -> VmStatus {
    VmStatus {
        phase: VmPhase::Stopped,
        reason: None,
        message: None,
        pid: None,
        started_at: None,
        start_to_guest_us: None,
        resets: 0,
        clone_method: root_disk.as_ref().map(|root| root.method.as_str().to_owned()),
        root_disk,
    }
}

fn check_kernel(plan: &VmPlan, image: Option<&ImageRecord>, boot: &BootParts) -> Result<(), Failure> {
    match image {
        Some(image) if plan.boot.kernel.is_none() && image.kernel.is_none() && boot.kernel.is_none() => Err(
            Failure::refused_field(REFUSED, "boot.kernel", "needed, since the image brings no kernel"),
        ),
        _ => Ok(()),
    }
}

fn unknown_image(image: &str) -> Failure {
    Failure::refused_field(
        REFUSED,
        "image",
        format!("no image {image:?} in the store; pull it first, or look at the list of images"),
    )
}

fn name_taken(name: &str) -> Failure {
    Failure::new(
        ErrorCode::NameTaken,
        format!("there is a machine {name:?} already; choose another name, or delete that one"),
    )
}

fn clone_failure(error: &CloneError) -> Failure {
    match error {
        CloneError::TooSmall { .. } | CloneError::NotSectors(_) => {
            Failure::refused_field(REFUSED, "disk_size", error.to_string())
        }
        CloneError::DiskFull(_) => Failure::new(
            ErrorCode::NoSpace,
            format!("{error}: nothing was left of it; remove machines or images, and try again"),
        ),
        CloneError::Cancelled(_) => Failure::of(ErrorCode::Cancelled, error),
        CloneError::Image(source) => Failure::of(store_code(source), error),
        CloneError::Exists(_) | CloneError::Qcow2 { .. } | CloneError::Io { .. } => {
            Failure::of(ErrorCode::Internal, error)
        }
    }
}

/// A name that nobody else may take while this exists.
pub(crate) struct Reserved {
    host: Host,
    name: String,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut names = self.host.0.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.remove(&self.name);
    }
}

/// The directory of a machine that is not recorded yet, and its mark; removed unless it is kept.
pub(crate) struct Unfinished {
    path: PathBuf,
    mark: PathBuf,
    is_kept: bool,
}

impl Unfinished {
    pub(crate) fn make(context: &Context, id: VmId) -> Result<Self, Failure> {
        let (path, mark) = (context.vm_dir(id), context.unfinished(id));
        let failed = |path: &Path, error: &std::io::Error| {
            let code = match error.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorCode::NoSpace,
                _ => ErrorCode::Internal,
            };
            Failure::new(code, format!("{} can not be made: {error}", path.display()))
        };
        if path.symlink_metadata().is_ok() {
            let text = format!(
                "{} is there already, with files of a machine that no record knows: move it away and ask again",
                path.display()
            );
            return Err(Failure::new(ErrorCode::InUse, text));
        }
        std::fs::write(&mark, []).map_err(|error| failed(&mark, &error))?;
        if let Err(error) = DirBuilder::new().mode(0o700).create(&path) {
            // Nothing is at `path`, or what somebody else put there just now.
            let _ = std::fs::remove_file(&mark);
            return Err(failed(&path, &error));
        }
        Ok(Self {
            path,
            mark,
            is_kept: false,
        })
    }

    pub(crate) fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let removed = if self.is_kept {
            Ok(())
        } else {
            match std::fs::remove_dir_all(&self.path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        };
        // Last, so that what remains is known to be of no use.
        if let Err(error) = removed.and_then(|()| std::fs::remove_file(&self.mark)) {
            let path = self.path.display();
            tracing::warn!(%path, %error, "files of the making of a machine remain until the next start");
        }
    }
}
