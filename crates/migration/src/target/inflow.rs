//! Puts arriving pages into memory: the threads of the page streams.

use std::io::Read;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::delta;
use crate::error::Failure;
use crate::machine::{Fault, TargetMemory};
use crate::page_set::{CHUNK_PAGES, PAGE_BYTES, PageSet, SharedPages, valid_mask};
use crate::wanted::Wanted;
use crate::wire::{KIND_PAGES, Message, Offers, PageFrame, WireError, bits, read_frame};

/// Pages are written as they come.
const COPYING: u8 = 0;
/// Everything before the start is here; no page may come.
const SEALED: u8 = 1;
/// The machine runs: only missing pages come.
const STARTED: u8 = 2;

/// What all page streams of a machine have in common.
#[derive(Debug)]
pub(super) struct Inflow<M> {
    memory: Arc<M>,
    pages: u64,
    stage: AtomicU8,
    /// Pages that were ever written. All others are zero as they are.
    touched: SharedPages,
    missing: OnceLock<SharedPages>,
    left: AtomicU64,
    /// Grows with every frame: somebody is there.
    pub(super) frames: AtomicU64,
    pub(super) wanted: Wanted,
}

/// What a page stream brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Brought {
    Pages,
    /// The last missing page is in its place.
    All,
    RoundEnd(u32),
}

fn unwritable(error: Fault) -> Failure {
    Failure::Machine {
        what: "write its memory",
        error,
    }
}

impl<M: TargetMemory> Inflow<M> {
    pub(super) fn new(memory: Arc<M>, pages: u64) -> Self {
        Self {
            memory,
            pages,
            stage: AtomicU8::new(COPYING),
            touched: SharedPages::new(&PageSet::empty(pages)),
            missing: OnceLock::new(),
            left: AtomicU64::new(0),
            frames: AtomicU64::new(0),
            wanted: Wanted::default(),
        }
    }

    /// Nothing more is written before the start, after which `missing` come.
    pub(super) fn seal(&self, missing: &PageSet) {
        self.left.store(missing.len(), Ordering::Release);
        // Sealed once: the caller takes one seal.
        let _ = self.missing.set(SharedPages::new(missing));
        self.stage.store(SEALED, Ordering::Release);
    }

    pub(super) fn started(&self) {
        self.stage.store(STARTED, Ordering::Release);
    }

    pub(super) fn left(&self) -> u64 {
        self.left.load(Ordering::Acquire)
    }

    pub(super) fn missing(&self) -> PageSet {
        self.missing
            .get()
            .map_or_else(|| PageSet::empty(self.pages), SharedPages::to_set)
    }

    pub(super) fn is_missing(&self, page: u64) -> bool {
        self.missing.get().is_some_and(|missing| missing.contains(page))
    }

    /// Reads and applies one frame of a page stream.
    pub(super) fn next(
        &self,
        reader: &mut dyn Read,
        rooms: &mut Rooms,
        stream: u8,
        agreed: Agreed,
    ) -> Result<Brought, Failure> {
        let broken = |error: WireError| Failure::Link { stream: "page", error };
        let kind = read_frame(&mut &mut *reader, &mut rooms.payload).map_err(broken)?;
        self.frames.fetch_add(1, Ordering::Relaxed);
        if kind == KIND_PAGES {
            let frame = PageFrame::decode(&rooms.payload).map_err(broken)?;
            return self.apply(&frame, &mut rooms.unpacked, Some(stream), agreed);
        }
        match Message::decode(kind, &rooms.payload).map_err(broken)? {
            Message::RoundEnd(round) => Ok(Brought::RoundEnd(round)),
            _ => Err(Failure::Protocol("a message on a page stream")),
        }
    }

    /// Puts the pages of a frame in their places. `stream` is none for the control stream.
    pub(super) fn apply(
        &self,
        frame: &PageFrame<'_>,
        unpacked: &mut Vec<u8>,
        stream: Option<u8>,
        agreed: Agreed,
    ) -> Result<Brought, Failure> {
        if frame.all() & !valid_mask(self.pages, frame.chunk) != 0 {
            return Err(Failure::Protocol("pages that the machine has not"));
        }
        if frame.is_compressed() && !agreed.offers.has(Offers::ZSTD) {
            return Err(Failure::Protocol("compressed pages that were not agreed upon"));
        }
        match self.stage.load(Ordering::Acquire) {
            COPYING => self.write(frame, unpacked, stream, agreed).map(|()| Brought::Pages),
            STARTED => self.place(frame, unpacked),
            _ => Err(Failure::Protocol("pages between seal and start")),
        }
    }

    fn write(
        &self,
        frame: &PageFrame<'_>,
        unpacked: &mut Vec<u8>,
        stream: Option<u8>,
        agreed: Agreed,
    ) -> Result<(), Failure> {
        if stream.map(u64::from) != Some(frame.chunk % u64::from(agreed.streams.max(1))) {
            return Err(Failure::Protocol("pages on a stream that is not theirs"));
        }
        if frame.delta != 0 && !agreed.offers.has(Offers::DELTA) {
            return Err(Failure::Protocol("deltas that were not agreed upon"));
        }
        let first = frame.chunk * CHUNK_PAGES;
        let touched = self.touched.insert(frame.chunk, frame.raw | frame.delta) | self.touched.chunk(frame.chunk);
        for bit in bits(frame.zero & touched) {
            self.memory
                .write(first + u64::from(bit), &[0; PAGE_BYTES])
                .map_err(unwritable)?;
        }
        let mut raw = frame
            .raw_pages(unpacked)
            .map_err(|_| Failure::Protocol("compressed pages that do not unpack"))?;
        let mut left = frame.raw;
        while left != 0 {
            let begin = left.trailing_zeros();
            let run = (left >> begin).trailing_ones();
            let (bytes, rest) = raw.split_at_checked(run as usize * PAGE_BYTES).unwrap_or((raw, &[]));
            self.memory.write(first + u64::from(begin), bytes).map_err(unwritable)?;
            raw = rest;
            left &= u64::MAX.checked_shl(begin + run).unwrap_or(0);
        }
        frame.for_each_delta(|bit, bytes| {
            let (number, mut page) = (first + u64::from(bit), [0; PAGE_BYTES]);
            self.memory.read(number, &mut page).map_err(unwritable)?;
            delta::apply(bytes, &mut page).map_err(|_| Failure::Protocol("a delta that does not fit its page"))?;
            self.memory.write(number, &page).map_err(unwritable)
        })
    }

    fn place(&self, frame: &PageFrame<'_>, unpacked: &mut Vec<u8>) -> Result<Brought, Failure> {
        if frame.delta != 0 {
            return Err(Failure::Protocol("deltas after the start"));
        }
        let Some(missing) = self.missing.get() else {
            return Ok(Brought::Pages);
        };
        let raw = frame
            .raw_pages(unpacked)
            .map_err(|_| Failure::Protocol("compressed pages that do not unpack"))?;
        let mut raw = raw.as_chunks::<PAGE_BYTES>().0.iter();
        for bit in bits(frame.all()) {
            let content = if frame.raw & (1 << bit) == 0 { None } else { raw.next() };
            let number = frame.chunk * CHUNK_PAGES + u64::from(bit);
            // What is there may have been written by the guest since.
            if !missing.contains(number) {
                continue;
            }
            self.memory.place(number, content).map_err(unwritable)?;
            missing.remove(frame.chunk, 1 << bit);
            self.wanted.placed(number);
            if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
                return Ok(Brought::All);
            }
        }
        Ok(Brought::Pages)
    }
}

/// What both sides agreed upon, as far as pages go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Agreed {
    pub(super) offers: Offers,
    pub(super) streams: u8,
}

/// Memory that a stream's thread uses again and again.
#[derive(Debug, Default)]
pub(super) struct Rooms {
    payload: Vec<u8>,
    unpacked: Vec<u8>,
}
