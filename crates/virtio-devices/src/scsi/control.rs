//! The control and the event queue being served, by one worker (virtio 1.2 §5.6.6.2, §5.6.6.3).

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use uring::{Bell, First, Ring, race};
use virtio::{Chain, RingError, Scatter, VirtQueue};

use super::address::Address;
use super::config::{CONTROL_QUEUE, EVENT_SIZE};
use super::counters::ScsiCounters;
use super::request::Code;
use super::task::{Scope, Ticket, Verdict};
use super::unit::Attention;
use super::worker::Shared;
use crate::crew::{Served, Service};

/// How long a function waits for commands that the disk does not finish, before it is answered with a failure. Picked: drivers
/// give commands 30 seconds, and functions no limit at all.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes of a task management request: type, function, address, tag.
const MANAGEMENT_SIZE: usize = 24;
/// Bytes of a query for, or subscription to, notifications: type, address, events.
const NOTIFICATION_SIZE: usize = 16;

/// Functions, by number.
mod function {
    pub(super) const ABORT_TASK: u32 = 0;
    pub(super) const ABORT_TASK_SET: u32 = 1;
    pub(super) const CLEAR_TASK_SET: u32 = 3;
    pub(super) const I_T_NEXUS_RESET: u32 = 4;
    pub(super) const LOGICAL_UNIT_RESET: u32 = 5;
    pub(super) const QUERY_TASK: u32 = 6;
    pub(super) const QUERY_TASK_SET: u32 = 7;
}

/// What a driver asks on the control queue.
enum Ask {
    Manage {
        function: u32,
        address: [u8; 8],
        tag: u64,
    },
    /// There are no notifications: none are asked for in vain.
    Notify,
    Unknown,
}

struct Request {
    head: u16,
    ask: Ask,
    answer: Scatter,
}

impl Request {
    fn parse(chain: &Chain, memory: &guestmem::GuestMemory) -> Result<Self, RingError> {
        let bad = |why| RingError::BadChain { head: chain.head, why };
        let (out, answer) = (chain.readable(memory)?, chain.writable(memory)?);
        let mut bytes = [0; MANAGEMENT_SIZE];
        let size = out.copy_to(&mut bytes);
        let [k0, k1, k2, k3, f0, f1, f2, f3, rest @ ..] = bytes;
        let [a0, a1, a2, a3, a4, a5, a6, a7, tag @ ..] = rest;
        let (ask, needed, room) = match u32::from_le_bytes([k0, k1, k2, k3]) {
            0 => {
                let ask = Ask::Manage {
                    function: u32::from_le_bytes([f0, f1, f2, f3]),
                    address: [a0, a1, a2, a3, a4, a5, a6, a7],
                    tag: u64::from_le_bytes(tag),
                };
                (ask, MANAGEMENT_SIZE, 1)
            }
            1 | 2 => (Ask::Notify, NOTIFICATION_SIZE, 5),
            _ => (Ask::Unknown, 4, 1),
        };
        if size < needed {
            return Err(bad("has no whole control request"));
        }
        if answer.len() < room {
            return Err(bad("has no room for a response"));
        }
        let head = chain.head;
        Ok(Self { head, ask, answer })
    }
}

/// What functions in flight need.
struct Desk {
    control: RefCell<Option<Served>>,
    in_flight: Cell<usize>,
    bell: Bell,
    ring: Ring,
    shared: Arc<Shared>,
}

/// A [`Service`] for the queues that are not for commands. A driver may leave out either.
pub(super) struct Steward {
    desk: Rc<Desk>,
    events: Option<Served>,
}

impl Steward {
    pub(super) fn new(queues: Vec<VirtQueue>, shared: Arc<Shared>, ring: Ring, bell: Bell) -> Self {
        let (mut control, mut events) = (None, None);
        for queue in queues {
            let place = if queue.index() == CONTROL_QUEUE {
                &mut control
            } else {
                &mut events
            };
            *place = Some(Served::new(queue));
        }
        let desk = Rc::new(Desk {
            control: RefCell::new(control),
            in_flight: Cell::new(0),
            bell,
            ring,
            shared,
        });
        Self { desk, events }
    }

    fn fetch(&self) {
        let mut control = self.desk.control.borrow_mut();
        let Some(control) = &mut *control else { return };
        let limit = usize::from(control.queue().size());
        while self.desk.in_flight.get() < limit {
            let request = control.with(|queue| {
                let Some(chain) = queue.pop()? else { return Ok(None) };
                Request::parse(&chain, queue.memory()).map(Some)
            });
            match request {
                Some(Some(request)) => {
                    self.desk.in_flight.set(self.desk.in_flight.get() + 1);
                    let _running = self.desk.ring.spawn(answer(Rc::clone(&self.desk), request));
                }
                Some(None) => {
                    if control.with(VirtQueue::arm) == Some(true) {
                        self.desk.bell.ring();
                    }
                    break;
                }
                None => break,
            }
        }
    }

    /// Tells what there is to tell, as long as the driver has room.
    fn tell(&mut self) {
        let Some(events) = &mut self.events else { return };
        let shared = &self.desk.shared;
        // Bounded: nothing is added as fast as it is told.
        while !shared.events.is_empty() {
            let told = events.with(|queue| {
                let Some(chain) = queue.pop()? else { return Ok(false) };
                let mut room = chain.writable(queue.memory())?;
                if room.len() < EVENT_SIZE {
                    let why = "has no room for an event";
                    return Err(RingError::BadChain { head: chain.head, why });
                }
                let Some(event) = shared.events.take() else {
                    queue.unpop();
                    return Ok(false);
                };
                let written = room.copy_from(&event);
                queue.push(chain.head, u32::try_from(written).unwrap_or(0))?;
                ScsiCounters::count(&shared.counters.events);
                Ok(true)
            });
            if told != Some(true) {
                if events.with(VirtQueue::arm) == Some(true) {
                    self.desk.bell.ring();
                }
                break;
            }
        }
    }
}

impl Service for Steward {
    fn begin(&mut self) {
        self.fetch();
        self.tell();
    }

    fn settle(&mut self) -> bool {
        if let Some(control) = &mut *self.desk.control.borrow_mut() {
            let _ = control.with(VirtQueue::signal);
        }
        if let Some(events) = &mut self.events {
            let _ = events.with(VirtQueue::signal);
        }
        self.desk.in_flight.get() == 0
    }

    fn finish(self) -> Vec<VirtQueue> {
        let control = Rc::into_inner(self.desk).and_then(|desk| desk.control.into_inner());
        let queues = control.into_iter().chain(self.events);
        queues.map(Served::into_queue).collect()
    }
}

/// Does one request and gives its chain back.
async fn answer(desk: Rc<Desk>, request: Request) {
    let Request { head, ask, mut answer } = request;
    let written = match ask {
        Ask::Manage { function, address, tag } => {
            let code = manage(&desk, function, address, tag).await;
            ScsiCounters::count(&desk.shared.counters.managements);
            answer.copy_from(&[code as u8])
        }
        Ask::Notify => answer.copy_from(&[0, 0, 0, 0, Code::Ok as u8]),
        Ask::Unknown => answer.copy_from(&[Code::FunctionRejected as u8]),
    };
    if let Some(control) = &mut *desk.control.borrow_mut() {
        let _ = control.with(|queue| queue.push(head, u32::try_from(written).unwrap_or(0)));
    }
    desk.in_flight.set(desk.in_flight.get() - 1);
    desk.bell.ring();
}

/// One task management function (SAM-5 §7). Answered when the tasks it ended are back with the driver.
async fn manage(desk: &Desk, function: u32, address: [u8; 8], tag: u64) -> Code {
    let shared = &desk.shared;
    let Some(Address::Unit(lun)) = Address::parse(address) else {
        ScsiCounters::count(&shared.counters.strays);
        return Code::IncorrectLun;
    };
    let target = lun.target();
    let units = shared.units.of_target(target);
    let code = if units.is_empty() {
        Some(Code::BadTarget)
    } else if function != function::I_T_NEXUS_RESET && !units.iter().any(|unit| unit.lun == lun) {
        Some(Code::IncorrectLun)
    } else {
        None
    };
    if let Some(code) = code {
        ScsiCounters::count(&shared.counters.strays);
        return code;
    }
    let lun = Some(lun);
    let (lun, tag, verdict) = match function {
        function::ABORT_TASK => (lun, Some(tag), Some(Verdict::Aborted)),
        function::ABORT_TASK_SET | function::CLEAR_TASK_SET => (lun, None, Some(Verdict::Aborted)),
        function::I_T_NEXUS_RESET => (None, None, Some(Verdict::Reset)),
        function::LOGICAL_UNIT_RESET => (lun, None, Some(Verdict::Reset)),
        function::QUERY_TASK => (lun, Some(tag), None),
        function::QUERY_TASK_SET => (lun, None, None),
        // CLEAR ACA, and what nobody knows.
        _ => return Code::FunctionRejected,
    };
    let scope = Scope { target, lun, tag };
    let ticket = Arc::new(Ticket::default());
    shared.mailboxes.post(&ticket, scope, verdict);
    let patience = desk.ring.sleep(PATIENCE);
    if matches!(race(ticket.settled(), patience).await, First::Right(_)) {
        let host = &shared.name;
        tracing::warn!(
            host,
            function,
            "the disk does not finish commands that the guest wants to abort"
        );
        return Code::Failure;
    }
    if verdict == Some(Verdict::Reset) {
        let meant = units.iter().filter(|unit| lun.is_none_or(|lun| unit.lun == lun));
        meant.for_each(|unit| unit.reset(Attention::Reset));
    }
    // Queries say whether there is what was asked for; the others say that there is none any more.
    if verdict.is_none() && ticket.has_found() {
        Code::FunctionSucceeded
    } else {
        Code::Ok
    }
}
