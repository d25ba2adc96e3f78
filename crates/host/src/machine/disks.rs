//! The images of a machine's disks, opened and locked on its behalf.
//!
//! | disk | its image | what that may be backed by |
//! |---|---|---|
//! | root | the machine's own file | files that were frozen for snapshots, and the golden image it was made from |
//! | from a path | beneath one of `file_roots` | images beneath `file_roots`, and golden images |
//! | from a volume | the volume's newest file | its older files, and the golden image it was made from |
//!
//! The top of each chain is locked for as long as anybody has it open, so that no two machines write one image; what is below
//! is locked against being written.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use api_types::Vm;
use control::{DiskChain, DiskLayer, FdRole};
use disk_image::{Chain, Layer, Policy};
use images::ImageDigest;
use spec::{DiskFormat, DiskPlan, DiskSource, VmPlan};

use super::files_error::FilesError;
use super::image_lock::lock;
use super::root::{frozen_files, root_file};
use crate::context::Context;
use crate::placing::root_store;
use crate::volume_store;

/// A chain as it is told to the machine process, and its files with their roles.
pub(super) struct OpenDisk {
    pub(super) chain: DiskChain,
    pub(super) fds: Vec<(FdRole, OwnedFd)>,
    /// What is still to be locked.
    pub(super) later: Vec<LaterLock>,
}

/// When files that are written are locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Locking {
    /// Before anybody gets them.
    Now,
    /// When the machine that has them now has gone from another host.
    Later,
}

/// A file that is to be locked when its present user has let go of it: the lock is that of the machine process too.
pub(crate) struct LaterLock {
    file: OwnedFd,
    path: PathBuf,
}

impl LaterLock {
    /// Locks it against everybody else, if nobody else has it.
    pub(crate) fn take(&self) -> Result<(), FilesError> {
        let own = |source| FilesError::Own {
            path: self.path.clone(),
            source,
        };
        let file = File::from(self.file.try_clone().map_err(own)?);
        lock(file, &self.path, false).map(drop)
    }
}

/// All disks of a machine, in the order of its specification.
pub(super) fn open(context: &Context, vm: &Vm, plan: &VmPlan, locking: Locking) -> Result<Vec<OpenDisk>, FilesError> {
    let mut disks = Vec::new();
    if plan.image.is_some() {
        disks.push(hand_over(0, root(context, vm, 1)?, locking)?);
    }
    for (index, disk) in (0..).skip(disks.len()).zip(&plan.disks) {
        disks.push(open_planned(context, index, disk, locking)?);
    }
    Ok(disks)
}

fn open_planned(context: &Context, index: u32, plan: &DiskPlan, locking: Locking) -> Result<OpenDisk, FilesError> {
    let opened = hand_over(index, resolve(context, plan)?, locking);
    opened.map_err(|error| match (error, &plan.source) {
        // Its file tells nobody anything.
        (FilesError::InUse { .. }, DiskSource::Volume(volume)) => FilesError::Volume {
            field: format!("disks[{}].volume", plan.index),
            failure: Box::new(volume_store::in_use(context, volume)),
        },
        (error, _) => error,
    })
}

/// Opens one disk that a machine that runs is given.
pub(crate) fn open_one(context: &Context, plan: &DiskPlan) -> Result<(DiskChain, Vec<OwnedFd>), FilesError> {
    let disk = open_planned(context, 0, plan, Locking::Now)?;
    Ok((disk.chain, disk.fds.into_iter().map(|(_, fd)| fd).collect()))
}

/// Opens the chain of a disk, and locks nothing.
pub(super) fn resolve(context: &Context, plan: &DiskPlan) -> Result<Chain, FilesError> {
    match &plan.source {
        DiskSource::Path { path, format } => from_path(context, plan, path, *format),
        DiskSource::Volume(volume) => {
            let field = format!("disks[{}].volume", plan.index);
            from_volume(context, field, volume, writable_layers(plan))
        }
    }
}

/// The chain of a machine's own disk, `writable_layers` of it to be written; locks nothing.
pub(super) fn root(context: &Context, vm: &Vm, writable_layers: usize) -> Result<Chain, FilesError> {
    let (path, format) = root_file(context, vm);
    let frozen = frozen_files(&context.vm_dir(vm.id)).map_err(|source| FilesError::Own {
        path: path.clone(),
        source,
    })?;
    let image = vm.image_digest.as_deref().filter(|_| !stands_alone(vm));
    let image: Option<ImageDigest> = image.and_then(|digest| digest.parse().ok());
    let sealed = match &image {
        Some(image) => Some((
            context
                .store_behind(root_store(&vm.status))
                .map_err(FilesError::Image)?,
            image,
        )),
        None => None,
    };
    let sealed = sealed.map(|(store, image)| store.disk_path(image));
    let mut directories = vec![context.vm_dir(vm.id)];
    directories.extend(directory_of(sealed.as_deref()));
    let chain = follow(&path, format, writable_layers, directories).map_err(|source| FilesError::Root {
        path: path.clone(),
        source: Box::new(source),
    })?;
    match stranger(&chain, sealed.as_deref(), &frozen) {
        Some(other) => Err(FilesError::RootStranger {
            path,
            backing: other.name.clone(),
        }),
        None => Ok(chain),
    }
}

/// The directory of an image's disk, if that is there.
fn directory_of(disk: Option<&Path>) -> Option<PathBuf> {
    let directory = disk?.parent();
    directory.filter(|directory| directory.is_dir()).map(Path::to_owned)
}

/// What is below the top of a chain and is neither the disk of its image nor one of its `own` files.
fn stranger<'a>(chain: &'a Chain, sealed: Option<&Path>, own: &[PathBuf]) -> Option<&'a Layer> {
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    let sealed = sealed.and_then(|disk| disk.metadata().ok()).map(identity);
    chain.below().iter().find(|layer| {
        let is_sealed = sealed.is_some() && layer.file.metadata().ok().map(identity) == sealed;
        !is_sealed && !is_own(Path::new(&layer.name), own)
    })
}

fn from_path(context: &Context, plan: &DiskPlan, path: &Path, format: DiskFormat) -> Result<Chain, FilesError> {
    let mut directories = context.limits.file_roots.clone();
    directories.retain(|directory| directory.is_dir());
    let images = context.images_dir();
    directories.extend(images.is_dir().then_some(images));
    let chain = follow(path, format, writable_layers(plan), directories);
    chain.map_err(|source| FilesError::Chain {
        field: format!("disks[{}].path", plan.index),
        source: Box::new(source),
    })
}

/// The chain of a volume, which `field` names; locks nothing.
pub(super) fn from_volume(
    context: &Context,
    field: String,
    volume: &str,
    writable_layers: usize,
) -> Result<Chain, FilesError> {
    let found = volume_store::locate(context, volume).map_err(|failure| FilesError::Volume {
        field: field.clone(),
        failure: Box::new(failure),
    })?;
    let mut directories = vec![context.volumes_dir()];
    directories.extend(directory_of(found.image.as_deref()));
    let chain = follow(&found.path, found.format, writable_layers, directories);
    let chain = chain.map_err(|source| FilesError::Chain {
        field: field.clone(),
        source: Box::new(source),
    })?;
    // Other volumes are in the same directory.
    match stranger(&chain, found.image.as_deref(), &found.below) {
        Some(other) => Err(FilesError::Stranger {
            field,
            path: found.path,
            backing: other.name.clone(),
        }),
        None => Ok(chain),
    }
}

/// Whether a path is one of a volume's own files, which all are in one directory.
fn is_own(path: &Path, files: &[PathBuf]) -> bool {
    files.iter().any(|file| file.file_name() == path.file_name())
}

fn writable_layers(plan: &DiskPlan) -> usize {
    usize::from(!plan.disk.read_only)
}

fn follow(
    path: &Path,
    format: DiskFormat,
    writable_layers: usize,
    directories: Vec<PathBuf>,
) -> Result<Chain, disk_image::ResolveError> {
    let policy = Policy {
        format: Some(format),
        writable_layers,
        ..Policy::within(directories)
    };
    disk_image::resolve(path, &policy)
}

fn hand_over(index: u32, chain: Chain, locking: Locking) -> Result<OpenDisk, FilesError> {
    let (mut layers, mut fds, mut later) = (Vec::new(), Vec::new(), Vec::new());
    for (layer, place) in chain.into_layers().into_iter().zip(0..) {
        let mut lock = |file: File, name: &str| {
            let path = Path::new(name);
            if !layer.writable || locking == Locking::Now {
                return lock(file, path, !layer.writable);
            }
            let own = |source| FilesError::Own {
                path: path.to_owned(),
                source,
            };
            later.push(LaterLock {
                file: file.try_clone().map_err(own)?.into(),
                path: path.to_owned(),
            });
            Ok(file.into())
        };
        fds.push((FdRole::Disk { index, layer: place }, lock(layer.file, &layer.name)?));
        let data_file = match layer.data_file {
            Some(data) => {
                fds.push((FdRole::DiskData { index, layer: place }, lock(data.file, &data.name)?));
                Some(data.name)
            }
            None => None,
        };
        layers.push(DiskLayer {
            name: layer.name,
            format: layer.format,
            writable: layer.writable,
            data_file,
        });
    }
    let chain = DiskChain { layers };
    Ok(OpenDisk { chain, fds, later })
}

/// Whether a machine needs nothing of the image that its disk was made from.
pub(super) fn stands_alone(vm: &Vm) -> bool {
    vm.status.root_disk.as_ref().is_some_and(|root| root.stands_alone)
}
