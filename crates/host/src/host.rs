//! The host: opened once, then asked by many.

use std::collections::{HashMap, HashSet};
use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api_types::{ErrorCode, Event, EventReason, OperationKind, OperationPhase, Vm};
use images::StoreError;
use spec::{HostLimits, OperationId, VmId};
use tokio::sync::{RwLock, Semaphore, watch};

use crate::agents::Agents;
use crate::begun;
use crate::cache_work::CacheWork;
use crate::context::{self, Context};
use crate::failure::Failure;
use crate::machine::{self, Action, Machine};
use crate::metadefs::Metadefs;
use crate::operations::LiveOperations;
use crate::registry::{self, About, ImageRow, OperationRecord, Registry, RegistryError, SnapshotRow};
use crate::senders::Senders;
use crate::tracker::Tracker;
use crate::{HostConfig, limits, part, snapshot, store_notes, volume_store};

/// Most events in one answer.
const EVENTS_PAGE: u32 = 1000;
/// Pulls that go on at the same time; further ones wait.
pub(crate) const PULLS_MAX: usize = 4;
/// Disks of machines that are copied from images at the same time; further ones wait. Each keeps a thread and the storage busy.
const CLONES_MAX: usize = 4;
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

/// The host. Clones are the same one.
#[derive(Clone)]
pub struct Host(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) context: Arc<Context>,
    pub(crate) machines: Mutex<HashMap<VmId, Machine>>,
    /// Names of machines that are being made.
    pub(crate) names: Mutex<HashSet<String>>,
    /// Held for reading while a machine is made from an image, for writing while one is removed.
    pub(crate) images: RwLock<()>,
    /// Keys of requests that are carried out just now.
    pub(crate) keys: Mutex<HashSet<String>>,
    /// Turns of pulls: each keeps threads and the network busy.
    pub(crate) pulls: Semaphore,
    /// Turns of those who copy an image to a machine's disk.
    pub(crate) clones: Semaphore,
    /// What is done to volumes just now.
    pub(crate) volumes: volume_store::Keeper,
    /// What is done for boot sources just now.
    pub(crate) boot: Tracker,
    /// Who sends images piece by piece just now.
    pub(crate) uploads: Senders,
    /// What is done for the image cache just now.
    pub(crate) cache: CacheWork,
}

impl Host {
    /// Opens everything under `config`, cleans up after an earlier daemon, and looks for its machines. Within a tokio
    /// runtime only.
    pub async fn open(config: HostConfig) -> Result<Self, OpenError> {
        let opened = tokio::task::spawn_blocking(move || open_context(config)).await;
        let (context, left) = opened.map_err(|error| OpenError::Limits(io::Error::other(error)))??;
        let Left {
            vms,
            begun,
            cut_off,
            snapshots,
        } = left;
        let context = Arc::new(context);
        let mut strays = machine::run_dirs(&context);
        // Told apart now: machines made from here on are not among them.
        strays.retain(|id| vms.iter().all(|vm| vm.id != *id));
        tokio::spawn(machine::clear_strays(Arc::clone(&context), strays, cut_off));
        let supervised = vms.into_iter().map(|vm| (vm.id, Machine::supervise(&context, vm)));
        let machines = Mutex::new(supervised.collect());
        let host = Self(Arc::new(Inner {
            context,
            machines,
            names: Mutex::default(),
            images: RwLock::new(()),
            keys: Mutex::default(),
            pulls: Semaphore::new(PULLS_MAX),
            clones: Semaphore::new(CLONES_MAX),
            volumes: volume_store::Keeper::default(),
            boot: Tracker::default(),
            uploads: Senders::default(),
            cache: CacheWork::default(),
        }));
        host.resume_volumes(begun.volumes);
        host.resume_pulls(begun.pulls);
        host.resume_flattens(begun.flattens);
        host.resume_images(begun.images);
        host.let_go_on(snapshots);
        tokio::spawn(host.clone().track_boot_sources());
        tokio::spawn(host.clone().age_uploads());
        tokio::spawn(host.clone().keep_cache());
        host.watch_stores();
        Ok(host)
    }

    /// All machines, by name.
    #[expect(
        clippy::redundant_closure_for_method_calls,
        reason = "the method itself is not general in its lifetime"
    )]
    pub async fn vms(&self) -> Result<Vec<Vm>, Failure> {
        Ok(self.registry().change(|change| change.vms()).await?)
    }

    /// A machine by name or id.
    pub async fn vm(&self, name_or_id: &str) -> Result<Vm, Failure> {
        let wanted = name_or_id.to_owned();
        let found = self.registry().change(move |change| change.vm(&wanted)).await?;
        found.ok_or_else(|| {
            Failure::new(
                ErrorCode::NotFound,
                format!("no machine {name_or_id:?} on this host; the list has all"),
            )
        })
    }

    /// Begins to start a machine. With `revision`, only if its record still has that one.
    pub async fn start(&self, name_or_id: &str, revision: Option<u64>) -> Result<OperationRecord, Failure> {
        self.machine(name_or_id).await?.1.start(revision).await
    }

    /// Begins to stop a machine: by its power button, or with `force` as if its power was cut.
    pub async fn stop(
        &self,
        name_or_id: &str,
        revision: Option<u64>,
        force: bool,
        timeout: Option<Duration>,
    ) -> Result<OperationRecord, Failure> {
        let timeout = timeout.unwrap_or(self.0.context.config.stop_timeout);
        self.machine(name_or_id).await?.1.stop(revision, force, timeout).await
    }

    /// Pauses, resumes or resets a machine; returns when it is done.
    pub async fn act(&self, name_or_id: &str, revision: Option<u64>, action: Action) -> Result<Vm, Failure> {
        let (id, machine) = self.machine(name_or_id).await?;
        machine.act(revision, action).await?;
        self.vm(&id.to_string()).await
    }

    /// Removes a machine that does not run, with its disk and its logs. With `force` it is ended first.
    pub async fn delete_vm(&self, name_or_id: &str, revision: Option<u64>, force: bool) -> Result<(), Failure> {
        let (id, machine) = self.machine(name_or_id).await?;
        if force {
            match machine.stop(revision, true, Duration::ZERO).await {
                Ok(operation) => self.ended(operation.id).await?,
                // It does not run.
                Err(failure) if failure.code == ErrorCode::WrongState => {}
                Err(failure) => return Err(failure),
            }
            machine.delete(None).await?;
        } else {
            machine.delete(revision).await?;
        }
        self.lock_machines().remove(&id);
        // An image may have had its last use.
        self.0.boot.wake.notify_one();
        Ok(())
    }

    /// All operations that are remembered, newest first.
    #[expect(
        clippy::redundant_closure_for_method_calls,
        reason = "the method itself is not general in its lifetime"
    )]
    pub async fn operations(&self) -> Result<Vec<OperationRecord>, Failure> {
        let mut records = self.registry().change(|change| change.operations()).await?;
        for record in &mut records {
            record.progress = self.0.context.operations.progress(record.id);
        }
        Ok(records)
    }

    /// One operation.
    pub async fn operation(&self, id: OperationId) -> Result<OperationRecord, Failure> {
        let found = self.registry().change(move |change| change.operation(id)).await?;
        let mut record =
            found.ok_or_else(|| Failure::new(ErrorCode::NotFound, format!("no operation {id} is remembered")))?;
        record.progress = self.0.context.operations.progress(id);
        Ok(record)
    }

    /// Asks for an operation to be given up; it ends soon, or has ended before.
    pub async fn cancel(&self, id: OperationId) -> Result<OperationRecord, Failure> {
        let record = self.operation(id).await?;
        if record.phase.is_final() {
            return Err(Failure::new(
                ErrorCode::WrongState,
                format!(
                    "operation {id} is over ({:?}); there is nothing to cancel",
                    record.phase
                ),
            ));
        }
        self.0.context.operations.cancel(id);
        Ok(record)
    }

    /// Events after the one with this number, oldest first, at most a thousand.
    pub async fn events_after(&self, after: u64) -> Result<Vec<Event>, Failure> {
        Ok(self
            .registry()
            .change(move |change| change.events_after(after, EVENTS_PAGE))
            .await?)
    }

    /// The number of the newest event, now and whenever there is a newer one.
    pub fn newest_event(&self) -> watch::Receiver<u64> {
        self.registry().newest_event()
    }

    /// The daemon ends: pulls stop, what they have fetched stays. Machines go on.
    pub fn close(&self) {
        self.0.context.operations.close();
        self.0.boot.wake.notify_one();
        self.0.cache.wake.notify_one();
        if let Err(error) = self.registry().change_now(begun::forget) {
            tracing::warn!(
                error = crate::failure::chain(&error),
                "that work was stopped in order can not be noted"
            );
        }
    }

    /// Waits until an operation is over.
    async fn ended(&self, id: OperationId) -> Result<(), Failure> {
        let mut newest = self.newest_event();
        loop {
            newest.borrow_and_update();
            let record = self.operation(id).await?;
            if record.phase.is_final() {
                return record.failure.map_or(Ok(()), Err);
            }
            if newest.changed().await.is_err() {
                return Err(Failure::new(ErrorCode::Internal, "the daemon is ending"));
            }
        }
    }

    /// Fails when what must stay free does not, once `wanted_bytes` are taken.
    pub(crate) async fn check_space(&self, wanted_bytes: u64) -> Result<(), Failure> {
        let context = Arc::clone(&self.0.context);
        let checked = tokio::task::spawn_blocking(move || context.check_space(wanted_bytes));
        checked
            .await
            .unwrap_or_else(|_| Err(Failure::new(ErrorCode::Internal, "the work was lost")))
    }

    pub(crate) async fn machine(&self, name_or_id: &str) -> Result<(VmId, Machine), Failure> {
        let vm = self.vm(name_or_id).await?;
        let machine = self.lock_machines().get(&vm.id).cloned();
        machine
            .map(|machine| (vm.id, machine))
            .ok_or_else(|| Failure::new(ErrorCode::NotFound, format!("machine {name_or_id:?} is being deleted")))
    }

    pub(crate) fn lock_machines(&self) -> std::sync::MutexGuard<'_, HashMap<VmId, Machine>> {
        self.0.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.0.context.registry
    }
}

/// Directories, image store, registry; what an earlier daemon had begun is ended in the records. Blocks.
fn open_context(config: HostConfig) -> Result<(Context, Left), OpenError> {
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
struct Left {
    vms: Vec<Vm>,
    begun: begun::Begun,
    /// Machines whose making or removal was cut off.
    cut_off: Vec<VmId>,
    /// Snapshots whose making was cut off.
    snapshots: Vec<SnapshotRow>,
}

/// Notes what an earlier daemon had begun as over, but for what this one goes on with. Images of the store that no record knows get
/// one: those of a store from before there were records.
fn take_over(change: &registry::Change<'_>, sealed: &[images::ImageRecord]) -> Result<Left, RegistryError> {
    change.adopt_sealed(sealed)?;
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
            flattens.push(operation);
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
        snapshots: snapshot::take_over(change)?,
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
    snapshot::clear(context, &known).map_err(|source| OpenError::Directory { path, source })
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
