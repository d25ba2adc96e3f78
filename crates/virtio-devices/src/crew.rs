//! Threads that serve queues: started at activation, paused and stopped as one.
//!
//! ```text
//!           pause()                idle
//!   Run ──────────────▶ Pause ──────────────▶ quiet
//!    ▲ │                  │                     │
//!    │ └──────────────────┼──── resume() ◀──────┤
//!    │                    ▼                     ▼
//!  start()          stop() ─────▶ Stop ── idle ──▶ thread ends, queues come back
//! ```
//!
//! A worker is a loop around one bell. Whatever happens — a kick, a completion, a word from the device — rings it; the worker
//! then looks at everything. While *Run* is wanted it begins new work; while *Pause* or *Stop* is wanted it only finishes what
//! it began, and says when nothing is left.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use device::Draining;
use sandbox::{LateFilter, NewThread, ThreadKind};
use uring::{Bell, Executor, File, Ring};
use virtio::{ActivateError, RingError, Signals, VirtQueue};

/// Operations handed to the kernel by one system call; one turn of a busy queue.
const RING_ENTRIES: u32 = 128;
/// How long a pause or stop waits before it says for whom, and then again. What is in flight may still write guest memory, so
/// there is no end to the wait itself: whoever has none ends the process.
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// What a worker does on its thread. Everything here is called from the worker's loop, whenever its bell was rung.
pub(crate) trait Service {
    /// Begins what can be begun. Never waits: what takes time is spawned, and rings the bell when it is done.
    fn begin(&mut self);

    /// Tells the driver of what was finished. True if nothing is in flight any more.
    fn settle(&mut self) -> bool;

    /// Asked to hold: gives up whatever may wait for ever, without losing anything.
    fn hold(&mut self) {}

    /// Gives the queues back. Called when settled.
    fn finish(self) -> Vec<VirtQueue>;
}

/// What a service is built with, on its thread.
pub(crate) struct Place {
    pub(crate) ring: Ring,
    pub(crate) bell: Bell,
}

impl Place {
    /// Rings the bell whenever `queue` is kicked.
    pub(crate) fn listen(&self, queue: &VirtQueue) -> io::Result<()> {
        let event = File::of_event(queue.kick())?;
        let (ring, bell) = (self.ring.clone(), self.bell.clone());
        let _listening = self.ring.spawn(async move {
            while ring.read_event(&event).await.is_ok() {
                bell.ring();
            }
        });
        Ok(())
    }
}

/// Reasons why a service could not be built.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Makes a service on its thread.
pub(crate) type Make<S> = Box<dyn FnOnce(&Place) -> Result<S, Failure> + Send>;

/// What one worker is for.
pub(crate) struct Job<S> {
    /// Its first queue: the one that is named if the worker fails.
    pub(crate) queue: u16,
    pub(crate) make: Make<S>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Run,
    Pause,
    Stop,
}

struct Orders {
    wanted: Wanted,
    /// Nothing is in flight, and nothing will be begun until other orders come.
    quiet: bool,
    /// The thread has ended, by order or because it could not go on: it is quiet whatever is ordered.
    ended: bool,
}

struct Gate {
    /// Of the thread, as `disk0-1`.
    name: String,
    orders: Mutex<Orders>,
    quieted: Condvar,
    bell: Bell,
}

impl Gate {
    fn new(name: String, wanted: Wanted) -> Self {
        Self {
            name,
            orders: Mutex::new(Orders {
                wanted,
                quiet: false,
                ended: false,
            }),
            quieted: Condvar::new(),
            bell: Bell::new(),
        }
    }

    fn want(&self, wanted: Wanted) {
        let mut orders = self.lock();
        orders.wanted = wanted;
        orders.quiet = false;
        drop(orders);
        self.bell.ring();
    }

    fn wanted(&self) -> Wanted {
        self.lock().wanted
    }

    /// The worker is quiet, as `wanted`: unless something else is wanted by now.
    fn report(&self, wanted: Wanted) {
        let mut orders = self.lock();
        if orders.wanted == wanted {
            orders.quiet = true;
            self.quieted.notify_all();
        }
    }

    fn report_end(&self) {
        self.lock().ended = true;
        self.quieted.notify_all();
    }

    fn wait_quiet(&self) {
        let done = |orders: &Orders| orders.wanted == Wanted::Run || orders.quiet || orders.ended;
        self.wait(done, REPORT_EVERY, |waited| self.report_wait("pause", waited));
    }

    fn wait_ended(&self) {
        let done = |orders: &Orders| orders.ended;
        self.wait(done, REPORT_EVERY, |waited| self.report_wait("stop", waited));
    }

    fn report_wait(&self, what: &str, waited: Duration) {
        let (worker, seconds) = (&self.name, waited.as_secs());
        tracing::warn!(
            worker,
            seconds,
            "a virtio device can not {what}: requests it has begun are not finished; see to the storage behind it"
        );
    }

    /// Waits until `done`, and calls `report` with the time so far whenever another `period` is over.
    fn wait(&self, done: impl Fn(&Orders) -> bool, period: Duration, report: impl Fn(Duration)) {
        let begin = Instant::now();
        let mut orders = self.lock();
        while !done(&orders) {
            let (again, timeout) = self
                .quieted
                .wait_timeout(orders, period)
                .unwrap_or_else(PoisonError::into_inner);
            orders = again;
            if timeout.timed_out() && !done(&orders) {
                drop(orders);
                report(begin.elapsed());
                orders = self.lock();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Worker {
    gate: Arc<Gate>,
    thread: JoinHandle<Vec<VirtQueue>>,
}

/// The workers of one device. Empty while the device is inactive.
#[derive(Default)]
pub(crate) struct Crew {
    workers: Mutex<Vec<Worker>>,
    paused: AtomicBool,
}

impl Crew {
    /// Starts a thread per job, named after `device` and its number. All or none. A worker that fails later tells `signals`.
    pub(crate) fn start<S: Service + 'static>(
        &self,
        device: &str,
        signals: &Arc<dyn Signals>,
        jobs: Vec<Job<S>>,
    ) -> Result<(), ActivateError> {
        let mut workers = self.lock();
        let wanted = if self.paused.load(Ordering::SeqCst) {
            Wanted::Pause
        } else {
            Wanted::Run
        };
        for (number, job) in jobs.into_iter().enumerate() {
            match start_worker(format!("{device}-{number}"), wanted, signals, job) {
                Ok(worker) => workers.push(worker),
                Err((missing, source)) => {
                    drop(stop_all(&mut workers));
                    return Err(ActivateError {
                        device: device.to_owned(),
                        missing,
                        source: Some(source),
                    });
                }
            }
        }
        Ok(())
    }

    /// Stops all workers and waits for them; what is in flight is finished first.
    pub(crate) fn stop(&self) -> Vec<VirtQueue> {
        stop_all(&mut self.lock())
    }

    /// See [`device::Device::pause`].
    pub(crate) fn pause(&self) -> Draining {
        self.paused.store(true, Ordering::SeqCst);
        let gates: Vec<_> = self.lock().iter().map(|worker| Arc::clone(&worker.gate)).collect();
        gates.iter().for_each(|gate| gate.want(Wanted::Pause));
        Draining::until(move || gates.iter().for_each(|gate| gate.wait_quiet()))
    }

    /// See [`device::Device::resume`].
    pub(crate) fn resume(&self) {
        self.paused.store(false, Ordering::SeqCst);
        self.lock().iter().for_each(|worker| worker.gate.want(Wanted::Run));
    }

    /// Has all workers look at everything again.
    pub(crate) fn nudge(&self) {
        self.lock().iter().for_each(|worker| worker.gate.bell.ring());
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Worker>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Threads outlive nobody: a device that is dropped has stopped.
impl Drop for Crew {
    fn drop(&mut self) {
        drop(self.stop());
    }
}

fn stop_all(workers: &mut Vec<Worker>) -> Vec<VirtQueue> {
    workers.iter().for_each(|worker| worker.gate.want(Wanted::Stop));
    let mut queues: Vec<VirtQueue> = workers
        .drain(..)
        .flat_map(|worker| {
            worker.gate.wait_ended();
            worker.thread.join().unwrap_or_default()
        })
        .collect();
    queues.sort_by_key(VirtQueue::index);
    queues
}

/// Starts one thread and waits until its service stands. In failure says what was missing, and why.
fn start_worker<S: Service + 'static>(
    name: String,
    wanted: Wanted,
    signals: &Arc<dyn Signals>,
    job: Job<S>,
) -> Result<Worker, (&'static str, Failure)> {
    let gate = Arc::new(Gate::new(name.clone(), wanted));
    let (tell, told) = mpsc::channel();
    let mut end = End {
        gate: Arc::clone(&gate),
        signals: Arc::clone(signals),
        queue: job.queue,
        serving: false,
    };
    let thread = NewThread::new(ThreadKind::QueueWorker, name).spawn_late(move |filter| {
        let make = job.make;
        work(&mut end, make, filter, &tell)
    });
    let thread = thread.map_err(|error| ("a thread", Failure::from(error)))?;
    match told.recv() {
        Ok(Ok(())) => Ok(Worker { gate, thread }),
        Ok(Err(failure)) => {
            let _ = thread.join();
            Err(failure)
        }
        Err(error) => Err(("a thread that lives", error.into())),
    }
}

type Told = Result<(), (&'static str, Failure)>;

/// What is owed when a worker's thread ends, however it does: nobody waits for it any more, and a driver whose queue it served
/// learns that nobody does now.
struct End {
    gate: Arc<Gate>,
    signals: Arc<dyn Signals>,
    queue: u16,
    serving: bool,
}

impl Drop for End {
    fn drop(&mut self) {
        self.gate.report_end();
        if self.serving {
            let why = "nobody to serve it: its worker has failed";
            self.signals.needs_reset(self.queue, &RingError::BadRing { why });
        }
    }
}

/// Body of a worker's thread.
fn work<S: Service + 'static>(
    end: &mut End,
    make: Make<S>,
    filter: LateFilter,
    tell: &mpsc::Sender<Told>,
) -> Vec<VirtQueue> {
    // The receiver waits for exactly one word; it can not be gone.
    let fail = |missing, error| {
        let _ = tell.send(Err((missing, error)));
        Vec::new()
    };
    let mut executor = match Executor::new(RING_ENTRIES) {
        Ok(executor) => executor,
        Err(error) => return fail("an io_uring executor", error.into()),
    };
    let place = Place {
        ring: executor.ring(),
        bell: end.gate.bell.clone(),
    };
    let service = match make(&place) {
        Ok(service) => service,
        Err(error) => return fail("what its worker needs", error),
    };
    // From here on it looks at what the guest wrote. Rings are made before: a worker can make none.
    if let Err(error) = filter.put_on() {
        return fail("a seccomp filter", error.into());
    }
    end.serving = true;
    let _ = tell.send(Ok(()));
    match executor.block_on(run(&end.gate, service)) {
        Ok(queues) => {
            end.serving = false;
            queues
        }
        Err(error) => {
            tracing::error!(%error, "a virtio worker ended; its queues are not served any more");
            Vec::new()
        }
    }
}

async fn run<S: Service>(gate: &Gate, mut service: S) -> Vec<VirtQueue> {
    loop {
        match gate.wanted() {
            Wanted::Run => {
                service.begin();
                service.settle();
            }
            wanted @ (Wanted::Pause | Wanted::Stop) => {
                service.hold();
                if service.settle() {
                    if wanted == Wanted::Stop {
                        return service.finish();
                    }
                    gate.report(wanted);
                }
            }
        }
        heard(&gate.bell).await;
    }
}

/// Waits for the bell. Where it has rung already, the tasks that the service began run first: it would see nothing new.
async fn heard(bell: &Bell) {
    let mut rung = bell.rung();
    let at_once = poll_fn(|context| Poll::Ready(Pin::new(&mut rung).poll(context).is_ready())).await;
    if !at_once {
        return rung.await;
    }
    let mut yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// A queue whose first error is its last: afterwards it gives nothing and takes nothing.
pub(crate) struct Served {
    queue: VirtQueue,
    failed: bool,
}

impl Served {
    pub(crate) const fn new(queue: VirtQueue) -> Self {
        Self { queue, failed: false }
    }

    pub(crate) const fn queue(&self) -> &VirtQueue {
        &self.queue
    }

    pub(crate) fn into_queue(self) -> VirtQueue {
        self.queue
    }

    /// Runs `step` on the queue; `None` from the first error on.
    pub(crate) fn with<T>(&mut self, step: impl FnOnce(&mut VirtQueue) -> Result<T, RingError>) -> Option<T> {
        if self.failed {
            return None;
        }
        let result = step(&mut self.queue);
        if let Err(error) = &result {
            self.failed = true;
            self.queue.fail(error);
        }
        result.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[derive(Default)]
    struct Resets(Mutex<Vec<u16>>);

    impl Signals for Resets {
        fn queue_used(&self, _index: u16) {}
        fn config_changed(&self) {}
        fn needs_reset(&self, index: u16, _error: &RingError) {
            self.0.lock().unwrap().push(index);
        }
    }

    /// Does nothing, or dies of it.
    struct Idle {
        dies: bool,
    }

    impl Service for Idle {
        fn begin(&mut self) {
            assert!(!self.dies, "as it should in this test");
        }
        fn settle(&mut self) -> bool {
            true
        }
        fn finish(self) -> Vec<VirtQueue> {
            Vec::new()
        }
    }

    #[test]
    fn whoever_waits_for_long_says_so() {
        let gate = Gate::new("test-0".into(), Wanted::Pause);
        let reports = Mutex::new(0);
        let period = Duration::from_millis(1);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let count = |_| *reports.lock().unwrap() += 1;
                gate.wait(|orders| orders.quiet, period, count);
            });
            let deadline = Instant::now() + Duration::from_secs(20);
            while *reports.lock().unwrap() < 3 {
                assert!(Instant::now() < deadline, "nothing was reported");
                std::thread::sleep(period);
            }
            gate.report(Wanted::Pause);
        });
        assert!(gate.lock().quiet);
    }

    #[test]
    fn the_driver_hears_of_a_worker_that_failed_and_nobody_waits_for_it() {
        let crew = Arc::new(Crew::default());
        let resets = Arc::new(Resets::default());
        let signals: Arc<dyn Signals> = Arc::clone(&resets) as _;
        let job = |queue, dies| Job {
            queue,
            make: Box::new(move |_: &Place| Ok(Idle { dies })),
        };
        crew.start("test", &signals, vec![job(3, false), job(5, true)]).unwrap();
        // A worker that is paused before it begins would not die of it.
        let deadline = Instant::now() + Duration::from_secs(20);
        while resets.0.lock().unwrap().is_empty() {
            assert!(Instant::now() < deadline, "the driver hears nothing");
            std::thread::sleep(Duration::from_millis(1));
        }
        let (tell, told) = mpsc::channel();
        let of_thread = Arc::clone(&crew);
        std::thread::spawn(move || {
            of_thread.pause().wait();
            of_thread.resume();
            of_thread.pause().wait();
            let _ = tell.send(of_thread.stop().len());
        });
        assert_eq!(told.recv_timeout(Duration::from_secs(10)), Ok(0), "still waiting");
        assert_eq!(*resets.0.lock().unwrap(), [5]);
    }
}
