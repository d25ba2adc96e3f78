//! What goes into the state driver and what comes out of it.

use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::time::Instant;

use chipset::{GuestRequest, PowerSink};
use control::{DepartVm, DiskChange, DiskReport, EndReport, Refusal, VmAction, VmEvent, VmStatus};
use migration::Dialer;
use spec::{MachineSpec, Name};

use crate::disks::JobNews;
use crate::files::MachineFiles;
use crate::moving::{Incoming, MoveOrder, Steer};

/// Whose request it was; comes back with the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// The connection it came from.
    pub connection: u64,
    /// The request's number on that connection.
    pub number: u64,
}

/// Everything that can happen to a machine.
pub enum Action {
    /// Become this machine.
    Create {
        /// Who asks.
        ticket: Ticket,
        /// What to build.
        machine: Box<MachineSpec>,
        /// What to build it from; a refusal where the files that came along were wrong, which ends the process like any other
        /// failed creation.
        files: Result<Box<MachineFiles>, Refusal>,
    },
    /// Any other request.
    Ask {
        /// Who asks.
        ticket: Ticket,
        /// For what.
        action: VmAction,
        /// When it arrived.
        at: Instant,
    },
    /// A change of a disk.
    Disk {
        /// Who asks.
        ticket: Ticket,
        /// Which disk.
        disk: Name,
        /// What is to become of it.
        change: DiskChange,
        /// The files that came along.
        files: Vec<OwnedFd>,
    },
    /// Save the machine.
    Save {
        /// Who asks.
        ticket: Ticket,
        /// Into which directory; none where none came along.
        directory: Option<OwnedFd>,
    },
    /// Move the machine away.
    Depart {
        /// Who asks.
        ticket: Ticket,
        /// How.
        depart: Box<DepartVm>,
        /// Opens streams to the target.
        dialer: Box<dyn Dialer + Send>,
    },
    /// Become a machine that comes from elsewhere.
    Arrive {
        /// Who asks.
        ticket: Ticket,
        /// What to build.
        machine: Box<MachineSpec>,
        /// What to build it from, and how it comes; a refusal as in [`Action::Create`].
        arrival: Result<(Box<MachineFiles>, Incoming), Refusal>,
    },
    /// A word to a move that is under way.
    Steer {
        /// Who asks.
        ticket: Ticket,
        /// What is asked for, as far as states go.
        action: VmAction,
        /// What.
        steer: Steer,
    },
    /// The thread of a move wants something.
    Move(MoveOrder),
    /// A job on a disk has something to say.
    DiskJob {
        /// The disk.
        disk: Name,
        /// What.
        news: JobNews,
    },
    /// The host wants the machine to end.
    Terminate {
        /// Why, for the report.
        message: String,
    },
    /// The guest, or a vCPU, did something.
    Guest {
        /// Which build of the machine it was; words of an earlier one mean nothing any more.
        generation: u32,
        /// What.
        event: GuestEvent,
    },
}

/// What comes from the inside of a machine.
#[derive(Debug, PartialEq, Eq)]
pub enum GuestEvent {
    /// The boot vCPU is about to enter the guest for the first time.
    FirstEntry {
        /// When.
        at: Instant,
    },
    /// The guest asked for a change of power.
    Request(GuestRequest),
    /// A vCPU faulted thrice.
    TripleFault {
        /// Which one, and its registers.
        message: String,
    },
    /// KVM could not run a vCPU on.
    VcpuFailed {
        /// Which one, why, and its registers.
        message: String,
    },
}

/// What a machine tells its process, in the order in which things happened.
#[derive(Debug)]
pub enum Notice {
    /// The answer to a request.
    Answer {
        /// To whom.
        ticket: Ticket,
        /// The status afterwards, or why not.
        answer: Result<VmStatus, Refusal>,
    },
    /// The answer to a request for reports of the disks.
    Disks {
        /// To whom.
        ticket: Ticket,
        /// One for each disk.
        disks: Vec<DiskReport>,
    },
    /// Something happened; everybody should know.
    Event(VmEvent),
    /// The status is this now.
    Status(VmStatus),
    /// The machine has ended, its threads are gone and its files closed. Nothing but answers comes after this.
    Ended(EndReport),
    /// There never was a machine, and there will be none.
    Abandoned,
}

/// Where a machine's notices go: a queue, and a call for those who wait elsewhere.
pub struct Outlet {
    queue: mpsc::Sender<Notice>,
    wake: Box<dyn Fn() + Send>,
}

impl Outlet {
    /// Into `queue`, calling `wake` each time.
    pub const fn new(queue: mpsc::Sender<Notice>, wake: Box<dyn Fn() + Send>) -> Self {
        Self { queue, wake }
    }

    pub(crate) fn send(&self, notice: Notice) {
        // Nobody listens only while the process is on its way out.
        let _ = self.queue.send(notice);
        (self.wake)();
    }
}

/// A way to tell the state driver of one build of the machine.
#[derive(Clone)]
pub struct Reporter {
    generation: u32,
    queue: mpsc::Sender<Action>,
}

impl Reporter {
    pub(crate) const fn new(generation: u32, queue: mpsc::Sender<Action>) -> Self {
        Self { generation, queue }
    }

    /// Tells of `event`. Never blocks.
    pub(crate) fn tell(&self, event: GuestEvent) {
        // The driver is gone only when the machine has ended, and then nobody wants to know.
        let _ = self.queue.send(Action::Guest {
            generation: self.generation,
            event,
        });
    }
}

impl PowerSink for Reporter {
    fn request(&self, request: GuestRequest) {
        self.tell(GuestEvent::Request(request));
    }
}
