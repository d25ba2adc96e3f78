//! One request queue of a SCSI host being served.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use uring::{Bell, Ring};
use virtio::{RingError, VirtQueue};

use super::address::Address;
use super::config::Layout;
use super::counters::ScsiCounters;
use super::events::Events;
use super::execute::{Call, execute};
use super::request::{Code, Request, Stop, respond};
use super::task::{Mailbox, Mailboxes, Task, Tasks};
use super::unit::{Seats, Units};
use crate::crew::{Served, Service};
use crate::spin::Spin;

/// What all workers of a host share.
pub(super) struct Shared {
    pub(super) name: String,
    pub(super) units: Units,
    pub(super) layout: Layout,
    pub(super) mailboxes: Mailboxes,
    pub(super) events: Events,
    pub(super) counters: Arc<ScsiCounters>,
}

/// What commands in flight need.
struct Desk {
    queue: RefCell<Served>,
    tasks: RefCell<Tasks>,
    seats: RefCell<Seats>,
    bell: Bell,
    shared: Arc<Shared>,
}

/// A [`Service`] for one request queue.
pub(super) struct Worker {
    desk: Rc<Desk>,
    ring: Ring,
    spin: Spin,
    registration: Registration,
}

/// Orders reach a worker while this lives.
struct Registration {
    mailbox: Arc<Mailbox>,
    shared: Arc<Shared>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.shared.mailboxes.remove(&self.mailbox);
        self.mailbox.close();
    }
}

impl Worker {
    pub(super) fn new(queue: VirtQueue, shared: &Arc<Shared>, ring: Ring, bell: Bell) -> Self {
        let mailbox = Arc::new(Mailbox::new(bell.clone()));
        shared.mailboxes.add(&mailbox);
        let desk = Rc::new(Desk {
            queue: RefCell::new(Served::new(queue)),
            tasks: RefCell::default(),
            seats: RefCell::default(),
            bell,
            shared: Arc::clone(shared),
        });
        let registration = Registration {
            mailbox,
            shared: Arc::clone(shared),
        };
        Self {
            desk,
            ring,
            spin: Spin::new(),
            registration,
        }
    }

    /// Begins all requests there are. Asks for a kick only where it may go on.
    fn fetch(&mut self) {
        let mut queue = self.desk.queue.borrow_mut();
        // A driver that offers a chain again before it got it back can not have more in flight than the queue holds.
        let limit = usize::from(queue.queue().size());
        let layout = &self.desk.shared.layout;
        while self.desk.tasks.borrow().len() < limit {
            let mut request = queue.with(|queue| next(queue, layout));
            if matches!(request, Some(None)) && self.desk.tasks.borrow().len() == 0 {
                // What was finished is told first: that is what the driver may be waiting for.
                let _ = queue.with(VirtQueue::signal);
                request = self.spin.look(|| queue.with(|queue| next(queue, layout)));
            }
            match request {
                Some(Some(request)) => {
                    let address = Address::parse(request.address);
                    let lun = match address {
                        Some(Address::Unit(lun)) => Some(lun),
                        _ => None,
                    };
                    let task = self.desk.tasks.borrow_mut().add(lun, request.tag);
                    self.spin.begun(self.desk.tasks.borrow().len());
                    let _running = self.ring.spawn(serve(Rc::clone(&self.desk), request, address, task));
                }
                Some(None) => {
                    // Not in this loop: a driver that plays with its ring must not keep orders waiting.
                    let again = self.desk.tasks.borrow().len() > 0 && self.spin.takes_another_turn();
                    if again || queue.with(VirtQueue::arm) == Some(true) {
                        self.desk.bell.ring();
                    }
                    break;
                }
                None => break,
            }
        }
    }

    /// Task management: what the driver has asked for before is in the list first, so that it is found.
    fn obey(&mut self) {
        if self.registration.mailbox.is_waiting() {
            let orders = self.registration.mailbox.take();
            self.fetch();
            let tasks = self.desk.tasks.borrow();
            orders.iter().for_each(|order| tasks.obey(order));
        }
    }
}

impl Service for Worker {
    fn begin(&mut self) {
        self.obey();
        self.fetch();
    }

    fn settle(&mut self) -> bool {
        self.desk.seats.borrow_mut().refresh(&self.desk.shared.units);
        let _ = self.desk.queue.borrow_mut().with(VirtQueue::signal);
        self.desk.tasks.borrow().len() == 0
    }

    fn hold(&mut self) {
        self.obey();
    }

    fn finish(self) -> Vec<VirtQueue> {
        drop(self.registration);
        let desk = Rc::into_inner(self.desk);
        desk.map(|desk| desk.queue.into_inner().into_queue())
            .into_iter()
            .collect()
    }
}

/// The next request there is.
fn next(queue: &mut VirtQueue, layout: &Layout) -> Result<Option<Request>, RingError> {
    let Some(chain) = queue.pop()? else { return Ok(None) };
    Request::parse(&chain, queue.memory(), layout.sizes()).map(Some)
}

/// Does one request and gives its chain back.
async fn serve(desk: Rc<Desk>, request: Request, address: Option<Address>, task: Rc<Task>) {
    let Request {
        head,
        cdb,
        data,
        mut answer,
        ..
    } = request;
    let call = Call {
        address,
        cdb: &cdb,
        task: &task,
        began: Instant::now(),
    };
    let (is_in, size) = (!data.into.is_empty(), data.into.len() + data.out.len());
    let outcome = if let Some(verdict) = task.verdict() {
        Err(verdict.into())
    } else if is_in && !data.out.is_empty() {
        Err(Stop::Code(Code::Failure))
    } else {
        execute(&desk.shared.units, &desk.seats, &call, data).await
    };
    let outcome = task.verdict().map_or(outcome, |verdict| Err(verdict.into()));
    count(&desk.shared.counters, &outcome);
    let written = respond(&mut answer, outcome, size, is_in);
    let _ = desk.queue.borrow_mut().with(|queue| queue.push(head, written));
    desk.tasks.borrow_mut().remove(&task);
    desk.bell.ring();
}

fn count(counters: &ScsiCounters, outcome: &Result<usize, Stop>) {
    ScsiCounters::count(&counters.commands);
    let counter = match outcome {
        Ok(_) => return,
        Err(Stop::Check(_)) => &counters.checks,
        Err(Stop::Code(Code::BadTarget)) => &counters.strays,
        Err(Stop::Code(Code::Aborted | Code::Reset)) => &counters.aborts,
        Err(Stop::Code(_)) => &counters.overruns,
    };
    ScsiCounters::count(counter);
}
