//! Commands in flight, and how task management reaches them across threads.
//!
//! Each worker keeps a list of its own tasks, which costs nothing to others. The control worker posts an [`Order`] to all of
//! them, and waits until every [`Claim`] on its [`Ticket`] is gone: those in orders that nobody has looked at, and those of
//! tasks that are on their way out.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use uring::Bell;

use super::address::Lun;

/// How a command ends that task management ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Aborted,
    Reset,
}

/// Which tasks are meant.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scope {
    pub(super) target: u8,
    /// All units of the target without.
    pub(super) lun: Option<Lun>,
    /// All tasks of the unit without.
    pub(super) tag: Option<u64>,
}

impl Scope {
    fn covers(&self, task: &Task) -> bool {
        task.lun
            .is_some_and(|lun| lun.target() == self.target && self.lun.is_none_or(|wanted| wanted == lun))
            && self.tag.is_none_or(|tag| tag == task.tag)
    }
}

/// What the control worker waits for.
#[derive(Default)]
pub(super) struct Ticket {
    claims: AtomicUsize,
    found: AtomicBool,
    bell: Bell,
}

impl Ticket {
    pub(super) fn claim(self: &Arc<Self>) -> Claim {
        self.claims.fetch_add(1, Ordering::SeqCst);
        Claim(Arc::clone(self))
    }

    /// Some task was meant.
    pub(super) fn has_found(&self) -> bool {
        self.found.load(Ordering::SeqCst)
    }

    /// Waits until there is no claim.
    pub(super) async fn settled(&self) {
        while self.claims.load(Ordering::SeqCst) > 0 {
            self.bell.rung().await;
        }
    }
}

/// A reason to wait.
pub(super) struct Claim(Arc<Ticket>);

impl Drop for Claim {
    fn drop(&mut self) {
        if self.0.claims.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.bell.ring();
        }
    }
}

/// A word from the control worker.
pub(super) struct Order {
    pub(super) scope: Scope,
    /// How the tasks end; without, they are only looked for.
    pub(super) verdict: Option<Verdict>,
    pub(super) claim: Claim,
}

/// Where a worker gets its orders.
pub(super) struct Mailbox {
    /// `None` once the worker has ended.
    orders: Mutex<Option<Vec<Order>>>,
    waiting: AtomicBool,
    bell: Bell,
}

impl Mailbox {
    pub(super) fn new(bell: Bell) -> Self {
        Self {
            orders: Mutex::new(Some(Vec::new())),
            waiting: AtomicBool::new(false),
            bell,
        }
    }

    /// To a worker that has ended, this does nothing.
    fn post(&self, order: Order) {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(orders) = &mut *orders {
            orders.push(order);
            self.waiting.store(true, Ordering::SeqCst);
            self.bell.ring();
        }
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::SeqCst)
    }

    pub(super) fn take(&self) -> Vec<Order> {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.store(false, Ordering::SeqCst);
        orders.as_mut().map(std::mem::take).unwrap_or_default()
    }

    pub(super) fn close(&self) {
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(orders);
    }
}

/// The mailboxes of all workers of a host.
#[derive(Default)]
pub(super) struct Mailboxes(Mutex<Vec<Arc<Mailbox>>>);

impl Mailboxes {
    pub(super) fn add(&self, mailbox: &Arc<Mailbox>) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Arc::clone(mailbox));
    }

    pub(super) fn remove(&self, mailbox: &Arc<Mailbox>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|one| !Arc::ptr_eq(one, mailbox));
    }

    /// Posts one order to each worker.
    pub(super) fn post(&self, ticket: &Arc<Ticket>, scope: Scope, verdict: Option<Verdict>) {
        for mailbox in &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            let claim = ticket.claim();
            mailbox.post(Order { scope, verdict, claim });
        }
    }
}

/// A command in flight. Dropped when its chain is back with the driver.
pub(super) struct Task {
    lun: Option<Lun>,
    tag: u64,
    place: usize,
    verdict: Cell<Option<Verdict>>,
    claims: RefCell<Vec<Claim>>,
}

impl Task {
    /// How it has to end, if task management says so. What it has begun is finished all the same.
    pub(super) fn verdict(&self) -> Option<Verdict> {
        self.verdict.get()
    }
}

/// The commands in flight of one worker.
#[derive(Default)]
pub(super) struct Tasks {
    places: Vec<Option<Rc<Task>>>,
    free: Vec<usize>,
}

impl Tasks {
    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(super) fn add(&mut self, lun: Option<Lun>, tag: u64) -> Rc<Task> {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        let task = Rc::new(Task {
            lun,
            tag,
            place,
            verdict: Cell::new(None),
            claims: RefCell::default(),
        });
        if let Some(seat) = self.places.get_mut(place) {
            *seat = Some(Rc::clone(&task));
        }
        task
    }

    pub(super) fn remove(&mut self, task: &Task) {
        if let Some(taken) = self.places.get_mut(task.place).and_then(Option::take) {
            self.free.push(taken.place);
        }
    }

    /// Does what `order` says to all tasks that are meant.
    pub(super) fn obey(&self, order: &Order) {
        let ticket = &order.claim.0;
        for task in self.places.iter().flatten().filter(|task| order.scope.covers(task)) {
            ticket.found.store(true, Ordering::SeqCst);
            if let Some(verdict) = order.verdict {
                task.verdict.set(Some(verdict));
                task.claims.borrow_mut().push(ticket.claim());
            }
        }
    }
}
