//! A file that remembers every change and every sync, so that any state a power loss may leave can be made from it.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use disk::{
    Access, Discard, Disk, DiskError, DiskErrorKind, DiskFuture, DiskIo, DiskOp, Geometry, Transferred, ZeroMode,
    total_len,
};
use guestmem::IoBuf;

use crate::random::Random;

/// One change of the file.
#[derive(Debug, Clone)]
pub enum Change {
    /// These bytes from there on.
    Write(usize, Vec<u8>),
    /// Zeroes (or a hole) from there on, with this length.
    Zero(usize, usize),
    /// A new length.
    Grow(usize),
}

/// What happened, in order.
#[derive(Debug, Clone)]
pub enum Event {
    /// A change was asked for.
    Begun(u64, Change),
    /// A change has completed.
    Done(u64),
    /// A sync was asked for.
    SyncBegun(u64),
    /// A sync has completed: what had completed before it was asked for is durable.
    SyncDone(u64),
    /// Something above the file, as the harness numbers it.
    Mark(Mark),
}

/// What the harness knows of the disk above the file.
#[derive(Debug, Clone)]
pub enum Mark {
    /// A change of the disk was begun.
    WriteBegun {
        /// Its number.
        number: u64,
        /// Where, bytes.
        offset: usize,
        /// What it puts there.
        bytes: Vec<u8>,
        /// A discard: may do nothing.
        hint: bool,
    },
    /// It has completed.
    WriteDone(u64),
    /// A flush of the disk was begun.
    FlushBegun(u64),
    /// It has completed.
    FlushDone(u64),
}

struct State {
    bytes: Vec<u8>,
    events: Vec<Event>,
    number: u64,
    random: Random,
}

/// The file. All its contents are in memory.
pub struct Recorder(Mutex<State>);

impl Recorder {
    /// A file with these contents; its operations take a while that `seed` decides.
    pub fn new(bytes: Vec<u8>, seed: u64) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            bytes,
            events: Vec::new(),
            number: 0,
            random: Random::of(seed, 77),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has happened so far, taken out.
    pub fn take_events(&self) -> Vec<Event> {
        std::mem::take(&mut self.lock().events)
    }

    /// The contents, copied.
    pub fn contents(&self) -> Vec<u8> {
        self.lock().bytes.clone()
    }

    /// Length of the file, bytes.
    pub fn len(&self) -> usize {
        self.lock().bytes.len()
    }

    /// True for a file of no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a mark between the events.
    pub fn mark(&self, mark: Mark) {
        self.lock().events.push(Event::Mark(mark));
    }

    /// Reads; what lies behind the end is zero.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        let state = self.lock();
        bytes.fill(0);
        let have = state.bytes.get(offset..).unwrap_or_default();
        let count = have.len().min(bytes.len());
        if let (Some(to), Some(from)) = (bytes.get_mut(..count), have.get(..count)) {
            to.copy_from_slice(from);
        }
    }

    /// A change is asked for; its number. It is visible from now on: readers of files see writes in flight or not.
    pub fn begin(&self, change: Change) -> u64 {
        let mut state = self.lock();
        state.number += 1;
        let number = state.number;
        apply(&mut state.bytes, &change, |_| true);
        state.events.push(Event::Begun(number, change));
        number
    }

    /// A change has completed.
    pub fn done(&self, number: u64) {
        self.lock().events.push(Event::Done(number));
    }

    /// A sync is asked for; its number.
    pub fn begin_sync(&self) -> u64 {
        let mut state = self.lock();
        state.number += 1;
        let number = state.number;
        state.events.push(Event::SyncBegun(number));
        number
    }

    /// A sync has completed.
    pub fn sync_done(&self, number: u64) {
        self.lock().events.push(Event::SyncDone(number));
    }

    fn pauses(&self) -> u64 {
        let mut state = self.lock();
        if state.random.chance(60) {
            state.random.below(6)
        } else {
            0
        }
    }
}

/// Applies a change to a file, in pieces of at most a sector, each if `takes` says so for its number in the change.
pub fn apply(bytes: &mut Vec<u8>, change: &Change, mut takes: impl FnMut(usize) -> bool) {
    let (offset, len) = match change {
        Change::Write(offset, data) => (*offset, data.len()),
        Change::Zero(offset, len) => (*offset, *len),
        Change::Grow(size) => {
            if *size > bytes.len() && takes(0) {
                bytes.resize(*size, 0);
            }
            return;
        }
    };
    let (mut at, mut number) = (offset, 0);
    while at < offset + len {
        let end = ((at / 512 + 1) * 512).min(offset + len);
        if takes(number) {
            // A hole behind the end of a file does not lengthen it.
            if bytes.len() < end && matches!(change, Change::Write(..)) {
                bytes.resize(end, 0);
            }
            let end = end.min(bytes.len());
            if let Some(to) = bytes.get_mut(at..end) {
                match change {
                    Change::Write(_, data) => {
                        to.copy_from_slice(data.get(at - offset..end - offset).unwrap_or_default());
                    }
                    _ => to.fill(0),
                }
            }
        }
        at = ((at / 512 + 1) * 512).min(offset + len);
        number += 1;
    }
}

/// The file as a disk: each operation completes some turns of the executor later, so that many are in flight at once.
pub struct RecorderDisk(pub Arc<Recorder>);

impl Disk for RecorderDisk {
    fn name(&self) -> &str {
        "recorded file"
    }

    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: (self.0.len() as u64).next_multiple_of(512),
            logical_sector_bytes: 512,
            physical_sector_bytes: 512,
            access: Access::ReadWrite,
            discard: Discard::Supported { granularity_bytes: 512 },
        }
    }

    fn open_queue(&self) -> Result<Rc<dyn DiskIo>, DiskError> {
        Ok(Rc::new(Self(Arc::clone(&self.0))))
    }
}

/// Gives way to others `count` times.
async fn pause(mut count: u64) {
    poll_fn(|context| {
        if count == 0 {
            return Poll::Ready(());
        }
        count -= 1;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl RecorderDisk {
    /// Makes a change with waits around it.
    async fn change(&self, op: DiskOp, (offset, len): (u64, u64), change: Change) -> Result<(), DiskError> {
        Disk::geometry(self).check(op, offset, len)?;
        if len == 0 {
            return Ok(());
        }
        pause(self.0.pauses()).await;
        let number = self.0.begin(change);
        pause(self.0.pauses()).await;
        self.0.done(number);
        Ok(())
    }
}

fn number(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

impl DiskIo for RecorderDisk {
    fn geometry(&self) -> Geometry {
        Disk::geometry(self)
    }

    fn read(&self, offset: u64, mut bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        Box::pin(async move {
            let len = total_len(&bufs);
            if let Err(error) = Disk::geometry(self).check(DiskOp::Read, offset, len) {
                return (Err(error), bufs);
            }
            pause(self.0.pauses()).await;
            let mut at = number(offset);
            for buf in &mut bufs {
                let mut bytes = vec![0; buf.len()];
                self.0.read(at, &mut bytes);
                at += bytes.len();
                if let Err(error) = buf.copy_from(0, &bytes) {
                    let error = DiskError::new(DiskOp::Read, DiskErrorKind::Io).because(error);
                    return (Err(error), bufs);
                }
            }
            (Ok(()), bufs)
        })
    }

    fn write(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        Box::pin(async move {
            let range = (offset, total_len(&bufs));
            let bytes: Vec<u8> = bufs.iter().flat_map(IoBuf::to_vec).collect();
            let change = Change::Write(number(offset), bytes);
            (self.change(DiskOp::Write, range, change).await, bufs)
        })
    }

    fn flush(&self) -> DiskFuture<'_, Result<(), DiskError>> {
        Box::pin(async move {
            let number = self.0.begin_sync();
            pause(self.0.pauses()).await;
            self.0.sync_done(number);
            Ok(())
        })
    }

    fn discard(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        let change = Change::Zero(number(offset), number(len));
        Box::pin(self.change(DiskOp::Discard, (offset, len), change))
    }

    fn write_zeroes(&self, offset: u64, len: u64, _mode: ZeroMode) -> DiskFuture<'_, Result<(), DiskError>> {
        let change = Change::Zero(number(offset), number(len));
        Box::pin(self.change(DiskOp::WriteZeroes, (offset, len), change))
    }

    fn grow(&self, size_bytes: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        Box::pin(async move {
            if Disk::geometry(self).check_grow(size_bytes)? {
                let change = self.0.begin(Change::Grow(number(size_bytes)));
                self.0.done(change);
            }
            Ok(())
        })
    }
}
