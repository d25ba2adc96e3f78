//! Logical units: what the host attached, and what the guest made of it.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};

use disk::{Access, Discard, Disk, DiskError, DiskIo, Geometry};
use telemetry::RateLimited;

use super::address::Lun;
use super::config::{LunOptions, Medium};
use super::sense::{Key, Sense};
use crate::figures::DiskFigures;

/// Bytes of a block of a CD or DVD.
pub(super) const CD_BLOCK: u32 = 2048;
/// Most bytes of a serial number.
const SERIAL_MAX: usize = 64;

/// Something that the guest is to be told before its next command is done (SAM-5 §5.14). A bit each; the lowest comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Attention {
    /// Attached, or the whole device was reset.
    PowerOn = 1,
    /// Reset by a task management function.
    Reset = 2,
    /// Another medium may be in the drive.
    Medium = 4,
    Capacity = 8,
    /// Units of the same target came or went.
    Units = 16,
}

impl Attention {
    const ALL: [Self; 5] = [Self::PowerOn, Self::Reset, Self::Medium, Self::Capacity, Self::Units];

    const fn code(self) -> (u8, u8) {
        match self {
            Self::PowerOn => (0x29, 0x00),
            Self::Reset => (0x29, 0x03),
            Self::Medium => (0x28, 0x00),
            Self::Capacity => (0x2a, 0x09),
            Self::Units => (0x3f, 0x0e),
        }
    }
}

savestate::record! {
    /// What the guest made of a unit.
    pub(super) struct UnitState {
        pub(super) target: u8,
        pub(super) unit: u16,
        pub(super) write_cache: bool,
        pub(super) stopped: bool,
        pub(super) ejected: bool,
        pub(super) locked: bool,
        pub(super) arrived: bool,
        /// A bit for each thing to be told before the next command.
        pub(super) attentions: u8,
    }
}

/// One logical unit. Shared by all workers.
pub(super) struct Unit {
    pub(super) lun: Lun,
    pub(super) medium: Medium,
    /// What the guest is told, or empty.
    pub(super) serial: String,
    /// The serial number, or the place where there is none: unique in the machine.
    pub(super) identity: String,
    disk: Arc<dyn Disk>,
    /// As it was when the unit was attached; only the size is looked up again.
    geometry: Geometry,
    /// Writes need not be durable before the guest flushes.
    pub(super) write_cache: AtomicBool,
    pub(super) stopped: AtomicBool,
    pub(super) ejected: AtomicBool,
    pub(super) locked: AtomicBool,
    /// A CD came into the drive, which GET EVENT STATUS NOTIFICATION has not told.
    pub(super) arrived: AtomicBool,
    attentions: AtomicU8,
    pub(super) figures: Arc<DiskFigures>,
    /// For commands that failed: the guest decides how many there are.
    pub(super) log: RateLimited,
    /// Workers, and commands in flight, that have a queue of the disk.
    seats: Mutex<usize>,
    left: Condvar,
}

impl Unit {
    pub(super) fn new(host: &str, lun: Lun, disk: Arc<dyn Disk>, options: &LunOptions) -> Self {
        let printable = |char: char| if matches!(char, ' '..='~') { char } else { '_' };
        let serial: String = options.serial.chars().map(printable).take(SERIAL_MAX).collect();
        let identity = if serial.is_empty() {
            format!("{host}-{}-{}", lun.target(), lun.unit())
        } else {
            serial.clone()
        };
        Self {
            lun,
            medium: options.medium,
            serial,
            identity,
            geometry: disk.geometry(),
            disk,
            write_cache: AtomicBool::new(true),
            stopped: AtomicBool::new(false),
            ejected: AtomicBool::new(false),
            locked: AtomicBool::new(false),
            arrived: AtomicBool::new(false),
            attentions: AtomicU8::new(Attention::PowerOn as u8),
            figures: Arc::default(),
            log: RateLimited::new(),
            seats: Mutex::new(0),
            left: Condvar::new(),
        }
    }

    /// Bytes of a block.
    pub(super) const fn block_bytes(&self) -> u32 {
        match self.medium {
            Medium::Disk => self.geometry.logical_sector_bytes,
            Medium::CdRom => CD_BLOCK,
        }
    }

    /// Blocks now.
    pub(super) fn blocks(&self) -> u64 {
        let block = u64::from(self.block_bytes());
        self.disk.geometry().size_bytes.checked_div(block).unwrap_or(0)
    }

    /// Blocks the store writes without reading first, as a power of two.
    pub(super) fn physical_exponent(&self) -> u32 {
        let blocks = self.geometry.physical_sector_bytes.checked_div(self.block_bytes());
        blocks.and_then(u32::checked_ilog2).unwrap_or(0)
    }

    pub(super) fn is_writable(&self) -> bool {
        self.medium == Medium::Disk && self.geometry.access == Access::ReadWrite
    }

    /// Smallest piece that gives space back, blocks; `None` if no space is ever given back.
    pub(super) fn unmap_granularity(&self) -> Option<u32> {
        match self.geometry.discard {
            Discard::Supported { granularity_bytes } if self.is_writable() => {
                Some((granularity_bytes.checked_div(self.block_bytes()).unwrap_or(1)).max(1))
            }
            _ => None,
        }
    }

    /// Writes are answered as soon as they are done, durable or not.
    pub(super) fn has_write_cache(&self) -> bool {
        self.is_writable() && self.write_cache.load(Ordering::Relaxed)
    }

    pub(super) fn state(&self) -> UnitState {
        UnitState {
            target: self.lun.target(),
            unit: self.lun.unit(),
            write_cache: self.write_cache.load(Ordering::SeqCst),
            stopped: self.stopped.load(Ordering::SeqCst),
            ejected: self.ejected.load(Ordering::SeqCst),
            locked: self.locked.load(Ordering::SeqCst),
            arrived: self.arrived.load(Ordering::SeqCst),
            attentions: self.attentions.load(Ordering::SeqCst),
        }
    }

    /// Becomes what was saved. Attentions that there are not are forgotten.
    pub(super) fn set_state(&self, saved: &UnitState) {
        let known = Attention::ALL.iter().fold(0, |bits, &one| bits | one as u8);
        self.write_cache.store(saved.write_cache, Ordering::SeqCst);
        self.stopped.store(saved.stopped, Ordering::SeqCst);
        self.ejected.store(saved.ejected, Ordering::SeqCst);
        self.locked.store(saved.locked, Ordering::SeqCst);
        self.arrived.store(saved.arrived, Ordering::SeqCst);
        self.attentions.store(saved.attentions & known, Ordering::SeqCst);
    }

    pub(super) fn raise(&self, attention: Attention) {
        self.attentions.fetch_or(attention as u8, Ordering::SeqCst);
    }

    /// The most urgent thing to tell, which counts as told by this. Cheap when there is none.
    pub(super) fn take_attention(&self) -> Option<Sense> {
        if self.attentions.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let told = Attention::ALL.into_iter().find(|&one| self.clear(one))?;
        Some(Sense::new(Key::UnitAttention, told.code()))
    }

    /// True if `attention` had been raised.
    pub(super) fn clear(&self, attention: Attention) -> bool {
        let bit = attention as u8;
        self.attentions.fetch_and(!bit, Ordering::SeqCst) & bit != 0
    }

    /// Back to how it was attached, for `reason`.
    pub(super) fn reset(&self, reason: Attention) {
        self.write_cache.store(true, Ordering::Relaxed);
        self.locked.store(false, Ordering::Relaxed);
        self.stopped.store(false, Ordering::Relaxed);
        self.ejected.store(false, Ordering::Relaxed);
        self.arrived.store(false, Ordering::Relaxed);
        self.attentions.store(reason as u8, Ordering::SeqCst);
    }

    /// Blocks until no worker has a queue of the disk.
    pub(super) fn wait_left(&self) {
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        while *seats > 0 {
            seats = self.left.wait(seats).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A unit as one worker has it: with a queue of its disk.
pub(super) struct Seat {
    /// Dropped before `held` tells that it was.
    pub(super) io: Rc<dyn DiskIo>,
    held: Held,
}

struct Held(Arc<Unit>);

impl Drop for Held {
    fn drop(&mut self) {
        let mut seats = self.0.seats.lock().unwrap_or_else(PoisonError::into_inner);
        *seats = seats.saturating_sub(1);
        self.0.left.notify_all();
    }
}

impl Seat {
    /// Called on the thread of a worker.
    fn open(unit: &Arc<Unit>) -> Result<Self, DiskError> {
        let io = unit.disk.open_queue()?;
        *unit.seats.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Ok(Self {
            io,
            held: Held(Arc::clone(unit)),
        })
    }

    pub(super) fn unit(&self) -> &Unit {
        &self.held.0
    }
}

/// All units of a host.
#[derive(Default)]
pub(super) struct Units {
    table: RwLock<BTreeMap<Lun, Arc<Unit>>>,
    /// Goes up with every change of the table.
    version: AtomicU64,
}

impl Units {
    /// Runs `act` on the table; the workers look again afterwards.
    pub(super) fn change<T>(&self, act: impl FnOnce(&mut BTreeMap<Lun, Arc<Unit>>) -> T) -> T {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let result = act(&mut table);
        self.version.fetch_add(1, Ordering::SeqCst);
        result
    }

    pub(super) fn get(&self, lun: Lun) -> Option<Arc<Unit>> {
        self.read(|table| table.get(&lun).cloned())
    }

    pub(super) fn read<T>(&self, look: impl FnOnce(&BTreeMap<Lun, Arc<Unit>>) -> T) -> T {
        look(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn of_target(&self, target: u8) -> Vec<Arc<Unit>> {
        let of_target = |(_, unit): (&Lun, &Arc<Unit>)| (unit.lun.target() == target).then(|| Arc::clone(unit));
        self.read(|table| table.iter().filter_map(of_target).collect())
    }

    pub(super) fn has_target(&self, target: u8) -> bool {
        self.read(|table| table.keys().any(|lun| lun.target() == target))
    }
}

/// What a worker finds at an address.
pub(super) enum Found {
    Seat(Rc<Seat>),
    /// There is no such unit.
    Nobody,
    /// Its disk can not be opened.
    Broken(Arc<Unit>, DiskError),
}

/// The units one worker has been asked for.
#[derive(Default)]
pub(super) struct Seats {
    seats: BTreeMap<Lun, Rc<Seat>>,
    version: u64,
}

impl Seats {
    /// Lets go of units that are gone.
    pub(super) fn refresh(&mut self, units: &Units) {
        let version = units.version.load(Ordering::SeqCst);
        if version != self.version {
            self.version = version;
            let is_same = |lun: &Lun, seat: &Rc<Seat>| {
                units.read(|table| table.get(lun).is_some_and(|unit| Arc::ptr_eq(unit, &seat.held.0)))
            };
            self.seats.retain(|lun, seat| is_same(lun, seat));
        }
    }

    pub(super) fn find(&mut self, lun: Lun, units: &Units) -> Found {
        self.refresh(units);
        if let Some(seat) = self.seats.get(&lun) {
            return Found::Seat(Rc::clone(seat));
        }
        // Counted while the table is locked: who takes a unit out of it afterwards waits for this seat.
        let opened = units.read(|table| table.get(&lun).map(|unit| (Arc::clone(unit), Seat::open(unit))));
        match opened {
            None => Found::Nobody,
            Some((unit, Err(error))) => Found::Broken(unit, error),
            Some((_, Ok(seat))) => {
                let seat = Rc::new(seat);
                self.seats.insert(lun, Rc::clone(&seat));
                Found::Seat(seat)
            }
        }
    }
}
