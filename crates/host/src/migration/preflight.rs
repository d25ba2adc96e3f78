//! Whether a machine fits: what both hosts look at before anything is begun. All reasons against it are told at once.

use std::sync::Arc;

use api_types::{ErrorCode, IncomingMigrationWish, Vm, VmPhase, VmStatus};
use jiff::Timestamp;
use spec::{Problems, VmPlan};

use super::facts;
use crate::context::Context;
use crate::failure::{Failure, chain};
use crate::host::Host;
use crate::machine;

/// How far two hosts' clocks may be apart, seconds; what the request took on its way counts.
const CLOCK_SKEW_MAX_S: i64 = 5;
/// What a machine takes besides its guest's memory: page tables, queues, buffers. Bytes.
const OVERHEAD_BYTES: u64 = 64 << 20;

impl Host {
    /// Whether a machine of another host can come here.
    pub(super) async fn check_arrival(&self, wish: &IncomingMigrationWish) -> Result<(), Failure> {
        let mut problems = Problems::new();
        self.check_names(wish, &mut problems).await?;
        if let Err(error) = self.source_of(wish) {
            problems.add("source_url", error.detail);
        } else if let Err(error) = self.source_of(wish)?.health().await {
            let text = format!("this host can not ask the source's daemon: {}", chain(&error));
            problems.add("source_url", text);
        }
        let skew = wish.clock.as_second().saturating_sub(Timestamp::now().as_second());
        if skew.abs() > CLOCK_SKEW_MAX_S {
            let text = format!("the clocks of the hosts are {} s apart; synchronise them", skew.abs());
            problems.add("clock", text);
        }
        let version = env!("CARGO_PKG_VERSION");
        if !facts::understands(version, &wish.version) {
            let text = format!(
                "the source has karatd {}, this host {version}; renew this one first",
                wish.version
            );
            problems.add("version", text);
        }
        self.check_secrecy(wish, &mut problems);
        let (context, asked) = (Arc::clone(&self.0.context), wish.clone());
        let looked = tokio::task::spawn_blocking(move || look(&context, &asked, problems)).await;
        let problems = looked.map_err(|_| Failure::new(ErrorCode::Internal, "the work was lost"))?;
        problems.into_result(()).map_err(|problems| Failure {
            code: ErrorCode::WrongState,
            detail: format!("machine {} can not come to this host: {problems}", wish.vm.spec.name),
            problems: problems.list().to_vec(),
        })
    }

    async fn check_names(&self, wish: &IncomingMigrationWish, problems: &mut Problems) -> Result<(), Failure> {
        let (id, name) = (wish.vm.id.to_string(), wish.vm.spec.name.clone());
        let wanted = name.clone();
        let found = self.registry().change(move |change| -> Result<_, Failure> {
            let named = change.vm(&wanted)?.is_some();
            Ok((named, change.vm(&id)?.is_some()))
        });
        let (named, same) = found.await?;
        if same {
            problems.add(
                "vm.id",
                "the machine itself is on this host; delete what is left of it first",
            );
        } else if named {
            problems.add(
                "vm.name",
                format_args!("there is a machine {name:?} on this host already"),
            );
        }
        Ok(())
    }

    fn check_secrecy(&self, wish: &IncomingMigrationWish, problems: &mut Problems) {
        if wish.certificate.is_none() != self.0.context.config.migration.plain {
            let text = "one host wants memory to be sent as it is, the other one does not (migration.plain)";
            problems.add("certificate", text);
        }
    }

    /// Whether a machine can leave, and what becomes of its disks.
    pub(super) async fn check_departure(&self, vm: &Vm) -> Result<Vec<api_types::MovingDisk>, Failure> {
        let (context, vm) = (Arc::clone(&self.0.context), vm.clone());
        let looked = tokio::task::spawn_blocking(move || {
            let plan = VmPlan::new(&vm.spec, &context.limits)?;
            machine::leaving(&context, &plan)
        });
        let looked = looked
            .await
            .map_err(|_| Failure::new(ErrorCode::Internal, "the work was lost"))?;
        looked.map_err(|problems| Failure {
            code: ErrorCode::WrongState,
            detail: format!("the machine can not be moved: {problems}"),
            problems: problems.list().to_vec(),
        })
    }
}

/// What has to be looked for on this host. Blocks.
fn look(context: &Context, wish: &IncomingMigrationWish, mut problems: Problems) -> Problems {
    match facts::cpu() {
        Ok(here) => {
            if let Some(text) = facts::compare(&wish.cpu, &here) {
                problems.add("cpu", text);
            }
        }
        Err(error) => problems.add(
            "cpu",
            format_args!("the processors of this host can not be read: {error}"),
        ),
    }
    let plan = match VmPlan::new(&wish.vm.spec, &context.limits) {
        Ok(plan) => plan,
        Err(found) => {
            for problem in found.list() {
                problems.add(problem.field.clone(), &problem.message);
            }
            return problems;
        }
    };
    for problem in machine::check_arrival(context, &plan, &wish.disks).list() {
        problems.add(problem.field.clone(), &problem.message);
    }
    check_memory(context, &plan, &mut problems);
    problems
}

fn check_memory(context: &Context, plan: &VmPlan, problems: &mut Problems) {
    let pages = plan.memory.hugepages;
    let wanted = match pages {
        Some(_) => plan.memory.size_bytes,
        None => plan.memory.size_bytes.saturating_add(OVERHEAD_BYTES),
    };
    // What machines that are on their way here will take is not taken yet.
    let promised = context
        .registry
        .change_now(|change| -> Result<u64, crate::registry::RegistryError> {
            let arriving = change.vms()?.into_iter();
            let arriving = arriving.filter(|vm| vm.status.phase == VmPhase::Arriving);
            Ok(arriving.map(|vm| vm.spec.memory.bytes()).fold(0, u64::saturating_add))
        });
    match (facts::available_bytes(pages), promised) {
        (Some(available), Ok(promised)) if available.saturating_sub(promised) >= wanted => {}
        (Some(available), Ok(promised)) => {
            let free = available.saturating_sub(promised) >> 20;
            problems.add(
                "memory",
                format_args!("the machine takes {}Mi, this host has {free}Mi left", wanted >> 20),
            );
        }
        (None, _) => problems.add("memory", "this host's memory can not be read"),
        (_, Err(error)) => problems.add("memory", chain(&error)),
    }
}

/// How a machine is while it is on its way.
pub(super) fn arriving() -> VmStatus {
    VmStatus {
        phase: VmPhase::Arriving,
        reason: None,
        message: None,
        pid: None,
        started_at: None,
        start_to_guest_us: None,
        resets: 0,
        clone_method: None,
        root_disk: None,
    }
}
