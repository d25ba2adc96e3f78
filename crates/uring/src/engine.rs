//! The engine under an executor: the kernel's ring, where what to do becomes an entry and a completion a landing; or a pool of
//! threads where there is none.
#![expect(
    unsafe_code,
    reason = "submission entries carry raw addresses; their owners are in `flight`"
)]

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use guestmem::IoBuf;
use io_uring::types::{Fd, FsyncFlags, Timespec};
use io_uring::{IoUring, opcode, squeue};
use rustix::event::PollFlags;
use rustix::io::Errno;

use crate::action::{Action, Wait};
use crate::file::File;
use crate::flight::{Cargo, Flights, Key, Slot};
use crate::notice::Notice;
use crate::pool::Pool;
use crate::prompt::Prompt;

/// Segments one operation takes (`UIO_MAXIOV`, include/uapi/linux/uio.h). Longer transfers come back short.
const MAX_SEGMENTS: usize = 1024;

/// Bytes one operation moves (`MAX_RW_COUNT` with 4 KiB pages, include/linux/fs.h). Longer transfers come back short.
const MAX_TRANSFER_BYTES: usize = 0x7fff_f000;

/// From here on a transfer is large, bytes: copying it takes several times as long as handing it to another thread (some 10 µs).
const LARGE_BYTES: usize = 128 << 10;

/// Bytes an eventfd is read by (eventfd(2)).
const EVENT_BYTES: u32 = 8;

/// Offset that means "a stream: no offset" (io_uring_enter(2)).
const NO_OFFSET: u64 = u64::MAX;

/// `user_data` of completions nobody waits for: cancellations.
const FORGOTTEN: u64 = u64::MAX;

/// `user_data` of the poll on [`Notice::event`].
const NOTICED: u64 = u64::MAX - 1;

/// Turns spent on making room in a full submission queue before an operation is refused. Each takes completions out first, so
/// that only a kernel without memory gets here.
const MAX_ENTERS_FOR_ROOM: usize = 64;

/// How often the kernel may refuse to be waited for at the end, and what is waited each time: a second in all.
const REFUSALS_BORNE: u32 = 100;
const REFUSAL_PAUSE: Duration = Duration::from_millis(10);

/// What operations are done by.
pub(crate) enum Means {
    Ring(IoUring),
    Pool(Pool),
}

/// One ring or pool, and what flies on it.
pub(crate) struct Engine {
    means: Means,
    pub(crate) flights: Flights,
    notice: Arc<Notice>,
    listening: bool,
    prompt: Prompt,
    /// What is written within a call: empty between calls, kept for its memory.
    segments: Vec<libc::iovec>,
    /// Done at once, to land with the next turn.
    late: Vec<(Key, i32)>,
    /// To be woken and dropped once nothing of the engine is borrowed.
    pub(crate) landed: Landed,
}

/// What completions leave behind.
#[derive(Default)]
pub(crate) struct Landed {
    pub(crate) wakers: Vec<Waker>,
    pub(crate) cargo: Vec<Cargo>,
}

impl Engine {
    pub(crate) fn new(means: Means, notice: Arc<Notice>) -> Self {
        Self {
            means,
            flights: Flights::default(),
            notice,
            listening: false,
            prompt: Prompt::default(),
            segments: Vec::new(),
            late: Vec::new(),
            landed: Landed::default(),
        }
    }

    /// Hands an operation to the kernel with the next [`Engine::enter`]. What it owns comes back if that is not possible.
    pub(crate) fn launch(&mut self, action: &Action, cargo: Cargo) -> Result<Key, (io::Error, Cargo)> {
        let key = match self.flights.board(cargo) {
            Ok(key) => key,
            Err(cargo) => return Err((Errno::NOMEM.into(), cargo)),
        };
        if let Some(slot) = self.flights.slot(key) {
            fill(slot, action);
            if let Some(result) = self.prompt.attempt(slot, action) {
                match self.prompt.is_spent() {
                    true => self.late.push((key, result)),
                    // Nobody can be waiting for it yet.
                    false => drop(self.flights.land(key, result)),
                }
                return Ok(key);
            }
        }
        if let Means::Pool(pool) = &mut self.means {
            let begun = match self.flights.slot(key) {
                Some(slot) => pool.launch(key, slot, action),
                None => Err(Errno::BADF.into()),
            };
            return begun.map(|()| key).or_else(|error| match self.flights.unboard(key) {
                Some(cargo) => Err((error, cargo)),
                None => Ok(key),
            });
        }
        let entry = self.flights.slot(key).and_then(|slot| prepare(slot, action));
        let entry = entry.map(|entry| self.spread(key, action, entry));
        let pushed = match entry {
            // SAFETY: every address in the entry is of memory that `key`'s slot owns and keeps in place until the kernel has
            // posted the completion: segments, scratch, and through the cargo's `IoBuf`s the buffers. The file is open as the
            // cargo holds it.
            Some(entry) => unsafe { self.push(&entry.user_data(key.user_data())) },
            None => Err(Errno::BADF.into()),
        };
        match pushed {
            Ok(()) => Ok(key),
            Err(error) => match self.flights.unboard(key) {
                Some(cargo) => Err((error, cargo)),
                None => Ok(key),
            },
        }
    }

    /// Writes within this call, if that is to be done at once and this turn has not had its share. A count, or a negated errno.
    pub(crate) fn write_now(&mut self, file: &File, offset: u64, bufs: &[IoBuf]) -> Option<i32> {
        if self.prompt.is_spent() {
            return None;
        }
        fill_segments(&mut self.segments, bufs, 0);
        // SAFETY: the segments are of `bufs`, each of which is good for its whole length while it is borrowed.
        let written = unsafe { self.prompt.write(file, &self.segments, offset) };
        self.segments.clear();
        written
    }

    /// Lets the kernel's own threads move the bytes of several large reads at once, each on a CPU of its own where there is one.
    /// Otherwise what is in the page cache is copied by this thread, one read after the other. Writes to one file exclude each
    /// other (the inode's lock): threads would only wait, and burn time while they do.
    fn spread(&mut self, key: Key, action: &Action, entry: squeue::Entry) -> squeue::Entry {
        let is_large = matches!(action, Action::Read { .. })
            && self.flights.slot(key).is_some_and(|slot| {
                let lens = slot.segments.iter().map(|segment| segment.iov_len);
                lens.sum::<usize>() >= LARGE_BYTES
            });
        match self.flights.count_large(key, is_large) {
            true => entry.flags(squeue::Flags::ASYNC),
            false => entry,
        }
    }

    /// Asks the kernel to give up on `key`. It lands all the same, cancelled or done.
    pub(crate) fn cancel(&mut self, key: Key) -> io::Result<()> {
        if let Means::Pool(pool) = &mut self.means {
            pool.cancel(key);
            return Ok(());
        }
        let entry = opcode::AsyncCancel::new(key.user_data()).build().user_data(FORGOTTEN);
        // SAFETY: the entry holds no address.
        unsafe { self.push(&entry) }
    }

    /// Submits what was launched, and waits if told to; may come back early with nothing. Afterwards [`Engine::reap`].
    pub(crate) fn enter(&mut self, wait: Wait) -> io::Result<()> {
        self.prompt.next_turn();
        // What is done does not wait for what is not.
        let wait = if self.late.is_empty() { wait } else { Wait::No };
        let ring = match &mut self.means {
            Means::Pool(pool) => {
                if pool.enter(wait, self.notice.event())? {
                    self.notice.silence();
                }
                return Ok(());
            }
            Means::Ring(ring) => ring,
        };
        if wait == Wait::ForOne && !self.listening {
            if ring.submission().is_full() {
                // Making room takes completions in, and whoever they concern must run before anything waits.
                return self.enter_once(0);
            }
            let poll = opcode::PollAdd::new(Fd(self.notice.event().as_raw_fd()), poll_in());
            // SAFETY: the entry holds no address, and the notice outlives the ring.
            unsafe { self.push(&poll.build().user_data(NOTICED)) }?;
            self.listening = true;
        }
        let Means::Ring(ring) = &mut self.means else {
            return Ok(());
        };
        let submission = ring.submission();
        if wait == Wait::No && submission.is_empty() && !submission.taskrun() && !submission.cq_overflow() {
            return Ok(());
        }
        drop(submission);
        self.enter_once(if wait == Wait::ForOne { 1 } else { 0 })
    }

    fn enter_once(&mut self, want: usize) -> io::Result<()> {
        let Means::Ring(ring) = &mut self.means else {
            return Ok(());
        };
        match ring.submit_and_wait(want) {
            Ok(_) => Ok(()),
            // A signal, too little memory for now, or completions to be taken first: the caller comes again.
            Err(error) => match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::INTR | Errno::AGAIN | Errno::BUSY) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Takes in all completions there are.
    pub(crate) fn reap(&mut self) {
        for (key, result) in self.late.drain(..) {
            let (waker, cargo) = self.flights.land(key, result);
            self.landed.wakers.extend(waker);
            self.landed.cargo.extend(cargo);
        }
        let ring = match &mut self.means {
            Means::Pool(pool) => {
                for (key, result) in pool.take_landed() {
                    let (waker, cargo) = self.flights.land(key, result);
                    self.landed.wakers.extend(waker);
                    self.landed.cargo.extend(cargo);
                }
                return;
            }
            Means::Ring(ring) => ring,
        };
        for completion in ring.completion() {
            match completion.user_data() {
                FORGOTTEN => {}
                NOTICED => {
                    self.listening = false;
                    self.notice.silence();
                }
                user_data => {
                    let (waker, cargo) = self.flights.land(Key::from_user_data(user_data), completion.result());
                    self.landed.wakers.extend(waker);
                    self.landed.cargo.extend(cargo);
                }
            }
        }
    }

    /// Waits until the kernel is done with all that ends by itself. Whom it concerns is told later. A kernel that refuses is asked
    /// again for a while: it may have been out of memory.
    pub(crate) fn settle(&mut self) {
        let mut patience = REFUSALS_BORNE;
        while self.flights.any_finite() && patience > 0 {
            if let Err(error) = self.enter(Wait::ForOne) {
                patience -= 1;
                if patience == 0 {
                    tracing::error!(%error, "what the kernel still does to files can not be waited for");
                }
                std::thread::sleep(REFUSAL_PAUSE);
            }
            self.reap();
        }
    }

    /// # Safety
    /// Every address in `entry` must stay good until its completion.
    unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        for _ in 0..MAX_ENTERS_FOR_ROOM {
            let Means::Ring(ring) = &mut self.means else { break };
            let mut submission = ring.submission();
            // SAFETY: passed on to the caller.
            if unsafe { submission.push(entry) }.is_ok() {
                return Ok(());
            }
            drop(submission);
            self.enter_once(0)?;
            self.reap();
        }
        Err(Errno::AGAIN.into())
    }
}

fn poll_in() -> u32 {
    u32::from(PollFlags::IN.bits())
}

/// Lists what an operation reads or fills in its slot.
fn fill(slot: &mut Slot, action: &Action) {
    let skip = match *action {
        Action::Read { skip, .. } | Action::Write { skip, .. } => skip,
        _ => 0,
    };
    if let Some(cargo) = &slot.cargo {
        fill_segments(&mut slot.segments, &cargo.bufs, skip);
    }
}

/// The entry for `action`, with addresses of memory that `slot` owns and has listed. `None` if the file is missing.
fn prepare(slot: &mut Slot, action: &Action) -> Option<squeue::Entry> {
    let Slot {
        cargo,
        scratch,
        segments,
        ..
    } = slot;
    let cargo = cargo.as_ref()?;
    if let Action::Sleep(duration) = *action {
        *scratch.duration.get_mut() = Timespec::from(duration);
        return Some(opcode::Timeout::new(scratch.duration.get()).build());
    }
    let fd = Fd(cargo.file.as_ref()?.raw());
    Some(match *action {
        Action::Read { offset, .. } => transfer_in(fd, segments, offset),
        Action::Receive => transfer_in(fd, segments, NO_OFFSET),
        Action::Write { offset, .. } => transfer_out(fd, segments, offset),
        Action::Send => transfer_out(fd, segments, NO_OFFSET),
        Action::Sync { data_only } => {
            let flags = if data_only {
                FsyncFlags::DATASYNC
            } else {
                FsyncFlags::empty()
            };
            opcode::Fsync::new(fd).flags(flags).build()
        }
        Action::Allocate { mode, offset, len } => opcode::Fallocate::new(fd, len).offset(offset).mode(mode).build(),
        Action::Readable => opcode::PollAdd::new(fd, poll_in()).build(),
        Action::TakeEvent => opcode::Read::new(fd, scratch.word.get().cast(), EVENT_BYTES)
            .offset(NO_OFFSET)
            .build(),
        Action::Sleep(_) => return None,
    })
}

/// What is left of `bufs` after `skip` bytes, up to the most one operation takes.
fn fill_segments(segments: &mut Vec<libc::iovec>, bufs: &[IoBuf], mut skip: usize) {
    segments.clear();
    let mut room = MAX_TRANSFER_BYTES;
    for buf in bufs {
        if buf.len() <= skip {
            skip -= buf.len();
            continue;
        }
        let len = (buf.len() - skip).min(room);
        let start = buf.as_mut_ptr().wrapping_add(skip);
        segments.push(libc::iovec {
            iov_base: start.cast(),
            iov_len: len,
        });
        (skip, room) = (0, room - len);
        if room == 0 || segments.len() == MAX_SEGMENTS {
            return;
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "at most MAX_TRANSFER_BYTES, at most MAX_SEGMENTS"
)]
fn transfer_in(fd: Fd, segments: &[libc::iovec], offset: u64) -> squeue::Entry {
    match segments {
        [one] => opcode::Read::new(fd, one.iov_base.cast(), one.iov_len as u32)
            .offset(offset)
            .build(),
        many => opcode::Readv::new(fd, many.as_ptr(), many.len() as u32)
            .offset(offset)
            .build(),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "at most MAX_TRANSFER_BYTES, at most MAX_SEGMENTS"
)]
fn transfer_out(fd: Fd, segments: &[libc::iovec], offset: u64) -> squeue::Entry {
    match segments {
        [one] => opcode::Write::new(fd, one.iov_base.cast(), one.iov_len as u32)
            .offset(offset)
            .build(),
        many => opcode::Writev::new(fd, many.as_ptr(), many.len() as u32)
            .offset(offset)
            .build(),
    }
}

impl Landed {
    pub(crate) fn is_empty(&self) -> bool {
        self.wakers.is_empty() && self.cargo.is_empty()
    }

    /// Wakes and drops. Runs foreign code: nothing of the engine may be borrowed.
    pub(crate) fn tell(&mut self) {
        for waker in self.wakers.drain(..) {
            waker.wake();
        }
        self.cargo.clear();
    }

    /// Takes over the memory of `told`, which is empty.
    pub(crate) fn reuse(&mut self, told: Self) {
        if self.is_empty() {
            *self = told;
        }
    }
}
