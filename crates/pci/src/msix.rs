//! MSI-X: the vector table, the pending bits, and who may interrupt when (PCI 3.0 §6.8.2).
//!
//! ```text
//!   trigger(v) ──▶ enabled? ──no──▶ lost
//!                     │yes
//!                  function or vector masked? ──yes──▶ pending[v] = 1
//!                     │no                                  │ both unmasked
//!                  MsiRoutes::deliver(v) ◀─────────────────┘ pending[v] = 0
//! ```
//!
//! One lock covers table and pending bits, and is held while a message is delivered: a vector that a guest has masked stays
//! silent from then on, and a message that meets a vanishing route is pending rather than lost.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use device::{BusHandler, MsiMessage, MsiRoutes};

/// Message control: MSI-X enable.
const CONTROL_ENABLE: u16 = 1 << 15;
/// Message control: mask every vector.
const CONTROL_MASK_ALL: u16 = 1 << 14;
/// Most vectors a function can have (table size field is 11 bits, minus one).
const VECTORS_MAX: u16 = 2048;
/// Bytes of a table entry.
const ENTRY_SIZE: usize = 16;

#[derive(Clone, Copy)]
struct Vector {
    address: u64,
    data: u32,
    masked: bool,
    pending: bool,
    routed: Option<MsiMessage>,
}

impl Vector {
    /// State after reset: masked, no message.
    const RESET: Self = Self {
        address: 0,
        data: 0,
        masked: true,
        pending: false,
        routed: None,
    };

    fn bytes(&self) -> [u8; ENTRY_SIZE] {
        let control = u128::from(self.masked) << 96;
        let data = u128::from(self.data) << 64;
        (control | data | u128::from(self.address)).to_le_bytes()
    }

    fn set_bytes(&mut self, bytes: [u8; ENTRY_SIZE]) {
        let [a0, a1, a2, a3, a4, a5, a6, a7, d0, d1, d2, d3, control, ..] = bytes;
        self.address = u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]) & !0b11;
        self.data = u32::from_le_bytes([d0, d1, d2, d3]);
        self.masked = control & 1 != 0;
    }
}

savestate::record! {
    /// A vector as it is saved. Enable and function mask are in the control register, routes follow from all of it.
    pub(crate) struct VectorState {
        address: u64,
        data: u32,
        masked: bool,
        pending: bool,
    }
}

struct State {
    enabled: bool,
    masked: bool,
    vectors: Vec<Vector>,
}

/// The MSI-X capability of one function. Its table and pending bits are parts of a BAR, its control register lies in
/// configuration space.
pub struct Msix {
    routes: Arc<dyn MsiRoutes>,
    state: Mutex<State>,
    vectors: u16,
}

impl Msix {
    pub(crate) const CAPABILITY_ID: u8 = 0x11;
    pub(crate) const CONTROL_WRITABLE: u16 = CONTROL_ENABLE | CONTROL_MASK_ALL;

    /// A capability of `vectors` vectors (1–2048, else the nearest), all masked.
    pub fn new(vectors: u16, routes: Arc<dyn MsiRoutes>) -> Arc<Self> {
        let vectors = vectors.clamp(1, VECTORS_MAX);
        Arc::new(Self {
            routes,
            state: Mutex::new(State {
                enabled: false,
                masked: false,
                vectors: vec![Vector::RESET; usize::from(vectors)],
            }),
            vectors,
        })
    }

    /// Number of vectors.
    pub const fn vectors(&self) -> u16 {
        self.vectors
    }

    /// Bytes of the vector table.
    pub fn table_size(&self) -> u64 {
        u64::from(self.vectors) * 16
    }

    /// Bytes of the pending bits: one bit per vector in whole 64-bit words.
    pub fn pending_size(&self) -> u64 {
        u64::from(self.vectors.div_ceil(64)) * 8
    }

    /// The vector table, to be put into a BAR.
    pub fn table(self: &Arc<Self>) -> Arc<dyn BusHandler> {
        Arc::new(Table(Arc::clone(self)))
    }

    /// The pending bits, to be put into a BAR.
    pub fn pending(self: &Arc<Self>) -> Arc<dyn BusHandler> {
        Arc::new(Pending(Arc::clone(self)))
    }

    /// Interrupts with `vector`: now, when it is unmasked, or, with MSI-X off or no such vector, never. Callable from any thread.
    pub fn trigger(&self, vector: u16) {
        let mut state = self.lock();
        if !state.enabled {
            return;
        }
        let masked = state.masked;
        if let Some(entry) = state.vectors.get_mut(usize::from(vector)) {
            if masked || entry.masked {
                entry.pending = true;
            } else {
                self.routes.deliver(vector);
            }
        }
    }

    /// The message control register of a capability that is off.
    pub(crate) const fn size_field(&self) -> u16 {
        self.vectors - 1
    }

    /// The guest wrote message control.
    pub(crate) fn set_control(&self, control: u16) {
        let mut state = self.lock();
        state.enabled = control & CONTROL_ENABLE != 0;
        state.masked = control & CONTROL_MASK_ALL != 0;
        for vector in 0..self.vectors {
            self.settle(&mut state, vector);
        }
    }

    /// Back to power-on: off, all masked, nothing pending.
    pub(crate) fn reset(&self) {
        let mut state = self.lock();
        state.enabled = false;
        state.masked = false;
        for vector in 0..self.vectors {
            self.settle(&mut state, vector);
        }
        state.vectors.fill(Vector::RESET);
    }

    pub(crate) fn state(&self) -> Vec<VectorState> {
        let state = self.lock();
        let saved = |vector: &Vector| VectorState {
            address: vector.address,
            data: vector.data,
            masked: vector.masked,
            pending: vector.pending,
        };
        state.vectors.iter().map(saved).collect()
    }

    /// Becomes what was saved, with `control` as message control. What is pending and not masked is delivered.
    pub(crate) fn set_state(&self, saved: &[VectorState], control: u16) -> Result<(), String> {
        let mut state = self.lock();
        if saved.len() != state.vectors.len() {
            let (now, then) = (state.vectors.len(), saved.len());
            return Err(format!("it has {now} interrupt vectors, and had {then}"));
        }
        if saved.iter().any(|vector| vector.address & 0b11 != 0) {
            return Err("an interrupt message has an address that is not aligned".to_owned());
        }
        for (vector, saved) in state.vectors.iter_mut().zip(saved) {
            vector.address = saved.address;
            vector.data = saved.data;
            vector.masked = saved.masked;
            vector.pending = saved.pending;
        }
        drop(state);
        self.set_control(control);
        Ok(())
    }

    /// Brings the route of `vector` in line with its masks, and sends what waited.
    fn settle(&self, state: &mut State, vector: u16) {
        let (enabled, masked) = (state.enabled, state.masked);
        let Some(entry) = state.vectors.get_mut(usize::from(vector)) else {
            return;
        };
        let wanted = (enabled && !masked && !entry.masked).then_some(MsiMessage {
            address: entry.address,
            data: entry.data,
        });
        if entry.routed != wanted {
            self.routes.route(vector, wanted);
            entry.routed = wanted;
        }
        if !enabled {
            entry.pending = false;
        } else if wanted.is_some() && entry.pending {
            entry.pending = false;
            self.routes.deliver(vector);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Vector and byte within its entry.
fn entry_at(offset: u64) -> Option<(usize, usize)> {
    let offset = usize::try_from(offset).ok()?;
    Some((offset / ENTRY_SIZE, offset % ENTRY_SIZE))
}

struct Table(Arc<Msix>);

impl BusHandler for Table {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let state = self.0.lock();
        if let Some((index, inside)) = entry_at(offset)
            && let Some(entry) = state.vectors.get(index)
        {
            let bytes = entry.bytes();
            for (out, &byte) in data.iter_mut().zip(bytes.iter().skip(inside)) {
                *out = byte;
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut state = self.0.lock();
        let Some((index, inside)) = entry_at(offset) else {
            return;
        };
        let Some(entry) = state.vectors.get_mut(index) else {
            return;
        };
        let mut bytes = entry.bytes();
        for (byte, &new) in bytes.iter_mut().skip(inside).zip(data) {
            *byte = new;
        }
        entry.set_bytes(bytes);
        if let Ok(vector) = u16::try_from(index) {
            self.0.settle(&mut state, vector);
        }
    }
}

struct Pending(Arc<Msix>);

impl BusHandler for Pending {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let state = self.0.lock();
        let first = usize::try_from(offset).unwrap_or(usize::MAX).saturating_mul(8);
        for (index, out) in data.iter_mut().enumerate() {
            let vectors = state.vectors.iter().skip(first.saturating_add(index * 8)).take(8);
            *out = vectors
                .enumerate()
                .fold(0, |bits, (bit, v)| bits | u8::from(v.pending) << bit);
        }
    }

    /// Read-only.
    fn write(&self, _offset: u64, _data: &[u8]) {}
}
