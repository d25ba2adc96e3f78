//! What every part of the host works with.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use images::StoreName;
use spec::{DiskFormat, HostLimits, VmId};

use crate::HostConfig;
use crate::agents::Agents;
use crate::failure::{Failure, chain};
use crate::limits;
use crate::metadefs::Metadefs;
use crate::moves::LiveMoves;
use crate::operations::LiveOperations;
use crate::registry::Registry;

/// Shared by all machines and requests; nothing in it changes but by its own locks.
pub(crate) struct Context {
    pub(crate) config: HostConfig,
    pub(crate) limits: HostLimits,
    pub(crate) registry: Registry,
    /// The default store, which machines and volumes are made from.
    pub(crate) store: images::Store,
    /// All stores of images.
    pub(crate) stores: images::Stores,
    /// Who speaks HTTP for imports.
    pub(crate) agents: Agents,
    pub(crate) operations: LiveOperations,
    /// Moves under way.
    pub(crate) moves: LiveMoves,
    /// Metadata definitions of files.
    pub(crate) metadefs: Metadefs,
    /// Which stores' files can share blocks, as far as it is known.
    pub(crate) reflinks: Mutex<BTreeMap<StoreName, bool>>,
}

/// Name of the root disk inside a machine's directory, without its format.
const ROOT_DISK: &str = "root";
/// Suffix of the mark of a machine that is being made or removed.
pub(crate) const UNFINISHED: &str = "unfinished";

impl Context {
    /// Directory of everything that is kept of a machine.
    pub(crate) fn vm_dir(&self, id: VmId) -> PathBuf {
        self.vms_dir().join(id.to_string())
    }

    /// A file beside a machine's directory while the machine is being made or removed. Only a directory that has one may be
    /// removed for want of a record: any other is data whose record was lost.
    pub(crate) fn unfinished(&self, id: VmId) -> PathBuf {
        self.vms_dir().join(format!("{id}.{UNFINISHED}"))
    }

    /// Directory of the directories of all machines.
    pub(crate) fn vms_dir(&self) -> PathBuf {
        self.config.state_dir.join("vms")
    }

    /// Directory of the files of all volumes.
    pub(crate) fn volumes_dir(&self) -> PathBuf {
        self.config.state_dir.join("volumes")
    }

    /// Directory of the files of all golden images.
    pub(crate) fn images_dir(&self) -> PathBuf {
        self.config.state_dir.join("images")
    }

    /// Directory of copies of disks on their way to become images; nothing in it outlives a daemon.
    pub(crate) fn snapshots_dir(&self) -> PathBuf {
        self.config.state_dir.join("snapshots")
    }

    /// Directory of the directories of all snapshots of machines.
    pub(crate) fn saved_dir(&self) -> PathBuf {
        self.config.state_dir.join("saved")
    }

    /// The file of a machine's root disk, which nobody else writes.
    pub(crate) fn root_disk(&self, id: VmId, format: DiskFormat) -> PathBuf {
        self.vm_dir(id).join(ROOT_DISK).with_extension(format.suffix())
    }

    /// Directory of what a machine is booted with whose disk stands alone.
    pub(crate) fn boot_dir(&self, id: VmId) -> PathBuf {
        self.vm_dir(id).join("boot")
    }

    /// Directory of a machine's console logs.
    pub(crate) fn log_dir(&self, id: VmId) -> PathBuf {
        self.vm_dir(id).join("log")
    }

    pub(crate) fn reflinks(&self) -> MutexGuard<'_, BTreeMap<StoreName, bool>> {
        self.reflinks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The store that has these bytes; the default one where none has. Blocks shortly.
    pub(crate) fn store_of(&self, digest: &images::ImageDigest) -> images::Store {
        let having = self.stores.with_image(digest).into_iter().next();
        having.unwrap_or_else(|| self.store.clone())
    }

    /// Fails when what must stay free does not, once `wanted_bytes` are taken; layers of pulls that failed or were given up go
    /// first. Blocks.
    pub(crate) fn check_space(&self, wanted_bytes: u64) -> Result<(), Failure> {
        let Err(failure) = limits::check_space(&self.config, wanted_bytes) else {
            return Ok(());
        };
        if !self.drop_blobs() {
            return Err(failure);
        }
        limits::check_space(&self.config, wanted_bytes)
    }

    /// Removes what pulls that failed or were given up have left; whether that freed anything. Blocks.
    pub(crate) fn drop_blobs(&self) -> bool {
        match self.store.drop_unused_blobs() {
            Ok(bytes) => bytes > 0,
            Err(error) => {
                tracing::warn!(error = chain(&error), "layers that no pull wants can not be removed");
                false
            }
        }
    }
}
