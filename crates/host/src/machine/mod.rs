//! Supervision: one task per machine, which alone decides what happens to it.
//!
//! A [`Machine`] is a handle that posts orders to the task and waits for its word. The task waits for orders, for its
//! machine process and for the clock, hands what comes to [`lifecycle::Lifecycle`], and carries out the effects. Every
//! change of a machine's record goes through its task, so that a revision that was compared stays the same until the change
//! is written.

mod adopt;
mod arrive;
mod boot;
mod disks;
mod files;
mod files_error;
mod image_lock;
mod launch;
mod lifecycle;
mod link;
mod process;
mod read;
mod resumption;
mod root;
mod run_dir;
mod save;
mod task;
mod verified;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api_types::{ErrorCode, Vm};
use control::{DiskChange, DiskReport, VmRequest};
use spec::{Name, OperationId, VmId, VmSpec};
use tokio::sync::{mpsc, oneshot};
use tracing::Instrument;

pub(crate) use adopt::{clear_strays, run_dirs};
pub(crate) use arrive::{Arrival, LaterLock, ROOT_STAYS, Received, check as check_arrival, leaving};
pub(crate) use boot::{boot_parts, keep_boot, put_boot, rebase_root};
pub(crate) use disks::open_one;
pub(crate) use files::probe;
pub(crate) use read::{Standing, read};
pub(crate) use resumption::{Memory, keep_memory};
pub(crate) use root::{begin_freeze, end_freeze, has_frozen, make_root_over, share_frozen};
pub(crate) use run_dir::RunDir;

use crate::context::Context;
use crate::failure::Failure;
use crate::registry::{Change, OperationRecord};
use task::{HeldStep, MoveOrder, Task};

/// Orders a machine's task takes in before senders wait.
const ORDERS_QUEUED: usize = 64;

/// Where a task puts its answer.
type Reply<T> = oneshot::Sender<Result<T, Failure>>;

/// What a machine is to be made of from now on, decided in the transaction that writes it down.
pub(crate) type Edit = Box<dyn FnOnce(&Change<'_>, &Vm) -> Result<VmSpec, Failure> + Send>;

/// What is ordered.
enum Order {
    Start {
        asked_at: Instant,
        reply: Reply<OperationRecord>,
    },
    Stop {
        force: bool,
        timeout: Duration,
        reply: Reply<OperationRecord>,
    },
    Act {
        action: Action,
        reply: Reply<()>,
    },
    Disk {
        change: DiskOrder,
        reply: Reply<()>,
    },
    DiskReports {
        reply: Reply<Vec<DiskReport>>,
    },
    /// For a move.
    Steer {
        order: MoveOrder,
        reply: Reply<()>,
    },
    /// The source of a move has said whose the machine is.
    SettleArrival {
        is_ours: bool,
        reply: Reply<()>,
    },
    Cancel(OperationId),
    Edit {
        edit: Edit,
        /// For a machine that runs, in a way its process was told of.
        live: bool,
        reply: Reply<()>,
    },
    /// Nobody else may change it until it is released; answers whether it runs.
    Hold {
        reply: Reply<bool>,
    },
    /// Of who holds it.
    Held {
        step: HeldStep,
        reply: Reply<()>,
    },
    Release,
    /// Its root disk needs nothing of its image any more.
    StandsAlone {
        reply: Reply<()>,
    },
    Delete {
        reply: Reply<()>,
    },
}

/// A change to a disk of a machine that has a process.
struct DiskOrder {
    disk: Name,
    change: DiskChange,
    /// The files that belong to it.
    fds: Vec<OwnedFd>,
}

/// What a process can be told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Stop the vCPUs, keep the memory.
    Pause,
    /// Let them go on.
    Resume,
    /// Power-cycle the guest.
    Reset,
}

/// An order, and the only revision of the record at which it is meant to be carried out.
struct Conditional {
    order: Order,
    revision: Option<u64>,
}

/// A machine's task, from outside. Clones talk to the same one.
#[derive(Clone)]
pub(crate) struct Machine(mpsc::Sender<Conditional>);

impl Machine {
    /// Starts the task of a machine whose record exists. It finds out by itself whether there is a process.
    pub(crate) fn supervise(context: &Arc<Context>, vm: Vm) -> Self {
        let (sender, orders) = mpsc::channel(ORDERS_QUEUED);
        let machine = Self(sender);
        // Of the highest level, so that no filter takes the name from a line.
        let span = tracing::error_span!("machine", vm = vm.spec.name, id = %vm.id);
        // A weak handle: the task ends when everybody has let go of the machine.
        let task = Task::new(Arc::clone(context), vm, orders, machine.0.downgrade());
        tokio::spawn(task.run().instrument(span));
        machine
    }

    /// Starts the task of a machine that comes from elsewhere, whose record exists; its process is told to wait for it. What is
    /// returned with it tells when that does.
    pub(crate) fn receive(context: &Arc<Context>, vm: Vm, arrival: Arrival) -> (Self, oneshot::Receiver<Received>) {
        let (sender, orders) = mpsc::channel(ORDERS_QUEUED);
        let machine = Self(sender);
        let span = tracing::error_span!("machine", vm = vm.spec.name, id = %vm.id);
        let (reply, received) = oneshot::channel();
        let building = arrive::receive(Arc::clone(context), vm.clone(), arrival, reply);
        let task = Task::new(Arc::clone(context), vm, orders, machine.0.downgrade());
        tokio::spawn(task.receive(Box::pin(building)).run().instrument(span));
        (machine, received)
    }

    /// Asks its process something because of a move; returns when that has answered.
    pub(crate) async fn steer(&self, request: VmRequest, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        let order = MoveOrder { request, fds };
        self.order(None, |reply| Order::Steer { order, reply }).await
    }

    /// Whose the machine is that was on its way here, as its source says. One that is not ours goes, with all that is kept of it.
    pub(crate) async fn settle_arrival(&self, is_ours: bool) -> Result<(), Failure> {
        self.order(None, |reply| Order::SettleArrival { is_ours, reply }).await
    }

    /// Begins to start it.
    pub(crate) async fn start(&self, revision: Option<u64>) -> Result<OperationRecord, Failure> {
        let asked_at = Instant::now();
        self.order(revision, |reply| Order::Start { asked_at, reply }).await
    }

    /// Begins to stop it.
    pub(crate) async fn stop(
        &self,
        revision: Option<u64>,
        force: bool,
        timeout: Duration,
    ) -> Result<OperationRecord, Failure> {
        self.order(revision, |reply| Order::Stop { force, timeout, reply })
            .await
    }

    /// Does it, and returns when it is done.
    pub(crate) async fn act(&self, revision: Option<u64>, action: Action) -> Result<(), Failure> {
        self.order(revision, |reply| Order::Act { action, reply }).await
    }

    /// Makes the disk called `disk` of a machine that runs or is paused larger; returns when the guest was told.
    pub(crate) async fn resize_disk(&self, disk: Name, size_bytes: u64) -> Result<(), Failure> {
        let change = DiskChange::Resize { size_bytes };
        self.change_disk(None, disk, change, Vec::new()).await
    }

    /// Changes a disk of a machine that runs or is paused, or brings or takes one; returns when that is done.
    pub(crate) async fn change_disk(
        &self,
        revision: Option<u64>,
        disk: Name,
        change: DiskChange,
        fds: Vec<OwnedFd>,
    ) -> Result<(), Failure> {
        let change = DiskOrder { disk, change, fds };
        self.order(revision, |reply| Order::Disk { change, reply }).await
    }

    /// What the disks of a machine that runs or is paused are and did.
    pub(crate) async fn disk_reports(&self) -> Result<Vec<DiskReport>, Failure> {
        self.order(None, |reply| Order::DiskReports { reply }).await
    }

    /// Changes the specification of a machine that has no process; the next start goes by it.
    pub(crate) async fn edit(&self, revision: Option<u64>, edit: Edit) -> Result<(), Failure> {
        let live = false;
        self.order(revision, |reply| Order::Edit { edit, live, reply }).await
    }

    /// Writes down what is about to be changed of a machine that runs or is paused.
    pub(crate) async fn edit_live(&self, revision: Option<u64>, edit: Edit) -> Result<(), Failure> {
        let live = true;
        self.order(revision, |reply| Order::Edit { edit, live, reply }).await
    }

    /// Writes down what was changed of a machine that ran; it may have ended since.
    pub(crate) async fn note_edit(&self, edit: impl Fn() -> Edit) -> Result<(), Failure> {
        match self.edit_live(None, edit()).await {
            Err(failure) if failure.code == ErrorCode::WrongState => self.edit(None, edit()).await,
            noted => noted,
        }
    }

    /// Writes down that its root disk needs nothing of its image any more.
    pub(crate) async fn stands_alone(&self) -> Result<(), Failure> {
        self.order(None, |reply| Order::StandsAlone { reply }).await
    }

    /// Keeps everybody else from changing it until what is returned is dropped.
    pub(crate) async fn hold(&self) -> Result<Held, Failure> {
        let runs = self.order(None, |reply| Order::Hold { reply }).await?;
        let machine = self.clone();
        Ok(Held { machine, runs })
    }

    /// Removes its record and everything that is kept of it; the task ends.
    pub(crate) async fn delete(&self, revision: Option<u64>) -> Result<(), Failure> {
        self.order(revision, |reply| Order::Delete { reply }).await
    }

    /// Asks for an operation to be given up.
    pub(crate) fn cancel(&self, operation: OperationId) {
        let conditional = Conditional {
            order: Order::Cancel(operation),
            revision: None,
        };
        if self.0.try_send(conditional).is_err() {
            tracing::warn!(%operation, "machine is too busy to cancel an operation");
        }
    }

    async fn order<T>(&self, revision: Option<u64>, order: impl FnOnce(Reply<T>) -> Order) -> Result<T, Failure> {
        let (reply, answer) = oneshot::channel();
        let order = order(reply);
        let gone = || Failure::new(ErrorCode::NotFound, "the machine was deleted just now");
        self.0.send(Conditional { order, revision }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// A machine that is held: it runs or is paused, and only whoever has this changes it.
pub(crate) struct Held {
    machine: Machine,
    /// It ran.
    pub(crate) runs: bool,
}

impl Held {
    /// Stops its vCPUs.
    pub(crate) async fn pause(&self) -> Result<(), Failure> {
        self.step(HeldStep::Pause).await
    }

    /// Lets them go on.
    pub(crate) async fn resume(&self) -> Result<(), Failure> {
        self.step(HeldStep::Resume).await
    }

    /// Saves it, paused, into a directory; returns when all of it is durable.
    pub(crate) async fn save(&self, directory: OwnedFd) -> Result<(), Failure> {
        self.step(HeldStep::Save(directory)).await
    }

    /// Changes one of its disks.
    pub(crate) async fn change_disk(&self, disk: Name, change: DiskChange, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        self.step(HeldStep::Disk(DiskOrder { disk, change, fds })).await
    }

    async fn step(&self, step: HeldStep) -> Result<(), Failure> {
        self.machine.order(None, |reply| Order::Held { step, reply }).await
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let sender = self.machine.0.clone();
        let release = Conditional {
            order: Order::Release,
            revision: None,
        };
        // Orders may be queued up to the limit; this one must come through.
        if let Err(mpsc::error::TrySendError::Full(release)) = sender.try_send(release) {
            tokio::spawn(async move { sender.send(release).await });
        }
    }
}

/// What a machine is called in texts: its id alone says nothing to people.
fn about(vm: &Vm) -> (VmId, String) {
    (vm.id, vm.spec.name.clone())
}
