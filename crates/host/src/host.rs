//! The host: opened once, then asked by many.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api_types::{ErrorCode, Event, Vm};
use spec::{OperationId, VmId};
use tokio::sync::{RwLock, Semaphore, watch};

use crate::cache_work::CacheWork;
use crate::context::Context;
use crate::failure::Failure;
use crate::left_moves;
use crate::machine::{self, Action, Machine};
use crate::opening::{self, Left, OpenError};
use crate::registry::{self, OperationRecord, Registry};
use crate::senders::Senders;
use crate::tracker::Tracker;
use crate::{HostConfig, begun, volume_store};

/// Most events in one answer.
const EVENTS_PAGE: u32 = 1000;
/// Pulls that go on at the same time; further ones wait.
pub(crate) const PULLS_MAX: usize = 4;
/// Disks of machines that are copied from images at the same time; further ones wait. Each keeps a thread and the storage busy.
const CLONES_MAX: usize = 4;

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
        let opened = tokio::task::spawn_blocking(move || opening::open_context(config)).await;
        let (context, left) = opened.map_err(|error| OpenError::Limits(io::Error::other(error)))??;
        let Left {
            vms,
            begun,
            cut_off,
            snapshots,
        } = left;
        let context = Arc::new(context);
        let moves = left_moves::listen(&context).map_err(|source| OpenError::Registry {
            path: registry::file(&context.config.state_dir),
            source,
        })?;
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
        host.resume_moves(moves);
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
        let vms = self.registry().change(|change| change.vms()).await?;
        Ok(vms.into_iter().map(|vm| self.with_conditions(vm)).collect())
    }

    /// A machine by name or id.
    pub async fn vm(&self, name_or_id: &str) -> Result<Vm, Failure> {
        let wanted = name_or_id.to_owned();
        let found = self.registry().change(move |change| change.vm(&wanted)).await?;
        found.map(|vm| self.with_conditions(vm)).ok_or_else(|| {
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
