//! Figures of the host for monitoring.

use std::collections::BTreeMap;
use std::time::Duration;

use api_types::{
    BootSource, MigrationFigures, MigrationPhase, OperationKind, OperationPhase, VmPhase, Volume, VolumeState,
};
use control::DiskReport;
use images::{CloneWay, StoreHealth};

use crate::catalogue::ImageFilter;
use crate::failure::Failure;
use crate::host::Host;
use crate::limits;
use crate::registry::RegistryError;

/// What there is, counted.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Machines in each phase.
    pub vms: Vec<(VmPhase, u64)>,
    /// All volumes.
    pub volumes: Vec<Volume>,
    /// Volumes in each state.
    pub volume_states: Vec<(VolumeState, u64)>,
    /// The disks of each machine that runs, with its name.
    pub disks: Vec<(String, DiskReport)>,
    /// Sealed images.
    pub images: u64,
    /// Space of images, bytes.
    pub images_bytes: u64,
    /// Operations that are remembered, by kind and phase.
    pub operations: Vec<(OperationKind, OperationPhase, u64)>,
    /// Number of the newest event.
    pub newest_event: u64,
    /// Bytes free on the state directory's file system.
    pub free_bytes: u64,
    /// All boot sources.
    pub boot_sources: Vec<BootSource>,
    /// How often the import into each image was begun again, by name.
    pub import_restarts: Vec<(String, u64)>,
    /// The stores of images, by name.
    pub stores: Vec<StoreFigures>,
    /// Copies of images of slow stores.
    pub cache: CacheFigures,
    /// Moves of machines to other hosts.
    pub moves: MoveCounts,
}

/// Moves of machines away from here.
#[derive(Debug, Clone, Default)]
pub struct MoveCounts {
    /// Those under way, and those that are remembered, in each phase.
    pub phases: Vec<(MigrationPhase, u64)>,
    /// How far those under way are, by the name of the machine.
    pub figures: Vec<(String, MigrationFigures)>,
    /// How many succeeded since the daemon started.
    pub succeeded: u64,
    /// How many did not.
    pub failed: u64,
}

/// Figures of a store of images.
#[derive(Debug, Clone)]
pub struct StoreFigures {
    /// Its name.
    pub name: String,
    /// Whether images go there unless another is named.
    pub is_default: bool,
    /// Whether it can be used for everything.
    pub is_available: bool,
    /// Whether it is known what its files can do: only then it is known how disks are made from its images.
    pub is_complete: bool,
    /// How new machines get their disks from its images: `overlay`, `reflink` or `copy`.
    pub clone_method: &'static str,
    /// Most space that its images may take, bytes.
    pub quota_bytes: Option<u64>,
    /// What else there is to tell; none while it is not there.
    pub room: Option<StoreRoom>,
}

/// What is in a store, and how much room there is.
#[derive(Debug, Clone)]
pub struct StoreRoom {
    /// Whether it is on the file system of `/`.
    pub shares_root: bool,
    /// Images in it.
    pub images: u64,
    /// Space of its images, bytes.
    pub used_bytes: u64,
    /// Bytes free on its file system.
    pub free_bytes: u64,
    /// Size of its file system, bytes.
    pub size_bytes: u64,
}

/// Figures of the cache of images.
#[derive(Debug, Clone, Default)]
pub struct CacheFigures {
    /// How often a machine or volume found a copy there, since the daemon started.
    pub hits: u64,
    /// How often a copy had to be made first.
    pub misses: u64,
    /// How many copies were removed for want of room.
    pub evictions: u64,
    /// Images whose copies are there.
    pub images: u64,
    /// Images that are to be copied.
    pub queued: u64,
    /// Space of the copies, bytes.
    pub used_bytes: u64,
    /// Most that they may take, bytes.
    pub max_bytes: u64,
}

impl Host {
    /// Counts everything.
    pub async fn metrics(&self) -> Result<Metrics, Failure> {
        let counted = self.registry().change(|change| -> Result<_, RegistryError> {
            let mut phases = BTreeMap::from(VM_PHASES.map(|phase| (phase as u8, (phase, 0))));
            for vm in change.vms()? {
                phases.entry(vm.status.phase as u8).or_insert((vm.status.phase, 0)).1 += 1;
            }
            let mut operations = BTreeMap::new();
            for operation in change.operations()? {
                let (kind, phase) = (operation.kind, operation.phase);
                operations
                    .entry((kind as u8, phase as u8))
                    .or_insert((kind, phase, 0))
                    .2 += 1;
            }
            let operations: Vec<(OperationKind, OperationPhase, u64)> = operations.into_values().collect();
            let restarts = change.images()?.into_iter().map(|row| {
                let restarts = row.state.attempts.saturating_sub(1).saturating_add(row.resumes);
                (row.name().to_owned(), u64::from(restarts))
            });
            let restarts: Vec<_> = restarts.collect();
            Ok((phases.into_values().collect(), operations, restarts))
        });
        let (vms, operations, import_restarts) = counted.await?;
        let volumes = self.volumes().await?;
        let mut states = BTreeMap::from(VOLUME_STATES.map(|state| (state as u8, (state, 0))));
        for volume in &volumes {
            states.entry(volume.state as u8).or_insert((volume.state, 0)).1 += 1;
        }
        let hidden = ImageFilter {
            hidden: true,
            ..ImageFilter::default()
        };
        let mut images = self.images(ImageFilter::default()).await?;
        images.extend(self.images(hidden).await?);
        let mut sealed: Vec<_> = images
            .iter()
            .filter_map(|image| Some((image.digest.clone()?, image.size_bytes?)))
            .collect();
        // The same bytes under several records are there once.
        sealed.sort();
        sealed.dedup();
        let boot_sources = self.boot_sources().await?.items;
        let (stores, cache) = (self.store_figures().await?, self.cache_figures().await?);
        let moves = self.move_counts().await?;
        Ok(Metrics {
            vms,
            volumes,
            volume_states: states.into_values().collect(),
            disks: self.all_disks().await?,
            images: sealed.len() as u64,
            images_bytes: sealed.iter().map(|(_, bytes)| bytes).sum(),
            operations,
            newest_event: *self.newest_event().borrow(),
            free_bytes: limits::free_bytes(&self.0.context.config.state_dir).unwrap_or(0),
            boot_sources,
            import_restarts,
            stores,
            cache,
            moves,
        })
    }
}

impl Host {
    async fn move_counts(&self) -> Result<MoveCounts, Failure> {
        let mut phases = MigrationPhase::ALL.map(|phase| (phase, 0));
        let mut figures = Vec::new();
        for record in self.migrations().await? {
            if let Some((_, count)) = phases.iter_mut().find(|(phase, _)| *phase == record.phase) {
                *count += 1;
            }
            if let Some(told) = record.progress.filter(|_| !record.phase.is_final()) {
                figures.push((record.vm_name, told));
            }
        }
        let (succeeded, failed) = self.0.context.moves.counts();
        Ok(MoveCounts {
            phases: phases.into(),
            figures,
            succeeded,
            failed,
        })
    }

    /// A machine process that does not answer at once is left out.
    async fn all_disks(&self) -> Result<Vec<(String, DiskReport)>, Failure> {
        let running = self.vms().await?.into_iter();
        let running = running.filter(|vm| matches!(vm.status.phase, VmPhase::Running | VmPhase::Paused));
        let asked = running.map(|vm| async move {
            let (_, machine) = self.machine(&vm.id.to_string()).await.ok()?;
            let reports = tokio::time::timeout(REPORT_TIMEOUT, machine.disk_reports()).await;
            let reports = reports.ok()?.ok()?.into_iter();
            Some(reports.map(|report| (vm.spec.name.clone(), report)).collect::<Vec<_>>())
        });
        let told = futures_util::future::join_all(asked).await;
        Ok(told.into_iter().flatten().flatten().collect())
    }
}

impl Host {
    async fn store_figures(&self) -> Result<Vec<StoreFigures>, Failure> {
        let states = self.store_states().await?;
        let context = &self.0.context;
        let figures = states.into_iter().map(|state| {
            let root = context
                .stores
                .get(&state.name)
                .map(|store| store.settings().root.clone());
            // Who is away would not answer this either.
            let room = state.usage.and_then(|usage| {
                let (free_bytes, size_bytes) = limits::room(&root?).ok()?;
                Some(StoreRoom {
                    shares_root: state.shares_root.unwrap_or(false),
                    images: state.images.unwrap_or(0),
                    used_bytes: usage.images_bytes,
                    free_bytes,
                    size_bytes,
                })
            });
            let reflinks = context.reflinks_of(&state.name);
            // Its images are copied to the default store first.
            let is_slow = context.stores.get(&state.name).is_some_and(|store| self.is_slow(store));
            StoreFigures {
                name: state.name.to_string(),
                is_default: state.is_default,
                is_available: state.health == StoreHealth::Ready,
                // Of one that is away something else is told.
                is_complete: reflinks.is_some() || state.health != StoreHealth::Ready,
                clone_method: match context.clone_way(&state.name).0 {
                    CloneWay::Overlay if !is_slow => "overlay",
                    // Disks are in the state directory, as the default store is.
                    CloneWay::Reflink if state.is_default && reflinks == Some(true) => "reflink",
                    _ => "copy",
                },
                quota_bytes: state.quota_bytes,
                room,
            }
        });
        Ok(figures.collect())
    }
}

/// How long a machine process has to tell of its disks.
const REPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// Counted also where there is none, so that no line comes and goes.
const VM_PHASES: [VmPhase; 8] = [
    VmPhase::Stopped,
    VmPhase::Starting,
    VmPhase::Running,
    VmPhase::Paused,
    VmPhase::Stopping,
    VmPhase::Failed,
    VmPhase::Arriving,
    VmPhase::Departed,
];

/// Likewise.
const VOLUME_STATES: [VolumeState; 4] = [
    VolumeState::Creating,
    VolumeState::Ready,
    VolumeState::Failed,
    VolumeState::Deleting,
];
