//! The modern PCI transport (virtio 1.2 §4.1).
//!
//! One 64-bit BAR holds everything:
//!
//! ```text
//!   0x0000 common configuration    0x3000 doorbells, 4 bytes per queue
//!   0x1000 ISR status              0x4000 MSI-X pending bits
//!   0x2000 device configuration    0x8000 MSI-X table
//! ```

mod configuration;
mod doorbells;
mod link;
mod migration;
mod status;
mod window;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use device::{BusHandler, Device, Draining, Migration, Motion, MsiRoutes};
use guestmem::GuestMemory;
use pci::{Capability, Endpoint, EndpointError, Identity, Msix, Regions};

use crate::contract::{Activation, VirtioDevice};
use crate::fault::RingError;
use crate::feature;
use crate::queue::{Ends, Position, VirtQueue};
use crate::signals::Signals;
use configuration::Registers;
use doorbells::{DOORBELL_STRIDE, Doorbells};
use link::{IsrStatus, Link};
use status::{Phase, Step};
use window::BarWindow;

/// Vendor of all virtio devices (virtio 1.2 §4.1.2).
const VENDOR: u16 = 0x1af4;
/// Device ID of device type 0 (virtio 1.2 §4.1.2).
const DEVICE_BASE: u16 = 0x1040;
/// Subsystem ID of device type 0: 0x40 or higher says "not transitional" (virtio 1.2 §4.1.2.1).
const SUBSYSTEM_BASE: u16 = 0x40;
/// Revision of non-transitional devices: 1 or higher.
const REVISION: u8 = 1;
/// Vendor-specific capability (PCI 3.0 appendix H).
const CAPABILITY_VENDOR: u8 = 0x09;

/// The BAR everything is in.
const BAR: u8 = 0;
/// Its size, bytes.
const BAR_SIZE: u64 = 0x1_0000;
const COMMON: u32 = 0x0000;
const ISR: u32 = 0x1000;
const DEVICE_CONFIG: u32 = 0x2000;
const DOORBELLS: u32 = 0x3000;
const PENDING: u32 = 0x4000;
const TABLE: u32 = 0x8000;
/// Bytes of each part but the last, and so the limit of queues: 1024 doorbells.
const PART_SIZE: u32 = 0x1000;
/// Most queues: each has a doorbell.
const QUEUES_MAX: usize = (PART_SIZE / DOORBELL_STRIDE) as usize;

/// Structure types of capabilities (virtio 1.2 §4.1.4).
#[derive(Clone, Copy)]
enum Structure {
    Common = 1,
    Notify = 2,
    Isr = 3,
    Device = 4,
    PciConfig = 5,
}

/// Why a device got no transport. Always a mistake of its model, or the process is out of descriptors.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// Too many queues for the doorbell page, or a size that rings can not have.
    #[error("virtio device {device} has queues that can not be: at most 1024, each a power of two up to 32768")]
    BadQueues {
        /// [`VirtioDevice::name`].
        device: String,
    },
    /// No event descriptor for a doorbell.
    #[error("virtio device {device} gets no event descriptors; raise the limit on open files")]
    Events {
        /// [`VirtioDevice::name`].
        device: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The function does not fit.
    #[error("virtio device {device} does not fit into a pci function")]
    Endpoint {
        /// [`VirtioDevice::name`].
        device: String,
        /// What is wrong with it.
        source: EndpointError,
    },
}

struct State {
    phase: Phase,
    /// [`status::FAILED`], or 0.
    failed: u8,
    registers: Registers,
    /// Where the queues are; told by the workers that have them.
    positions: Vec<Arc<Position>>,
}

/// A virtio device as a PCI function, and as a [`Device`] of the machine.
pub struct VirtioPci {
    device: Arc<dyn VirtioDevice>,
    memory: GuestMemory,
    link: Arc<Link>,
    doorbells: Arc<Doorbells>,
    /// Held while a status write activates or deactivates. Workers never take it: what they need is in [`Link`].
    state: Mutex<State>,
    motion: Motion,
    /// It was loaded, and has not run since.
    loaded: AtomicBool,
}

impl VirtioPci {
    /// Vectors the machine must route for `device`: one per queue, one for configuration changes.
    pub fn vectors(device: &dyn VirtioDevice) -> u16 {
        u16::try_from(device.queue_sizes().len().saturating_add(1)).unwrap_or(u16::MAX)
    }

    /// Puts `device` behind a transport. `routes` take [`VirtioPci::vectors`] vectors. Returns the device for the machine's
    /// life cycle, and the function to be plugged into a slot.
    pub fn new(
        device: Arc<dyn VirtioDevice>,
        memory: GuestMemory,
        routes: Arc<dyn MsiRoutes>,
    ) -> Result<(Arc<Self>, Endpoint), TransportError> {
        let name = || device.name().to_owned();
        let sizes = device.queue_sizes();
        let possible = |&size: &u16| size.is_power_of_two() && size <= 1 << 15;
        if sizes.len() > QUEUES_MAX || !sizes.iter().all(possible) {
            return Err(TransportError::BadQueues { device: name() });
        }
        let doorbells =
            Doorbells::new(sizes.len()).map_err(|source| TransportError::Events { device: name(), source })?;
        let msix = Msix::new(Self::vectors(&*device), routes);
        let transport = Arc::new(Self {
            link: Arc::new(Link::new(name(), Arc::clone(&msix), sizes.len())),
            doorbells: Arc::new(doorbells),
            state: Mutex::new(State {
                phase: Phase::Blank,
                failed: 0,
                registers: Registers::new(sizes),
                positions: sizes.iter().map(|_| Arc::default()).collect(),
            }),
            motion: Motion::default(),
            loaded: AtomicBool::new(false),
            memory,
            device,
        });
        let endpoint = transport.endpoint(&msix).map_err(|source| TransportError::Endpoint {
            device: transport.device.name().to_owned(),
            source,
        })?;
        Ok((transport, endpoint))
    }

    /// How often the device stopped until its driver resets it, since the start: nearly always for what the driver did.
    pub fn stops(&self) -> u64 {
        self.link.stops()
    }

    fn endpoint(self: &Arc<Self>, msix: &Arc<Msix>) -> Result<Endpoint, EndpointError> {
        let kind = self.device.kind();
        let identity = Identity {
            vendor: VENDOR,
            device: DEVICE_BASE + kind.id,
            revision: REVISION,
            class: kind.class,
            subsystem_vendor: VENDOR,
            subsystem: SUBSYSTEM_BASE + kind.id,
        };
        let part = u64::from(PART_SIZE);
        let bar = Regions::new()
            .with(COMMON.into(), part, Arc::new(CommonPart(Arc::clone(self))))
            .with(ISR.into(), part, Arc::new(IsrStatus(Arc::clone(&self.link))))
            .with(DEVICE_CONFIG.into(), part, Arc::new(ConfigPart(Arc::clone(self))))
            .with(DOORBELLS.into(), part, Arc::clone(&self.doorbells) as _)
            .with(PENDING.into(), msix.pending_size(), msix.pending())
            .with(TABLE.into(), msix.table_size(), msix.table());
        let bar: Arc<dyn BusHandler> = Arc::new(bar);
        let window = Arc::new(BarWindow::new(Arc::clone(&bar), BAR, BAR_SIZE));
        Endpoint::new(&identity)
            .bar(BAR, BAR_SIZE, bar)?
            .capability(structure(Structure::Common, COMMON, &[]))?
            .capability(structure(Structure::Notify, DOORBELLS, &DOORBELL_STRIDE.to_le_bytes()))?
            .capability(structure(Structure::Isr, ISR, &[]))?
            .capability(structure(Structure::Device, DEVICE_CONFIG, &[]))?
            .capability(
                structure(Structure::PciConfig, 0, &[0; 4])
                    .writable(BarWindow::BAR_AT, &[0xff])
                    .writable(BarWindow::OFFSET_AT, &[0xff; 8])
                    .window(BarWindow::DATA_AT, window),
            )?
            .msix(Arc::clone(msix), BAR, TABLE, PENDING)
    }

    fn offered(&self) -> u64 {
        self.device.features() | feature::VERSION_1 | feature::EVENT_IDX | feature::INDIRECT_DESC
    }

    fn read_common(&self, offset: u64, data: &mut [u8]) {
        let state = self.lock();
        let status = state.phase.status() | state.failed | self.link.status();
        let bytes = state.registers.bytes(self.offered(), status, &self.link);
        data.fill(0);
        let bytes = bytes.iter().skip(usize::try_from(offset).unwrap_or(usize::MAX));
        for (out, &byte) in data.iter_mut().zip(bytes) {
            *out = byte;
        }
    }

    fn write_common(&self, offset: u64, data: &[u8]) {
        let mut state = self.lock();
        if let (configuration::STATUS, &[status]) = (offset, data) {
            self.write_status(&mut state, status);
        } else {
            let negotiating = state.phase.negotiates();
            let live = state.phase.is_live();
            state.registers.write(offset, data, (negotiating, live), &self.link);
        }
    }

    fn write_status(&self, state: &mut State, status: u8) {
        let acceptable = || {
            let wanted = state.registers.driver_features;
            wanted & !self.offered() == 0 && wanted & feature::VERSION_1 != 0
        };
        let (next, step) = state.phase.after(status, acceptable);
        state.failed |= status & status::FAILED;
        match step {
            Step::Nothing => state.phase = next,
            Step::Reset => self.clear(state),
            Step::Activate => match self.activate(state) {
                Ok(()) => state.phase = next,
                Err(error) => {
                    // The driver does see DRIVER_OK, and then that the device needs a reset.
                    state.phase = Phase::Live;
                    self.link.give_up(&error);
                }
            },
        }
    }

    fn activate(&self, state: &State) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let registers = &state.registers;
        let features = registers.driver_features;
        let signals: Arc<dyn Signals> = Arc::clone(&self.link) as _;
        let event_idx = features & feature::EVENT_IDX != 0;
        let queue = |(index, setup, ends): (u16, _, Ends<'_>)| {
            VirtQueue::new(index, setup, event_idx, &self.memory, ends, &signals)
        };
        let enabled = registers.enabled().filter_map(|(index, setup)| {
            let kick = self.doorbells.event(index)?;
            let position = state.positions.get(usize::from(index))?;
            Some((index, setup, Ends { kick, position }))
        });
        let queues = enabled.map(queue).collect::<Result<Vec<_>, RingError>>()?;
        let activation = Activation {
            memory: self.memory.clone(),
            queues,
            features,
            signals: Arc::clone(&signals),
        };
        Ok(self.device.activate(activation)?)
    }

    /// Back to where the driver began.
    fn clear(&self, state: &mut State) {
        drop(self.device.deactivate());
        state.phase = Phase::Blank;
        state.failed = 0;
        state.registers = Registers::new(self.device.queue_sizes());
        state.positions.iter().for_each(|position| position.set((0, 0)));
        self.link.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device for VirtioPci {
    fn name(&self) -> &str {
        self.device.name()
    }

    /// Nothing runs before the driver is ready.
    fn start(&self) {
        self.motion.begin();
    }

    fn pause(&self) -> Draining {
        self.motion.hold();
        self.device.pause()
    }

    fn resume(&self) {
        self.motion.begin();
        if self.loaded.swap(false, Ordering::SeqCst) {
            self.interrupt_again();
        }
        self.device.resume();
    }

    fn reset(&self) {
        self.clear(&mut self.lock());
    }

    fn migration(&self) -> Migration<'_> {
        match self.device.migration() {
            Migration::Immovable { why } => Migration::Immovable { why },
            Migration::Stateless | Migration::Sections(_) => Migration::Sections(self),
        }
    }
}

/// `struct virtio_pci_cap` behind its ID and next pointer, with what follows it.
fn structure(kind: Structure, offset: u32, more: &[u8]) -> Capability {
    let length = 16 + u8::try_from(more.len()).unwrap_or_default();
    let size = if matches!(kind, Structure::PciConfig) {
        0
    } else {
        PART_SIZE
    };
    let mut body = vec![length, kind as u8, BAR, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(size.to_le_bytes());
    body.extend(more);
    Capability::new(CAPABILITY_VENDOR, body)
}

struct CommonPart(Arc<VirtioPci>);

impl BusHandler for CommonPart {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.read_common(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.write_common(offset, data);
    }
}

struct ConfigPart(Arc<VirtioPci>);

impl BusHandler for ConfigPart {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.device.config_read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.device.config_write(offset, data);
    }
}
