//! The driver's half of a split ring.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use guestmem::{Bytes, GuestAddress, GuestMemory};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// Descriptor flag: the buffer is a table of descriptors.
const INDIRECT: u16 = 4;

/// One buffer of a chain: guest-physical address and length in bytes.
#[derive(Debug, Clone, Copy)]
pub enum Buf {
    /// The device reads it.
    Readable(u64, u32),
    /// The device writes it.
    Writable(u64, u32),
}

/// A chain that came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// Its head.
    pub head: u16,
    /// Bytes the device says it wrote.
    pub len: u32,
}

/// A split ring from the driver's side.
pub struct MockRing {
    memory: GuestMemory,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
    size: u16,
    event_idx: bool,
    free: Vec<u16>,
    /// head → its descriptors.
    busy: BTreeMap<u16, Vec<u16>>,
    next_available: u16,
    next_used: u16,
}

impl MockRing {
    /// Zeroed rings of `size` entries at `base`: 32 KiB at most for up to 512 entries.
    pub(super) fn new(memory: &GuestMemory, base: u64, size: u16, event_idx: bool) -> Self {
        memory.write_slice(&[0; 0x8000], GuestAddress(base)).unwrap();
        Self {
            memory: memory.clone(),
            descriptors: base,
            available: base + 0x4000,
            used: base + 0x6000,
            size,
            event_idx,
            free: (0..size).rev().collect(),
            busy: BTreeMap::new(),
            next_available: 0,
            next_used: 0,
        }
    }

    /// Entries.
    pub const fn size(&self) -> u16 {
        self.size
    }

    /// Makes a chain of `bufs` available, without ringing. Returns its head.
    pub fn add(&mut self, bufs: &[Buf]) -> u16 {
        let chain: Vec<u16> = bufs
            .iter()
            .map(|_| self.free.pop().expect("a free descriptor"))
            .collect();
        for (place, buf) in bufs.iter().enumerate() {
            let next = chain.get(place + 1).copied();
            let (gpa, len, flags) = flags_of(*buf);
            let flags = flags | next.map_or(0, |_| NEXT);
            self.write_descriptor(chain[place], gpa, len, (flags, next.unwrap_or(0)));
        }
        let head = chain[0];
        self.busy.insert(head, chain);
        self.offer(head);
        head
    }

    /// Like [`MockRing::add`], with the chain in an indirect table at `table`.
    pub fn add_indirect(&mut self, table: u64, bufs: &[Buf]) -> u16 {
        let head = self.free.pop().expect("a free descriptor");
        for (place, buf) in (0..).zip(bufs) {
            let last = usize::from(place) + 1 == bufs.len();
            let (gpa, len, flags) = flags_of(*buf);
            let link = if last { (flags, 0) } else { (flags | NEXT, place + 1) };
            self.write_descriptor_at(table + u64::from(place) * 16, gpa, len, link);
        }
        let length = u32::try_from(bufs.len() * 16).unwrap();
        self.write_descriptor(head, table, length, (INDIRECT, 0));
        self.busy.insert(head, vec![head]);
        self.offer(head);
        head
    }

    /// Writes any descriptor: flags and next are `link`.
    pub fn write_descriptor(&self, index: u16, gpa: u64, len: u32, link: (u16, u16)) {
        self.write_descriptor_at(self.descriptors + u64::from(index) * 16, gpa, len, link);
    }

    fn write_descriptor_at(&self, at: u64, gpa: u64, len: u32, link: (u16, u16)) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&gpa.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&link.0.to_le_bytes());
        bytes[14..].copy_from_slice(&link.1.to_le_bytes());
        self.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
    }

    /// Makes the chain at `head` available, whatever it is.
    pub fn offer(&mut self, head: u16) {
        let entry = self.available + 4 + u64::from(self.next_available % self.size) * 2;
        self.memory.write_obj(head, GuestAddress(entry)).unwrap();
        self.next_available = self.next_available.wrapping_add(1);
        self.set_available_index(self.next_available);
    }

    /// Sets the available index, whatever the ring holds.
    pub fn set_available_index(&self, index: u16) {
        self.memory
            .store(index, GuestAddress(self.available + 2), Ordering::Release)
            .unwrap();
    }

    /// Asks for an interrupt only after `count` more used chains (with `EVENT_IDX`).
    pub fn coalesce(&self, count: u16) {
        let event = self.next_used.wrapping_add(count).wrapping_sub(1);
        let place = self.available + 4 + u64::from(self.size) * 2;
        self.memory.store(event, GuestAddress(place), Ordering::SeqCst).unwrap();
    }

    /// Next used chain, if there is one.
    pub fn take_used(&mut self) -> Option<Used> {
        let index: u16 = self
            .memory
            .load(GuestAddress(self.used + 2), Ordering::Acquire)
            .unwrap();
        if index == self.next_used {
            return None;
        }
        let entry = self.used + 4 + u64::from(self.next_used % self.size) * 8;
        let head: u32 = self.memory.read_obj(GuestAddress(entry)).unwrap();
        let len = self.memory.read_obj(GuestAddress(entry + 4)).unwrap();
        let head = u16::try_from(head).unwrap();
        self.next_used = self.next_used.wrapping_add(1);
        if self.event_idx {
            self.coalesce(1);
        }
        if let Some(chain) = self.busy.remove(&head) {
            self.free.extend(chain);
        }
        Some(Used { head, len })
    }
}

fn flags_of(buf: Buf) -> (u64, u32, u16) {
    match buf {
        Buf::Readable(gpa, len) => (gpa, len, 0),
        Buf::Writable(gpa, len) => (gpa, len, WRITE),
    }
}
