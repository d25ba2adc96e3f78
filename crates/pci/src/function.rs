//! A function in a slot: its configuration space, and where its BARs are mapped.
//!
//! ```text
//!               COMMAND.memory = 1, address inside a window
//!   unmapped ───────────────────────────────────────────────▶ mapped(base)
//!      ▲                                                         │
//!      └── COMMAND.memory = 0, BAR rewritten, reset, unplugged ──┘
//! ```
//!
//! Held while mapped: the base, so that the same range is unmapped whatever the guest has written since. A BAR that is
//! rewritten while memory decode is on moves at once; half-written addresses outside the windows leave it unmapped.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use device::{BusHandler, MapError};

use crate::endpoint::{BAR_FLAGS, BARS, Bar, Endpoint, Window};
use crate::msix::{Msix, VectorState};
use crate::registers::{COMMAND_MEMORY, CONFIG_SIZE, Registers, offset};

/// Where BARs become visible to vCPUs: the machine's memory-mapped I/O bus, and the event descriptors of its doorbells.
///
/// Called with the function's lock held, from vCPU threads; must not call back into the PCI root.
pub trait BarSpace: Send + Sync {
    /// Puts `handler` at `base..base + size` (guest-physical, bytes), and its [`BusHandler::doorbells`] with it.
    fn map(&self, base: u64, size: u64, handler: Arc<dyn BusHandler>) -> Result<(), MapError>;

    /// Undoes [`BarSpace::map`] of the same `base` and `size`. `handler` is the one that was mapped.
    fn unmap(&self, base: u64, size: u64, handler: &Arc<dyn BusHandler>);
}

/// What a function knows of the place it sits in.
pub(crate) struct Surroundings {
    pub(crate) space: Arc<dyn BarSpace>,
    /// True if a BAR of this base and size may be mapped.
    pub(crate) allowed: Box<dyn Fn(u64, u64) -> bool + Send + Sync>,
}

savestate::section! {
    /// A function's configuration space and MSI-X. BARs are mapped as the registers say.
    pub(crate) struct FunctionState = "pci-function", version 1 {
        registers: [u8; CONFIG_SIZE],
        vectors: Option<Vec<VectorState>>,
    }
}

struct Live {
    registers: Registers,
    mapped: [Option<u64>; BARS],
}

/// One function that is plugged in.
pub(crate) struct Function {
    live: Mutex<Live>,
    initial: Registers,
    bars: [Option<Bar>; BARS],
    windows: Vec<Window>,
    msix: Option<(usize, Arc<Msix>)>,
    surroundings: Surroundings,
}

impl Function {
    /// `addresses` are the first addresses of the BARs the endpoint has.
    pub(crate) fn new(endpoint: Endpoint, addresses: [Option<u64>; BARS], surroundings: Surroundings) -> Self {
        let mut initial = endpoint.registers;
        for (slot, address) in addresses.iter().enumerate() {
            if let Some(address) = address {
                initial.write(Bar::offset(slot), &address.to_le_bytes());
            }
        }
        Self {
            live: Mutex::new(Live {
                registers: initial.clone(),
                mapped: [None; BARS],
            }),
            initial,
            bars: endpoint.bars,
            windows: endpoint.windows,
            msix: endpoint.msix,
            surroundings,
        }
    }

    /// A configuration read of any width at any offset.
    pub(crate) fn read(&self, offset: usize, data: &mut [u8]) {
        if let Some(window) = self.window_at(offset, data.len()) {
            let body = self.body_of(window);
            window.handler.read(&body, offset - window.start, data);
        } else {
            self.lock().registers.read(offset, data);
        }
    }

    /// A configuration write of any width at any offset.
    pub(crate) fn write(&self, offset: usize, data: &[u8]) {
        if let Some(window) = self.window_at(offset, data.len()) {
            let body = self.body_of(window);
            window.handler.write(&body, offset - window.start, data);
            return;
        }
        let mut live = self.lock();
        live.registers.write(offset, data);
        let end = offset.saturating_add(data.len());
        if offset < offset::CAPABILITIES && end > offset::COMMAND {
            self.settle_bars(&mut live);
        }
        if let Some((control, msix)) = &self.msix
            && offset < control + 2
            && end > *control
        {
            msix.set_control(live.registers.u16(*control));
        }
    }

    /// Back to power-on: BARs at their first addresses, decode off, MSI-X off.
    pub(crate) fn reset(&self) {
        let mut live = self.lock();
        live.registers = self.initial.clone();
        self.settle_bars(&mut live);
        if let Some((_, msix)) = &self.msix {
            msix.reset();
        }
    }

    pub(crate) fn state(&self) -> FunctionState {
        let mut registers = [0; CONFIG_SIZE];
        self.lock().registers.read(0, &mut registers);
        FunctionState {
            registers,
            vectors: self.msix.as_ref().map(|(_, msix)| msix.state()),
        }
    }

    /// Becomes what was saved, if that was the same function. BARs are mapped, and interrupts routed, when this returns.
    pub(crate) fn set_state(&self, state: &FunctionState) -> Result<(), String> {
        let mut registers = self.initial.clone();
        registers.write(0, &state.registers);
        let mut accepted = [0; CONFIG_SIZE];
        registers.read(0, &mut accepted);
        if let Some(place) = accepted.iter().zip(&state.registers).position(|(a, b)| a != b) {
            return Err(format!(
                "it is another function: register {place:#x} is read-only and differs"
            ));
        }
        let mut live = self.lock();
        live.registers = registers;
        self.settle_bars(&mut live);
        match (&self.msix, &state.vectors) {
            (Some((control, msix)), Some(vectors)) => msix.set_state(vectors, live.registers.u16(*control)),
            (None, None) => Ok(()),
            _ => Err("it has MSI-X on one side only".to_owned()),
        }
    }

    /// Maps and unmaps until the bus agrees with the registers.
    fn settle_bars(&self, live: &mut Live) {
        static MISPLACED: telemetry::RateLimited = telemetry::RateLimited::new();
        let decode = live.registers.u16(offset::COMMAND) & COMMAND_MEMORY != 0;
        for (slot, bar) in self.bars.iter().enumerate() {
            let (Some(bar), Some(mapped)) = (bar, live.mapped.get_mut(slot)) else {
                continue;
            };
            let base = live.registers.u64(Bar::offset(slot)) & !BAR_FLAGS;
            let wanted = (decode && (self.surroundings.allowed)(base, bar.size)).then_some(base);
            if *mapped == wanted {
                continue;
            }
            if let Some(old) = mapped.take() {
                self.surroundings.space.unmap(old, bar.size, &bar.handler);
            }
            if let Some(base) = wanted {
                match self.surroundings.space.map(base, bar.size, Arc::clone(&bar.handler)) {
                    Ok(()) => *mapped = Some(base),
                    Err(error) => {
                        if let Some(admitted) = MISPLACED.admit() {
                            let suppressed = admitted.suppressed;
                            tracing::debug!(%error, suppressed, "guest placed a bar where it can not be");
                        }
                    }
                }
            }
        }
    }

    fn window_at(&self, offset: usize, length: usize) -> Option<&Window> {
        let inside = |window: &&Window| window.start <= offset && offset.saturating_add(length) <= window.end;
        self.windows.iter().find(inside)
    }

    fn body_of(&self, window: &Window) -> Vec<u8> {
        let mut body = vec![0; window.end.saturating_sub(window.body)];
        self.lock().registers.read(window.body, &mut body);
        body
    }

    fn lock(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A function leaves nothing mapped behind.
impl Drop for Function {
    fn drop(&mut self) {
        self.reset();
    }
}
