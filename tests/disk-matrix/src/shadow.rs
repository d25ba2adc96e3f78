//! The model: what a disk has to hold, and which ranges are spoken for by requests in flight.

use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Result, ensure};

use crate::random::Random;

/// Unit of the model, bytes.
pub const SECTOR: usize = 512;

/// A write that was dropped half-way: the range holds the old or the new bytes.
#[derive(Debug)]
pub struct Abandoned {
    /// Where, bytes.
    pub offset: usize,
    /// What was to be written.
    pub bytes: Vec<u8>,
}

/// The contents that a disk should have.
pub struct Shadow(Mutex<State>);

struct State {
    bytes: Vec<u8>,
    busy: Vec<(usize, usize)>,
    abandoned: Vec<Abandoned>,
    growing: bool,
}

impl Shadow {
    /// A model with these contents.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Mutex::new(State {
            bytes,
            busy: Vec::new(),
            abandoned: Vec::new(),
            growing: false,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The contents, copied.
    pub fn contents(&self) -> Vec<u8> {
        self.lock().bytes.clone()
    }

    /// A range of at most `longest` bytes that no request in flight touches, which is spoken for until [`Shadow::release`].
    /// Where nothing is found quickly: none.
    pub fn reserve(&self, random: &mut Random, longest: usize, align: usize) -> Option<(usize, usize)> {
        let mut state = self.lock();
        let size = state.bytes.len();
        for _ in 0..16 {
            let (offset, len) = somewhere(random, size, longest, align)?;
            let end = offset + len;
            if state
                .busy
                .iter()
                .all(|&(start, len)| end <= start || start + len <= offset)
            {
                state.busy.push((offset, len));
                return Some((offset, len));
            }
        }
        None
    }

    /// Ends what [`Shadow::reserve`] began; a change that completed is `new`.
    pub fn release(&self, offset: usize, len: usize, new: Option<&[u8]>) {
        let mut state = self.lock();
        state.busy.retain(|&range| range != (offset, len));
        if let (Some(new), Some(bytes)) = (new, state.bytes.get_mut(offset..offset + len)) {
            bytes.copy_from_slice(new);
        }
    }

    /// What a range should hold.
    pub fn expected(&self, offset: usize, len: usize) -> Vec<u8> {
        self.lock()
            .bytes
            .get(offset..offset + len)
            .map(<[u8]>::to_vec)
            .unwrap_or_default()
    }

    /// A write was dropped: its range stays spoken for until [`Shadow::settle`].
    pub fn abandon(&self, offset: usize, bytes: Vec<u8>) {
        self.lock().abandoned.push(Abandoned { offset, bytes });
    }

    /// What was dropped, once it is known to have ended: each is to be [`Shadow::settle`]d.
    pub fn abandoned(&self) -> Vec<Abandoned> {
        std::mem::take(&mut self.lock().abandoned)
    }

    /// Takes over what the range of a dropped write holds `now`: each sector has to be old or new.
    pub fn settle(&self, Abandoned { offset, bytes }: &Abandoned, now: &[u8]) -> Result<()> {
        let old = self.expected(*offset, bytes.len());
        let sectors = now.chunks(SECTOR).zip(old.chunks(SECTOR)).zip(bytes.chunks(SECTOR));
        for (index, ((now, old), new)) in sectors.enumerate() {
            ensure!(
                now == old || now == new,
                "the sector at {} is neither what it was nor what a write that was dropped put there",
                offset + index * SECTOR
            );
        }
        self.release(*offset, bytes.len(), Some(now));
        Ok(())
    }

    /// The size to grow to by `more`; none while somebody else grows it.
    pub fn begin_growth(&self, more: usize) -> Option<usize> {
        let mut state = self.lock();
        if state.growing {
            return None;
        }
        state.growing = true;
        Some(state.bytes.len() + more)
    }

    /// Growth has ended; new space reads as zeroes.
    pub fn end_growth(&self, size: Option<usize>) {
        let mut state = self.lock();
        state.growing = false;
        if let Some(size) = size {
            state.bytes.resize(size, 0);
        }
    }
}

/// A range: often small, often at multiples of something, often close to the beginning, where requests meet.
fn somewhere(random: &mut Random, size: usize, longest: usize, align: usize) -> Option<(usize, usize)> {
    let number = |value: u64| usize::try_from(value).unwrap_or(0);
    let longest = match random.below(10) {
        0..4 => 8 * SECTOR,
        4..8 => longest / 6,
        _ => longest,
    };
    let unit = if random.chance(35) { align } else { SECTOR };
    let sectors = number(random.below((longest / unit).max(1) as u64)) + 1;
    let len = (sectors * unit).min(size / SECTOR * SECTOR);
    let room = (size - len) / unit + 1;
    let room = if random.chance(40) { room.min(64) } else { room };
    let offset = number(random.below(room as u64)) * unit;
    (len > 0).then_some((offset, len))
}
