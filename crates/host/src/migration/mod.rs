//! Moves of running machines between hosts: the daemons' half. Each host has a daemon; the source's drives.
//!
//! ```text
//!              its turn            the target has room          both processes agree
//!   Pending ──────────▶ Scheduling ──────────▶ PreparingTarget ──────────▶ TargetReady
//!      │                    │                        │                          │ memory moves
//!      │                    │                        │                          ▼
//!      │                    │                        │                       Running ── the target has it ──▶ Succeeded
//!      └────────────────────┴────────────────────────┴──────────────────────────┴──▶ Failed | Cancelled
//! ```
//!
//! | at | the source has | the target has |
//! |---|---|---|
//! | *Pending* | a record | nothing |
//! | *Scheduling* | a turn | looked, and refused with all reasons or made a record, a listener and a process |
//! | *PreparingTarget*, *TargetReady*, *Running* | a machine | a record in phase `Arriving` that nobody but the source's ledger can start |
//! | *Succeeded* | nothing but the record of the move | a machine |
//! | *Failed*, *Cancelled* | a machine | nothing but the record of the move |
//!
//! Where the machine is decides the ledger of the source (`docs/adr/0012-the-source-decides-where-a-machine-is.md`): a row of the registry
//! that is written once. A daemon that is started writes *stayed* for each move that an earlier one was at, before it looks at any
//! machine; what had departed by then is followed to its end. A target that does not know asks the source, also after a restart.

mod arrive;
mod condition;
mod depart;
mod facts;
mod identity;
mod preflight;

use api_types::{
    DiskWay, ErrorCode, EventReason, MigrationMethod, MigrationPatch, MigrationPhase, MigrationWish, MovingDisk,
    VmPhase,
};
use control::{MigrationKey, VmRequest};
use jiff::Timestamp;
use spec::MigrationId;

use crate::MigrationConfig;
use crate::failure::Failure;
use crate::host::Host;
use crate::left_moves::LeftMoves;
use crate::moves::{ArrivalRecord, MigrationRecord, settle};
use crate::registry::{About, Change, RegistryError};

impl Host {
    /// Goes on with the moves that an earlier daemon was at.
    pub(crate) fn resume_moves(&self, left: LeftMoves) {
        for (record, news) in left.departures {
            tokio::spawn(depart::resume(self.clone(), record, news));
        }
        for (record, news) in left.arrivals {
            tokio::spawn(arrive::resume(self.clone(), record, news));
        }
    }

    /// Begins to move a machine.
    pub async fn begin_migration(&self, wish: MigrationWish) -> Result<MigrationRecord, Failure> {
        let config = &self.0.context.config.migration;
        let (_, machine) = self.machine(&wish.vm).await?;
        let vm = self.vm(&wish.vm).await?;
        let remote = config.hosts.get(&wish.target).cloned();
        let remote = remote.ok_or_else(|| unknown_host(config, &wish.target))?;
        let options = settle(&wish.options, &config.defaults)?;
        if !matches!(vm.status.phase, VmPhase::Running | VmPhase::Paused) {
            let text = format!(
                "machine {} is {:?}: only one that runs or is paused can be moved",
                vm.spec.name, vm.status.phase
            );
            return Err(Failure::new(ErrorCode::WrongState, text));
        }
        let disks = self.check_departure(&vm).await?;
        let record = MigrationRecord {
            key: identity::key(),
            vm: vm.id,
            vm_name: vm.spec.name.clone(),
            target: wish.target,
            phase: MigrationPhase::Pending,
            method: method(&disks),
            options,
            target_address: None,
            target_vm_detected: false,
            progress: None,
            failure: None,
            created_at: Timestamp::now(),
            started_at: None,
            ended_at: None,
        };
        let row = record.clone();
        self.registry()
            .change(move |change| note_departure(change, &row))
            .await?;
        let news = self.0.context.moves.follow(record.vm, record.key);
        let cancel = self.0.context.moves.begin(record.key.id);
        let departure = depart::Departure {
            host: self.clone(),
            record: record.clone(),
            machine,
            remote,
            vm,
            disks,
            news,
            cancel,
        };
        tokio::spawn(departure.run());
        Ok(record)
    }

    /// Moves away from here that are remembered, newest first.
    pub async fn migrations(&self) -> Result<Vec<MigrationRecord>, Failure> {
        let found = self
            .registry()
            .change(|change| -> Result<Vec<MigrationRecord>, RegistryError> { change.moves() });
        let mut records = found.await.map_err(|error: RegistryError| Failure::from(error))?;
        records.iter_mut().for_each(|record| self.add_figures(record));
        Ok(records)
    }

    /// One of them.
    pub async fn migration(&self, id: MigrationId) -> Result<MigrationRecord, Failure> {
        let found = self
            .registry()
            .change(move |change| change.find_move::<MigrationRecord>(id));
        let found = found.await.map_err(|error: RegistryError| Failure::from(error))?;
        let mut record = found.ok_or_else(|| unknown(id))?;
        self.add_figures(&mut record);
        Ok(record)
    }

    fn add_figures(&self, record: &mut MigrationRecord) {
        if let Some(figures) = self.0.context.moves.figures(record.key.id) {
            record.progress = Some(figures);
        }
    }

    /// Asks for a move to be given up, and returns it; or forgets one that is over, and returns nothing.
    pub async fn cancel_migration(&self, id: MigrationId) -> Result<Option<MigrationRecord>, Failure> {
        let record = self.migration(id).await?;
        if record.phase.is_final() {
            let forgotten = self
                .registry()
                .change(move |change| change.delete_move::<MigrationRecord>(id));
            forgotten.await.map_err(|error: RegistryError| Failure::from(error))?;
            return Ok(None);
        }
        let key = record.key;
        let decided = self.registry().change(move |change| change.decision(&key));
        if decided.await.map_err(|error: RegistryError| Failure::from(error))? == Some(true) {
            let text = format!(
                "machine {} has left for {} and can not be called back; move it back when it is there",
                record.vm_name, record.target
            );
            return Err(Failure::new(ErrorCode::WrongState, text));
        }
        self.0.context.moves.cancel(id);
        Ok(Some(record))
    }

    /// Gives a move that is under way another bandwidth.
    pub async fn tune_migration(&self, id: MigrationId, patch: MigrationPatch) -> Result<MigrationRecord, Failure> {
        let record = self.migration(id).await?;
        let bandwidth_bytes_per_s = patch.bandwidth_per_migration.bytes();
        let (_, machine) = self.machine(&record.vm.to_string()).await?;
        if !matches!(record.phase, MigrationPhase::TargetReady | MigrationPhase::Running) {
            let text = format!(
                "migration {id} is {:?}: only while memory moves its bandwidth is changed",
                record.phase
            );
            return Err(Failure::new(ErrorCode::WrongState, text));
        }
        machine
            .steer(VmRequest::DepartTune { bandwidth_bytes_per_s }, Vec::new())
            .await?;
        let changed = self.registry().change(move |change| -> Result<_, RegistryError> {
            let Some(mut record) = change.find_move::<MigrationRecord>(id)? else {
                return Ok(None);
            };
            record.options.bandwidth_per_migration = Some(patch.bandwidth_per_migration);
            change.update_move(&record)?;
            Ok(Some(record))
        });
        changed.await?.ok_or_else(|| unknown(id))
    }

    /// The ledger, for the target of a move: writes that the machine stays, unless it has departed; returns whether it has.
    pub async fn decide_migration(&self, id: MigrationId, token: u64) -> Result<bool, Failure> {
        let key = MigrationKey { id, token };
        let decided = self.registry().change(move |change| change.decide(&key, None, false));
        decided.await.map_err(|error: RegistryError| Failure::from(error))
    }
}

fn method(disks: &[MovingDisk]) -> MigrationMethod {
    if disks.iter().any(|disk| disk.how == DiskWay::Mirrored) {
        MigrationMethod::BlockMigration
    } else {
        MigrationMethod::LiveMigration
    }
}

fn unknown(id: MigrationId) -> Failure {
    Failure::new(ErrorCode::NotFound, format!("no migration {id} is remembered"))
}

fn tell(change: &Change<'_>, id: MigrationId, vm: &str, text: &str) -> Result<(), RegistryError> {
    change.event(&About::Migration(id, vm), EventReason::MigrationChanged, text)
}

/// Unless the machine is on its way already.
fn note_departure(change: &Change<'_>, row: &MigrationRecord) -> Result<(), Failure> {
    let arrivals = change.moves::<ArrivalRecord>()?;
    if arrivals
        .iter()
        .any(|arrival| arrival.vm == row.vm && !arrival.phase.is_final())
    {
        let text = format!(
            "machine {} is not wholly here yet; ask again when its own move is over",
            row.vm_name
        );
        return Err(Failure::new(ErrorCode::InUse, text));
    }
    change.insert_move(row).map_err(|error| {
        if error.is_conflict() {
            let text = format!(
                "machine {} is being moved already; cancel that migration first",
                row.vm_name
            );
            Failure::new(ErrorCode::InUse, text)
        } else {
            error.into()
        }
    })?;
    Ok(tell(
        change,
        row.key.id,
        &row.vm_name,
        &format!("machine {} is to move to {}", row.vm_name, row.target),
    )?)
}

fn unknown_host(config: &MigrationConfig, target: &str) -> Failure {
    let known: Vec<_> = config.hosts.keys().map(String::as_str).collect();
    let text = format!(
        "no host {target:?} is configured ([hosts]); there are: {}",
        known.join(", ")
    );
    Failure::refused_field("the machine can not be moved like this", "target", text)
}
