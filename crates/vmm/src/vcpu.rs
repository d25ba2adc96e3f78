//! vCPU threads: run the guest, answer what it needs, tell the state driver what it does.
//!
//! ```text
//!            Gate::open                    kick + Gate::close
//!   spawned ───────────▶ in the guest ◀────────────────────────▶ held
//!                          │   ▲ exits                             │
//!                          └───┘                                   │ Gate::dismiss
//!                          │ triple fault, failure                 ▼
//!                          └──────▶ finished ───────────────────▶ gone
//! ```

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use chipset::{GuestRequest, PowerSink};
use device::Bus;
use kvm::{CallError, Exit, Kicker, SystemEventKind, Vcpu, VcpuState};
use sandbox::{NewThread, ThreadKind};

use crate::action::{GuestEvent, Reporter};
use crate::brake::Brake;
use crate::gate::{Gate, Passage};
use crate::story::whole;

/// Stack of a vCPU thread, bytes: an exit is answered a few calls deep.
const STACK_BYTES: usize = 256 << 10;

/// The address spaces of a machine.
#[derive(Clone, Default)]
pub(crate) struct Buses {
    /// Ports.
    pub(crate) pio: Arc<Bus>,
    /// Guest-physical addresses.
    pub(crate) mmio: Arc<Bus>,
}

/// All vCPUs of a machine, each on its thread.
pub(crate) struct VcpuThreads {
    gate: Arc<Gate>,
    kickers: Vec<Kicker>,
    /// Locked by its thread unless that is held.
    vcpus: Vec<Arc<Mutex<Vcpu>>>,
    threads: Vec<JoinHandle<()>>,
    /// While they are slowed.
    brake: Option<Brake>,
}

impl VcpuThreads {
    /// Threads for `vcpus`, held at first.
    pub(crate) fn spawn(vcpus: Vec<Vcpu>, buses: &Buses, reporter: &Reporter) -> std::io::Result<Self> {
        let mut this = Self {
            gate: Arc::default(),
            kickers: vcpus.iter().map(Vcpu::kicker).collect(),
            threads: Vec::with_capacity(vcpus.len()),
            vcpus: vcpus.into_iter().map(Mutex::new).map(Arc::new).collect(),
            brake: None,
        };
        for (index, vcpu) in (0..).zip(&this.vcpus) {
            let name = format!("vcpu{index}");
            let runner = Runner {
                index,
                vcpu: Arc::clone(vcpu),
                buses: buses.clone(),
                reporter: reporter.clone(),
                gate: Arc::clone(&this.gate),
                exits: Exits::default(),
            };
            let span = tracing::Span::current();
            let thread = NewThread::new(ThreadKind::Vcpu, name)
                .stack_bytes(STACK_BYTES)
                .spawn(move || span.in_scope(|| runner.run()))?;
            this.threads.push(thread);
        }
        Ok(this)
    }

    /// Lets them run.
    pub(crate) fn release(&self) {
        self.gate.open();
    }

    /// The state of each, while they are held.
    pub(crate) fn save(&self) -> Result<Vec<VcpuState>, CallError> {
        self.vcpus.iter().map(|vcpu| lock(vcpu).save()).collect()
    }

    /// The vCPUs themselves, while they are held.
    pub(crate) fn held(&self) -> Vec<MutexGuard<'_, Vcpu>> {
        self.vcpus.iter().map(|vcpu| lock(vcpu)).collect()
    }

    /// Takes this percentage of their time away from them.
    pub(crate) fn throttle(&mut self, percent: u8) {
        self.gate.throttle(percent);
        if percent == 0 {
            self.brake = None;
        } else if self.brake.is_none() {
            self.brake = Brake::start(&self.kickers);
        }
    }

    /// Holds them; none is in the guest or touches a device when this returns.
    pub(crate) fn hold(&self) {
        self.gate.close();
        self.kickers.iter().for_each(Kicker::kick);
        self.gate.wait_for(self.threads.len());
    }
}

/// Ends the threads, and waits until they are gone.
impl Drop for VcpuThreads {
    fn drop(&mut self) {
        self.brake = None;
        self.gate.dismiss();
        self.kickers.iter().for_each(Kicker::kick);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a vcpu thread died of a defect");
            }
        }
    }
}

/// How often a vCPU came out of the guest, and why.
#[derive(Debug, Default)]
struct Exits {
    port_reads: u64,
    port_writes: u64,
    mmio_reads: u64,
    mmio_writes: u64,
    interruptions: u64,
    /// Accesses where nothing is.
    stray: u64,
}

/// What follows from an exit.
enum Next {
    /// Back into the guest.
    Run,
    /// Look at the gate first.
    Gate,
    /// Tell, and never run again.
    Finish(fn(String) -> GuestEvent, String),
}

fn lock(vcpu: &Mutex<Vcpu>) -> MutexGuard<'_, Vcpu> {
    vcpu.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Runner {
    index: u32,
    vcpu: Arc<Mutex<Vcpu>>,
    buses: Buses,
    reporter: Reporter,
    gate: Arc<Gate>,
    exits: Exits,
}

impl Runner {
    fn run(mut self) {
        let index = self.index;
        if self.gate.pass() == Passage::Leave {
            return;
        }
        if index == 0 {
            self.reporter.tell(GuestEvent::FirstEntry { at: Instant::now() });
        }
        let shared = Arc::clone(&self.vcpu);
        let mut let_in = Instant::now();
        loop {
            let mut vcpu = lock(&shared);
            let next = loop {
                match self.step(&mut vcpu) {
                    Next::Run => {}
                    next => break next,
                }
            };
            match next {
                Next::Run => {}
                Next::Gate => {
                    drop(vcpu);
                    if self.gate.rest(let_in.elapsed()) {
                        let_in = Instant::now();
                    }
                    match self.gate.pass() {
                        Passage::Open => {}
                        Passage::Reopened => {
                            let_in = Instant::now();
                            lock(&shared).tell_paused();
                        }
                        Passage::Leave => break,
                    }
                }
                Next::Finish(event, what) => {
                    let message = describe(&vcpu, &what);
                    drop(vcpu);
                    self.reporter.tell(event(message));
                    self.gate.wait_to_leave();
                    break;
                }
            }
        }
        if tracing::enabled!(tracing::Level::DEBUG) {
            let exits = &self.exits;
            let state = describe(&lock(&shared), "state at its end");
            tracing::debug!(vcpu = index, ?exits, state, "vcpu ends");
        }
    }

    /// Runs the guest until its next exit, and answers that.
    fn step(&mut self, vcpu: &mut Vcpu) -> Next {
        let exits = &mut self.exits;
        let exit = match vcpu.run() {
            Ok(exit) => exit,
            Err(error) => return Next::Finish(|message| GuestEvent::VcpuFailed { message }, whole(&error)),
        };
        match exit {
            Exit::IoIn { port, size, data } => {
                exits.port_reads += 1;
                for access in data.chunks_mut(usize::from(size.max(1))) {
                    if !self.buses.pio.read(port.into(), access) {
                        stray(exits, "port read", port.into());
                    }
                }
            }
            Exit::IoOut { port, size, data } => {
                exits.port_writes += 1;
                for access in data.chunks(usize::from(size.max(1))) {
                    if !self.buses.pio.write(port.into(), access) {
                        stray(exits, "port write", port.into());
                    }
                }
            }
            Exit::MmioRead { address, data } => {
                exits.mmio_reads += 1;
                if !self.buses.mmio.read(address, data) {
                    stray(exits, "mmio read", address);
                }
            }
            Exit::MmioWrite { address, data } => {
                exits.mmio_writes += 1;
                if !self.buses.mmio.write(address, data) {
                    stray(exits, "mmio write", address);
                }
            }
            // With the interrupt controller in the kernel a halted vCPU waits there.
            Exit::Hlt => {}
            Exit::Interrupted => {
                exits.interruptions += 1;
                // Whoever is let through to the vCPU's state while it is held finds all of it.
                return match vcpu.settle() {
                    Ok(()) => Next::Gate,
                    Err(error) => Next::Finish(|message| GuestEvent::VcpuFailed { message }, whole(&error)),
                };
            }
            Exit::SystemEvent(SystemEventKind::Shutdown) => self.reporter.request(GuestRequest::PowerOff),
            Exit::SystemEvent(SystemEventKind::Reset) => self.reporter.request(GuestRequest::Reset),
            fatal => return finish(&fatal),
        }
        Next::Run
    }
}

/// For people: which vCPU, what happened, and what it was doing.
fn describe(vcpu: &Vcpu, what: &str) -> String {
    let index = vcpu.index();
    match vcpu.registers() {
        Ok(registers) => format!("vcpu {index}: {what}\n{registers}"),
        Err(error) => format!("vcpu {index}: {what}; its registers can not be read: {}", whole(&error)),
    }
}

/// The end of a vCPU, for exits that leave nothing to do.
fn finish(exit: &Exit<'_>) -> Next {
    let failed = |message| GuestEvent::VcpuFailed { message };
    match exit {
        Exit::Shutdown => Next::Finish(
            |message| GuestEvent::TripleFault { message },
            "triple fault: the guest could not handle an exception".to_owned(),
        ),
        Exit::FailEntry { reason, cpu } => Next::Finish(
            failed,
            format!("the CPU (host CPU {cpu}) refuses the guest's state, hardware reason {reason:#x}"),
        ),
        Exit::InternalError { suberror, data } => Next::Finish(
            failed,
            format!("KVM can not go on: internal error {suberror}, details {data:x?}"),
        ),
        Exit::SystemEvent(SystemEventKind::Crash) => Next::Finish(failed, "the guest says that it crashed".to_owned()),
        other => Next::Finish(failed, format!("exit that nothing handles: {other:?}")),
    }
}

fn stray(exits: &mut Exits, access: &'static str, address: u64) {
    static STRAY: telemetry::RateLimited = telemetry::RateLimited::new();
    exits.stray += 1;
    // Guests probe for devices; that is no fault.
    if tracing::enabled!(tracing::Level::DEBUG)
        && let Some(admitted) = STRAY.admit()
    {
        let suppressed = admitted.suppressed;
        tracing::debug!(
            access,
            address = format_args!("{address:#x}"),
            suppressed,
            "nothing is there"
        );
    }
}
