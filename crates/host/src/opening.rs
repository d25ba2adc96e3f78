//! How the host is opened: directories, stores and registry, and what an earlier daemon left.

use std::collections::HashSet;
use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use api_types::{ErrorCode, EventReason, OperationKind, OperationPhase, Vm};
use images::StoreError;
use spec::{HostLimits, OperationId, VmId};

use crate::agents::Agents;
use crate::context::{self, Context};
use crate::failure::Failure;
use crate::left_moves;
use crate::metadefs::Metadefs;
use crate::moves::LiveMoves;
use crate::operations::LiveOperations;
use crate::registry::{self, About, ImageRow, Registry, RegistryError, SnapshotRow};
use crate::{HostConfig, begun, limits, part, snapshot_files, store_notes, volume_store};

/// Mode of directories whose contents are only the daemon's.
const PRIVATE_DIR: u32 = 0o700;
/// Mode of directories that hold what others may use, as the socket.
const PUBLIC_DIR: u32 = 0o755;

/// Why the host can not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A directory can not be made or read.
    #[error("{path:?} can not be used")]
    Directory {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The image store.
    #[error("the image store can not be opened")]
    Images(#[source] images::StoresError),
    /// What the image store has.
    #[error("the images of the store can not be listed")]
    ImageList(#[source] StoreError),
    /// The registry.
    #[error("the registry {path:?} can not be opened")]
    Registry {
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: RegistryError,
    },
    /// The host itself can not be read.
    #[error("the host's memory can not be read")]
    Limits(#[source] io::Error),
}

/// Directories, image store, registry; what an earlier daemon had begun is ended in the records. Blocks.
pub(crate) fn open_context(config: HostConfig) -> Result<(Context, Left), OpenError> {
    make_dirs(&config)?;
    let settings = images::Settings {
        root: config.state_dir.clone(),
        quota_bytes: config.images.quota_bytes,
        insecure_registries: config.insecure_registries.clone(),
        registry_auth_file: config.registry_auth_file.clone(),
        registry_policy: config.images.registry.clone(),
        max_disk_bytes: config.image_max_bytes,
        reserved_bytes: config.reserved_space_bytes,
        ..images::Settings::default()
    };
    let stores = open_stores(&config, settings)?;
    let store = stores.get(stores.default_name()).cloned();
    let store = store.ok_or(OpenError::Images(images::StoresError::None))?;
    let path = registry::file(&config.state_dir);
    let failed = |source| OpenError::Registry {
        path: path.clone(),
        source,
    };
    let registry = Registry::open(&path).map_err(failed)?;
    let sealed = store_notes::sealed(&config.state_dir, &stores).map_err(OpenError::ImageList)?;
    let mut left = registry
        .change_now(|change| take_over(change, &sealed))
        .map_err(failed)?;
    let moves = LiveMoves::new(&config.migration);
    let context = Context {
        limits: HostLimits {
            memory_bytes: limits::memory_bytes().map_err(OpenError::Limits)?,
            file_roots: config.file_roots.clone(),
        },
        reflinks: store_notes::first_trial(&store),
        agents: Agents::open(&config.images),
        metadefs: Metadefs::read(&config.metadefs),
        config,
        registry,
        store,
        stores,
        operations: LiveOperations::default(),
        moves,
    };
    left.cut_off = clear_disks(&context, &left.vms)?;
    part::clear(&context.snapshots_dir());
    clear_snapshots(&context)?;
    let path = context.volumes_dir();
    volume_store::clear(&context, &left.begun.volumes).map_err(|source| OpenError::Directory { path, source })?;
    // Last, so that a daemon that can not start for another reason does not count.
    let counted = context
        .registry
        .change_now(|change| begun::count(change, &mut left.begun));
    counted.map_err(failed)?;
    Ok((context, left))
}

/// The store in the state directory, and the further ones, of which those that can not be opened are not available for now.
fn open_stores(config: &HostConfig, own: images::Settings) -> Result<images::Stores, OpenError> {
    let further = config.images.stores.iter().map(|store| images::Settings {
        name: store.name.clone(),
        root: store.path.clone(),
        quota_bytes: store.quota_bytes,
        must_be_mounted: store.must_be_mounted,
        remembered: Some(store_notes::identity(&config.state_dir, &store.name)),
        ..own.clone()
    });
    let further: Vec<_> = further.collect();
    let default = own.name.clone();
    let settings = [own].into_iter().chain(further).collect();
    // Their locks also keep a second daemon away from the registry and the machines.
    let (stores, recovered, _) = images::Stores::open(settings, default).map_err(OpenError::Images)?;
    for (store, recovery) in recovered {
        store_notes::log_recovery(&store, &recovery);
    }
    Ok(stores)
}

/// What an earlier daemon left.
pub(crate) struct Left {
    pub(crate) vms: Vec<Vm>,
    pub(crate) begun: begun::Begun,
    /// Machines whose making or removal was cut off.
    pub(crate) cut_off: Vec<VmId>,
    /// Snapshots whose making was cut off.
    pub(crate) snapshots: Vec<SnapshotRow>,
}

/// Notes what an earlier daemon had begun as over, but for what this one goes on with. Images of the store that no record knows get
/// one: those of a store from before there were records.
fn take_over(change: &registry::Change<'_>, sealed: &[images::ImageRecord]) -> Result<Left, RegistryError> {
    change.adopt_sealed(sealed)?;
    left_moves::take_over(change)?;
    let volumes = change.volumes()?;
    let images = change.images()?;
    let mut goes_on: HashSet<OperationId> = volumes
        .iter()
        .filter_map(|volume| volume.job)
        .map(|job| job.operation)
        .collect();
    goes_on.extend(images.iter().filter_map(ImageRow::operation));
    let cut_off = Failure::new(ErrorCode::Internal, "the daemon was restarted meanwhile; ask again");
    let (mut pulls, mut flattens) = (Vec::new(), Vec::new());
    for operation in change.operations()? {
        if goes_on.contains(&operation.id) || operation.phase.is_final() {
            continue;
        }
        if operation.kind == OperationKind::ImagePull {
            pulls.push((operation, 0));
        } else if operation.kind == OperationKind::VmFlatten {
            flattens.push((operation, 0));
        } else {
            change.end_operation(operation.id, OperationPhase::Failed, Err(&cut_off))?;
        }
    }
    change.event(&About::Host, EventReason::DaemonStarted, "karatd started")?;
    Ok(Left {
        vms: change.vms()?,
        begun: begun::Begun {
            volumes,
            pulls,
            flattens,
            images,
        },
        cut_off: Vec::new(),
        snapshots: change.take_over_snapshots()?,
    })
}

/// Removes what is left of snapshots that no record says are ready.
fn clear_snapshots(context: &Context) -> Result<(), OpenError> {
    let path = registry::file(&context.config.state_dir);
    #[expect(
        clippy::redundant_closure_for_method_calls,
        reason = "the method itself is not general in its lifetime"
    )]
    let known = context.registry.change_now(|change| change.snapshots());
    let known = known.map_err(|source| OpenError::Registry { path, source })?;
    let path = context.saved_dir();
    snapshot_files::clear(context, &known).map_err(|source| OpenError::Directory { path, source })
}

/// Removes what is left of machines whose making or removal was cut off, as their marks tell, and returns which these are. A
/// directory without a record and without a mark is somebody's data whose record was lost: it stays.
fn clear_disks(context: &Context, vms: &[Vm]) -> Result<Vec<VmId>, OpenError> {
    let path = context.vms_dir();
    let failed = |source| OpenError::Directory {
        path: path.clone(),
        source,
    };
    let (mut cut_off, mut lost) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(&path).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let Some(name) = name.to_str() else { continue };
        let (id, marked) = match name.split_once('.') {
            Some((id, context::UNFINISHED)) => (id, true),
            _ => (name, false),
        };
        let Ok(id) = id.parse::<VmId>() else { continue };
        let known = vms.iter().any(|vm| vm.id == id);
        if marked && known {
            // The record came before the mark could go, or stayed after it was made.
            remove(&context.unfinished(id), |path| std::fs::remove_file(path));
        } else if marked {
            cut_off.push(id);
        } else if !known {
            lost.push(id);
        }
    }
    for id in lost.iter().filter(|id| !cut_off.contains(id)) {
        tracing::warn!(
            path = %context.vm_dir(*id).display(),
            "files of a machine that no record knows are kept: put karat.db back that knows it, copy its disk into a volume with \
             karat volume upload, or remove the directory"
        );
    }
    for id in &cut_off {
        tracing::info!(%id, "files of a machine whose making or removal was cut off are removed");
        if remove(&context.vm_dir(*id), |path| std::fs::remove_dir_all(path)) {
            remove(&context.unfinished(*id), |path| std::fs::remove_file(path));
        }
    }
    Ok(cut_off)
}

/// Whether it is gone.
fn remove(path: &Path, how: impl FnOnce(&Path) -> io::Result<()>) -> bool {
    match how(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "can not be removed");
            false
        }
        _ => true,
    }
}

/// The daemon's own, and roots of files that lie in them.
fn make_dirs(config: &HostConfig) -> Result<(), OpenError> {
    let state = |name: &str| config.state_dir.join(name);
    for path in [&config.state_dir, &config.run_dir] {
        make_dir(path)?;
    }
    for path in [
        state("vms"),
        state("volumes"),
        state("snapshots"),
        state("saved"),
        store_notes::directory(&config.state_dir),
    ] {
        make_dir(&path)?;
        // Also where an earlier daemon made it for everybody to read.
        let private = std::fs::set_permissions(&path, Permissions::from_mode(PRIVATE_DIR));
        private.map_err(|source| OpenError::Directory { path, source })?;
    }
    // Others are the operator's, who may mount something there.
    for root in config
        .file_roots
        .iter()
        .filter(|root| root.starts_with(&config.state_dir))
    {
        make_dir(root)?;
    }
    Ok(())
}

/// Makes a directory others may pass through, whatever the umask; one that is there stays as it is.
fn make_dir(path: &Path) -> Result<(), OpenError> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new()
        .recursive(true)
        .mode(PUBLIC_DIR)
        .create(path)
        .and_then(|()| std::fs::set_permissions(path, Permissions::from_mode(PUBLIC_DIR)))
        .map_err(|source| OpenError::Directory {
            path: path.to_owned(),
            source,
        })
}
