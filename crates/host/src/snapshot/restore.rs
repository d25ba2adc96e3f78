//! A new machine that goes on from a snapshot.

use std::sync::Arc;

use api_types::{CloneMethod, ErrorCode, NetworkWish, RootDisk, SnapshotRestore, Vm};
use jiff::Timestamp;
use spec::{DiskFormat, Problems, VmId, VmPlan, VmSpec};

use super::{lost, ready};
use crate::context::Context;
use crate::create::{Unfinished, stands_still};
use crate::failure::Failure;
use crate::host::Host;
use crate::machine::{self, Machine, Memory};
use crate::registry::{OperationRecord, SnapshotRow};
use crate::snapshot_files;
use crate::volume::check_disks;
use crate::volume_store::{check_name, failure};

const REFUSED: &str = "the snapshot can not be restored as it is asked for";

impl Host {
    /// Makes a machine that goes on from a snapshot at its first start, and begins that unless it is to be left stopped.
    pub async fn restore_snapshot(
        &self,
        name_or_id: &str,
        wish: SnapshotRestore,
    ) -> Result<(Vm, Option<OperationRecord>), Failure> {
        let _image_stays = self.0.images.read().await;
        let wanted = name_or_id.to_owned();
        let row = self.registry().change(move |change| ready(change, &wanted)).await?;
        let spec = spec_of(&row, &wish)?;
        let context = &self.0.context;
        let refused = |problems| Failure::refused(REFUSED, &problems);
        let plan = VmPlan::new(&spec, &context.limits).map_err(refused)?;
        let _name = self.reserve(&spec.name).await?;
        let checked = spec.clone();
        self.registry()
            .change(move |change| check_disks(change, &checked, None))
            .await?;
        self.check_space(0).await?;
        let (id, probed) = (VmId::random(), Arc::clone(context));
        let memory = if wish.eager { Memory::Read } else { Memory::Mapped };
        let filled = row.clone();
        let made = tokio::task::spawn_blocking(move || -> Result<_, Failure> {
            machine::probe(&probed, &plan).map_err(|problems| Failure::refused(REFUSED, &problems))?;
            let unfinished = Unfinished::make(&probed, id)?;
            fill(&probed, id, &filled, memory)?;
            Ok(unfinished)
        });
        let directory = made.await.map_err(|_| lost())??;
        let vm = Vm {
            id,
            image_digest: spec.image.as_ref().and(row.snapshot.image_digest.clone()),
            status: stands_still(spec.image.as_ref().map(|_| root_of(&row))),
            spec,
            conditions: Vec::new(),
            created_at: Timestamp::now(),
            revision: 1,
        };
        self.record(&vm, Vec::new()).await?;
        directory.keep();
        let machine = Machine::supervise(context, vm.clone());
        self.lock_machines().insert(id, machine.clone());
        if wish.stopped {
            return Ok((vm, None));
        }
        let operation = machine.start(None).await?;
        Ok((self.vm(&id.to_string()).await?, Some(operation)))
    }
}

/// What the new machine is made of: the same, under another name and on other networks.
fn spec_of(row: &SnapshotRow, wish: &SnapshotRestore) -> Result<VmSpec, Failure> {
    let mut problems = Problems::new();
    check_name::<VmId>(&wish.name, &mut problems);
    let had = &row.snapshot.spec.networks;
    let has = wish.networks.clone().unwrap_or_default();
    let pairs = |wish: &NetworkWish| wish.queue_pairs.unwrap_or(1);
    if !had.iter().map(pairs).eq(has.iter().map(pairs)) {
        let had: Vec<_> = had.iter().map(|wish| format!("queue_pairs {}", pairs(wish))).collect();
        problems.add(
            "networks",
            format_args!(
                "the saved machine had {} interfaces [{}]: name as many, with other taps",
                had.len(),
                had.join(", ")
            ),
        );
    }
    problems
        .into_result(())
        .map_err(|problems| Failure::refused(REFUSED, &problems))?;
    Ok(VmSpec {
        name: wish.name.clone(),
        networks: has,
        ..row.snapshot.spec.clone()
    })
}

/// Fills the directory of a new machine. Blocks.
fn fill(context: &Context, id: VmId, row: &SnapshotRow, memory: Memory) -> Result<(), Failure> {
    let (from, to) = (snapshot_files::directory(context, row.id()), context.vm_dir(id));
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => Failure::new(
            ErrorCode::NotFound,
            format!(
                "snapshot {} was deleted, or has lost files, just now: {error}",
                row.name()
            ),
        ),
        _ => failure("be filled", &to, &error),
    };
    machine::share_frozen(&from, &to).map_err(failed)?;
    if row.snapshot.spec.image.is_some() {
        machine::make_root_over(context, id, row.id())?;
    }
    snapshot_files::share_boot(&from.join("boot"), &context.boot_dir(id)).map_err(failed)?;
    machine::keep_memory(context, id, &from, memory).map_err(failed)
}

fn root_of(row: &SnapshotRow) -> RootDisk {
    RootDisk {
        method: CloneMethod::Overlay,
        reason: format!("it goes on from the disk of snapshot {}", row.name()),
        format: DiskFormat::Qcow2,
        stands_alone: row.stands_alone,
        store: row.store.clone(),
    }
}
