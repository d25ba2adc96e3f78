//! The root bus of one segment: a host bridge at 00:00.0 and 31 more slots of one function each.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use device::{Device, Draining, Migrate, Migration, Motion, SaveError};
use savestate::{LoadError, SaveState, Section, Sections};

use crate::address::Windows;
use crate::endpoint::{BARS, Endpoint, Identity};
use crate::function::{BarSpace, Function, FunctionState, Surroundings};

/// Slots on the bus (5 bits of the address).
pub const SLOTS: u8 = 32;

/// The host bridge: "PCI host bridge" of vendor Red Hat, class 06 00. No driver binds to it.
const HOST_BRIDGE: Identity = Identity {
    vendor: 0x1b36,
    device: 0x0008,
    revision: 0,
    class: [0x06, 0x00, 0x00],
    subsystem_vendor: 0,
    subsystem: 0,
};

/// Why nothing was plugged in or pulled out.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlugError {
    /// Not a slot for devices.
    #[error("pci slot {slot} does not exist: devices sit in slots 1 to 31")]
    NoSuchSlot {
        /// The refused slot.
        slot: u8,
    },
    /// Somebody sits there.
    #[error("pci slot {slot} is taken")]
    SlotTaken {
        /// The refused slot.
        slot: u8,
    },
    /// Nobody sits there.
    #[error("pci slot {slot} is empty")]
    SlotEmpty {
        /// The empty slot.
        slot: u8,
    },
    /// No window has room for a BAR.
    #[error("no address window has {size:#x} aligned bytes left for a bar of pci slot {slot}")]
    NoRoom {
        /// The slot that was to be filled.
        slot: u8,
        /// Size of the BAR, bytes.
        size: u64,
    },
}

savestate::section! {
    struct BusState = "pci-bus", version 1 {
        /// What the guest wrote last to the address port.
        ports_address: u32,
        slots: Vec<u8>,
    }
}

struct Seat {
    function: Arc<Function>,
    addresses: [Option<u64>; BARS],
}

/// The root bus. vCPUs reach it through [`crate::Ecam`] and [`crate::ConfigPorts`].
pub struct Root {
    space: Arc<dyn BarSpace>,
    windows: Arc<Mutex<Windows>>,
    seats: RwLock<BTreeMap<u8, Seat>>,
    /// The address register of [`crate::ConfigPorts`].
    ports_address: AtomicU32,
    motion: Motion,
}

impl Root {
    /// A bus with only its host bridge. `windows` are the guest-physical ranges BARs may lie in, the preferred one first.
    pub fn new(space: Arc<dyn BarSpace>, windows: Vec<Range<u64>>) -> Arc<Self> {
        let root = Self {
            space,
            windows: Arc::new(Mutex::new(Windows::new(windows))),
            seats: RwLock::default(),
            ports_address: AtomicU32::new(0),
            motion: Motion::default(),
        };
        let bridge = root.seat(Endpoint::new(&HOST_BRIDGE), [None; BARS]);
        root.seats
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(0, bridge);
        Arc::new(root)
    }

    /// Puts `endpoint` into slot 1–31 and gives its BARs addresses. Memory decode is off until the guest turns it on.
    pub fn plug(&self, slot: u8, endpoint: Endpoint) -> Result<(), PlugError> {
        if slot == 0 || slot >= SLOTS {
            return Err(PlugError::NoSuchSlot { slot });
        }
        let mut seats = self.seats.write().unwrap_or_else(PoisonError::into_inner);
        if seats.contains_key(&slot) {
            return Err(PlugError::SlotTaken { slot });
        }
        let mut addresses = [None; BARS];
        let mut windows = lock(&self.windows);
        for (address, bar) in addresses.iter_mut().zip(&endpoint.bars) {
            let Some(bar) = bar else { continue };
            *address = windows.take(bar.size);
            if address.is_none() {
                addresses.iter().flatten().for_each(|&base| windows.give_back(base));
                return Err(PlugError::NoRoom { slot, size: bar.size });
            }
        }
        seats.insert(slot, self.seat(endpoint, addresses));
        Ok(())
    }

    /// Takes the function in `slot` away; its BARs are unmapped before this returns.
    pub fn unplug(&self, slot: u8) -> Result<(), PlugError> {
        if slot == 0 || slot >= SLOTS {
            return Err(PlugError::NoSuchSlot { slot });
        }
        let seat = {
            let mut seats = self.seats.write().unwrap_or_else(PoisonError::into_inner);
            seats.remove(&slot).ok_or(PlugError::SlotEmpty { slot })?
        };
        seat.function.reset();
        let mut windows = lock(&self.windows);
        seat.addresses
            .iter()
            .flatten()
            .for_each(|&base| windows.give_back(base));
        Ok(())
    }

    pub(crate) fn ports_address(&self) -> u32 {
        self.ports_address.load(Ordering::Relaxed)
    }

    pub(crate) fn set_ports_address(&self, address: u32) {
        self.ports_address.store(address, Ordering::Relaxed);
    }

    fn functions(&self) -> Vec<(u8, Arc<Function>)> {
        let seats = self.seats.read().unwrap_or_else(PoisonError::into_inner);
        let of = |(&slot, seat): (&u8, &Seat)| (slot, Arc::clone(&seat.function));
        seats.iter().map(of).collect()
    }

    /// A configuration read of `slot`, all ones where nobody sits.
    pub(crate) fn read(&self, slot: u8, offset: usize, data: &mut [u8]) {
        match self.function(slot) {
            Some(function) => function.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A configuration write to `slot`.
    pub(crate) fn write(&self, slot: u8, offset: usize, data: &[u8]) {
        if let Some(function) = self.function(slot) {
            function.write(offset, data);
        }
    }

    fn function(&self, slot: u8) -> Option<Arc<Function>> {
        let seats = self.seats.read().unwrap_or_else(PoisonError::into_inner);
        seats.get(&slot).map(|seat| Arc::clone(&seat.function))
    }

    fn seat(&self, endpoint: Endpoint, addresses: [Option<u64>; BARS]) -> Seat {
        let windows = Arc::clone(&self.windows);
        let surroundings = Surroundings {
            space: Arc::clone(&self.space),
            allowed: Box::new(move |base, size| lock(&windows).contain(base, size)),
        };
        let function = Arc::new(Function::new(endpoint, addresses, surroundings));
        Seat { function, addresses }
    }
}

/// The bus as a part of its machine: configuration space of every function, BARs where the guest put them, MSI-X.
impl Device for Root {
    fn name(&self) -> &'static str {
        "pci"
    }

    fn start(&self) {
        self.motion.begin();
    }

    /// Nothing happens here but by the hands of vCPUs and of the devices in the slots.
    fn pause(&self) -> Draining {
        self.motion.hold();
        Draining::done()
    }

    fn resume(&self) {
        self.motion.begin();
    }

    /// Every function back to power-on.
    fn reset(&self) {
        self.set_ports_address(0);
        self.functions().iter().for_each(|(_, function)| function.reset());
    }

    fn migration(&self) -> Migration<'_> {
        Migration::Sections(self)
    }
}

impl Migrate for Root {
    fn save(&self) -> Result<Vec<Section>, SaveError> {
        self.motion.may_save(self.name())?;
        let functions = self.functions();
        let bus = BusState {
            ports_address: self.ports_address(),
            slots: functions.iter().map(|(slot, _)| *slot).collect(),
        };
        let saved = functions
            .iter()
            .map(|(slot, function)| function.state().save(&seat_name(*slot)));
        Ok(std::iter::once(bus.save(self.name())).chain(saved).collect())
    }

    /// The slots are filled as they were, and nothing is mapped yet. Where two functions claim one place, the lower slot gets it.
    fn load(&self, sections: &mut Sections) -> Result<(), LoadError> {
        self.motion.may_load(self.name())?;
        let (bus, section) = sections.take::<BusState>(self.name())?;
        let functions = self.functions();
        let slots: Vec<u8> = functions.iter().map(|(slot, _)| *slot).collect();
        if bus.slots != slots {
            let why = format!("devices are in slots {slots:?}, and were in {:?}", bus.slots);
            return Err(LoadError::unfit(&section, why));
        }
        for (slot, function) in functions {
            let (state, section) = sections.take::<FunctionState>(&seat_name(slot))?;
            function
                .set_state(&state)
                .map_err(|why| LoadError::unfit(&section, why))?;
        }
        self.set_ports_address(bus.ports_address);
        Ok(())
    }
}

fn seat_name(slot: u8) -> String {
    format!("slot{slot}")
}

fn lock(windows: &Mutex<Windows>) -> MutexGuard<'_, Windows> {
    windows.lock().unwrap_or_else(PoisonError::into_inner)
}
