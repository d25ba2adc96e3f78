//! The other engine: threads that make ordinary system calls, for hosts that give no ring.
//!
//! ```text
//!   executor's thread                              helpers' threads
//!   launch ── transfers, syncs, allocations ──▶ line ──▶ preadv · pwritev · fsync · fallocate ──▶ done ─┐
//!      │                                                                                                │
//!      └──── what may wait for ever ─▶ enter: one ppoll on all of them, the line's bell, the notice ◀───┘
//! ```
//!
//! What may wait for ever never takes a thread: it is tried, without waiting, when its file is ready. As with the kernel's ring, all
//! memory that a call is given an address of belongs to the operation's slot until the operation has landed.
#![expect(
    unsafe_code,
    reason = "system calls on buffers by address; their owners are in `flight`"
)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use sandbox::{NewThread, ThreadKind};

use crate::action::{Action, Wait};
use crate::flight::{Key, Slot};
use crate::outcome::outcome;
use crate::patience::Patience;

/// Threads of one executor: transfers in flight at once. What a disk gains from more is small, and each costs a stack.
const THREADS: usize = 4;

/// A system call that ends by itself.
enum Call {
    Read { offset: u64 },
    Write { offset: u64 },
    Sync { data_only: bool },
    Allocate { mode: i32, offset: u64, len: u64 },
}

/// A call for a thread to make.
struct Work {
    key: Key,
    call: Call,
    fd: RawFd,
    segments: *const libc::iovec,
    count: i32,
}

// SAFETY: the addresses are of memory that the slot of `key` keeps in place until the call has landed, and nobody else looks at it
// meanwhile; buffers are `Send` themselves.
unsafe impl Send for Work {}

#[derive(Default)]
struct Line {
    waiting: VecDeque<Work>,
    done: Vec<(Key, i32)>,
    closing: bool,
}

struct Shared {
    line: Mutex<Line>,
    work: Condvar,
    bell: OwnedFd,
    /// The executor waits, or is about to: whoever clears it rings the bell.
    listening: AtomicBool,
}

impl Shared {
    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What each thread does.
    fn serve(&self) {
        let mut line = self.line();
        loop {
            let Some(work) = line.waiting.pop_front() else {
                if line.closing {
                    return;
                }
                line = self.work.wait(line).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(line);
            let (key, result) = (work.key, work.run());
            line = self.line();
            line.done.push((key, result));
            if self.listening.swap(false, Ordering::SeqCst) {
                // Fails only if the counter is full: then it is readable anyway.
                let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
            }
        }
    }
}

impl Work {
    /// Makes the call; a count, or a negated errno.
    fn run(&self) -> i32 {
        let place = |offset: u64| i64::try_from(offset).map_err(|_| libc::EINVAL);
        let made = match self.call {
            Call::Read { offset } => place(offset).map(|offset| {
                // SAFETY: `segments` are `count` segments of buffers that the slot keeps, as said at `Work`.
                unsafe { libc::preadv(self.fd, self.segments, self.count, offset) }
            }),
            Call::Write { offset } => place(offset).map(|offset| {
                // SAFETY: as above, and they are only read.
                unsafe { libc::pwritev(self.fd, self.segments, self.count, offset) }
            }),
            Call::Sync { data_only: true } => {
                // SAFETY: no address is passed.
                Ok(unsafe { libc::fdatasync(self.fd) } as isize)
            }
            Call::Sync { data_only: false } => {
                // SAFETY: no address is passed.
                Ok(unsafe { libc::fsync(self.fd) } as isize)
            }
            Call::Allocate { mode, offset, len } => place(offset).and_then(|offset| {
                let len = place(len)?;
                // SAFETY: no address is passed.
                Ok(unsafe { libc::fallocate(self.fd, mode, offset, len) } as isize)
            }),
        };
        made.map_or_else(|errno| -errno, outcome)
    }
}

/// The engine's threads, and what waits beside them.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    patience: Patience,
    landed: Vec<(Key, i32)>,
}

impl Pool {
    pub(crate) fn new() -> io::Result<Self> {
        let shared = Arc::new(Shared {
            line: Mutex::default(),
            work: Condvar::new(),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            listening: AtomicBool::new(false),
        });
        let mut pool = Self {
            shared,
            threads: Vec::new(),
            patience: Patience::default(),
            landed: Vec::new(),
        };
        for number in 0..THREADS {
            let shared = Arc::clone(&pool.shared);
            let thread = NewThread::new(ThreadKind::Transfer, format!("io-{number}"));
            pool.threads.push(thread.spawn(move || shared.serve())?);
        }
        Ok(pool)
    }

    /// Begins an operation. Its slot keeps everything that `prepare`d for it in place.
    pub(crate) fn launch(&mut self, key: Key, slot: &mut Slot, action: &Action) -> io::Result<()> {
        let fd = slot
            .cargo
            .as_ref()
            .and_then(|cargo| cargo.file.as_ref())
            .map(crate::File::raw);
        let call = match *action {
            Action::Sleep(duration) => {
                self.patience.sleep(key, duration);
                return Ok(());
            }
            Action::Read { offset, .. } => Call::Read { offset },
            Action::Write { offset, .. } => Call::Write { offset },
            Action::Sync { data_only } => Call::Sync { data_only },
            Action::Allocate { mode, offset, len } => Call::Allocate { mode, offset, len },
            Action::Receive | Action::Send | Action::Readable | Action::TakeEvent => {
                let fd = fd.ok_or(Errno::BADF)?;
                self.patience.wait(key, fd, action, slot);
                return Ok(());
            }
        };
        let work = Work {
            key,
            call,
            fd: fd.ok_or(Errno::BADF)?,
            segments: slot.segments.as_ptr(),
            count: i32::try_from(slot.segments.len()).unwrap_or(i32::MAX),
        };
        self.shared.line().waiting.push_back(work);
        self.shared.work.notify_one();
        Ok(())
    }

    /// Gives up what has not begun. What a thread is at ends by itself.
    pub(crate) fn cancel(&mut self, key: Key) {
        let mut found = self.patience.forget(key);
        let mut line = self.shared.line();
        line.waiting.retain(|work| {
            let hit = work.key == key;
            found |= hit;
            !hit
        });
        if found {
            self.landed.push((key, -libc::ECANCELED));
        }
    }

    /// Looks what is ready; waits for something, or for `notice`, if told to. True if it was `notice`.
    pub(crate) fn enter(&mut self, wait: Wait, notice: BorrowedFd<'_>) -> io::Result<bool> {
        self.shared.listening.store(true, Ordering::SeqCst);
        let idle = self.landed.is_empty() && self.shared.line().done.is_empty();
        let waits = wait == Wait::ForOne && idle;
        if !waits && self.patience.is_empty() {
            self.shared.listening.store(false, Ordering::SeqCst);
            return Ok(false);
        }
        let bell = self.shared.bell.as_fd();
        let rung = self
            .patience
            .look([bell.as_raw_fd(), notice.as_raw_fd()], waits, &mut self.landed);
        self.shared.listening.store(false, Ordering::SeqCst);
        let [bell_rung, noticed] = rung?;
        if bell_rung {
            // Fails only if it is silent already.
            let _ = rustix::io::read(bell, &mut [0_u8; 8]);
        }
        Ok(noticed)
    }

    /// What has ended since the last time.
    pub(crate) fn take_landed(&mut self) -> Vec<(Key, i32)> {
        let mut landed = std::mem::take(&mut self.landed);
        landed.append(&mut self.shared.line().done);
        landed
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.line().closing = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}
