//! Disks that are read while nobody writes them.

use std::path::Path;

use api_types::Vm;
use disk_image::Chain;
use spec::DiskPlan;

use super::disks;
use super::files_error::FilesError;
use super::image_lock::lock;
use super::root::settle_root;
use crate::context::Context;
use crate::failure::Failure;

/// A disk that no machine runs with.
pub(crate) enum Standing {
    /// A machine's own.
    Root(Box<Vm>),
    /// A file of the host that a machine has.
    Path(Box<DiskPlan>),
    /// A volume, by name or id.
    Volume(String),
}

/// Opens a disk for reading, and keeps everybody from writing it as long as the chain is there. Blocks.
pub(crate) fn read(context: &Context, disk: &Standing) -> Result<Chain, Failure> {
    let opened = match disk {
        Standing::Root(vm) => {
            settle_root(context, vm.id)?;
            disks::root(context, vm, 0)
        }
        Standing::Path(plan) => disks::resolve(context, plan),
        Standing::Volume(volume) => disks::from_volume(context, "import.volume".to_owned(), volume, 0),
    };
    let chain = opened?;
    lock_all(&chain, false)?;
    Ok(chain)
}

/// Locks a chain for as long as it is there; what is open for writing against every use if it is `to_write`.
pub(super) fn lock_all(chain: &Chain, to_write: bool) -> Result<(), FilesError> {
    for layer in chain.layers() {
        let files = [Some(&layer.file), layer.data_file.as_ref().map(|data| &data.file)];
        for file in files.into_iter().flatten() {
            let own = |source| FilesError::Own {
                path: layer.name.clone().into(),
                source,
            };
            // The same open file once more: the lock is the chain's.
            let again = file.try_clone().map_err(own)?;
            lock(again, Path::new(&layer.name), !(to_write && layer.writable))?;
        }
    }
    Ok(())
}
