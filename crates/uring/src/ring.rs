//! What code on an executor's thread sees of it: operations, and spawning.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::rc::{Rc, Weak};
use std::time::Duration;

use guestmem::IoBuf;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::action::Action;
use crate::file::File;
use crate::flight::{Abandon, Cargo};
use crate::inner::Inner;
use crate::op::{Ending, Op};
use crate::task::Task;

/// Smallest unit of direct I/O on any device, bytes (open(2)).
const DIRECT_UNIT_BYTES: usize = 512;

thread_local! {
    static CURRENT: RefCell<Weak<Inner>> = const { RefCell::new(Weak::new()) };
}

/// There is no executor on this thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no io_uring executor on this thread: call this on the thread that runs one")]
pub struct NoExecutor;

/// What a transfer makes of its buffers: bytes moved, and the buffers back in their order.
pub type Moved = (io::Result<usize>, Vec<IoBuf>);

/// What a sync makes durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncScope {
    /// Contents, and as much metadata as is needed to read them back (`fdatasync`).
    Data,
    /// All metadata as well (`fsync`).
    All,
}

/// What to do with the space under a range of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocation {
    /// Reserve it; reads stay as they are. The file grows if the range ends beyond it.
    Reserve,
    /// Give it back; it reads as zeroes. The file keeps its size.
    PunchHole,
    /// Make it read as zeroes but stay reserved. The file keeps its size.
    ZeroRange,
}

/// A handle to the executor of this thread. Cheap to clone; operations of one that has ended fail with `ECANCELED`.
#[derive(Clone)]
pub struct Ring {
    inner: Rc<Inner>,
}

impl Ring {
    pub(crate) fn new(inner: Rc<Inner>) -> Self {
        Self { inner }
    }

    /// The executor of the calling thread.
    ///
    /// # Errors
    /// There is none.
    pub fn current() -> Result<Self, NoExecutor> {
        let inner = CURRENT.with_borrow(Weak::upgrade).filter(|inner| !inner.closed.get());
        inner.map(Self::new).ok_or(NoExecutor)
    }

    pub(crate) fn set_current(inner: &Weak<Inner>) {
        CURRENT.with_borrow_mut(|current| current.clone_from(inner));
    }

    /// Runs `future` beside everything else on this thread, until it ends or the executor does. Dropping the [`Task`] lets it
    /// run on.
    pub fn spawn<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> Task<T> {
        self.inner.tasks.spawn(future)
    }

    /// As [`Ring::spawn`], for what the executor is to run to its end.
    pub(crate) fn spawn_kept(&self, future: impl Future<Output = ()> + 'static) -> Task<()> {
        let counted = Counted::new(&self.inner);
        self.spawn(async move {
            future.await;
            drop(counted);
        })
    }

    /// Fills `bufs` from `offset` of a regular file or block device. May move less than asked: at the end of the file, and beyond
    /// 1024 buffers or 2 GiB.
    pub fn read(&self, file: &File, offset: u64, bufs: Vec<IoBuf>) -> Op<Moved> {
        self.read_after(file, offset, bufs, 0)
    }

    /// Writes `bufs` at `offset` of a regular file or block device. May move less than asked, as [`Ring::read`].
    pub fn write(&self, file: &File, offset: u64, bufs: Vec<IoBuf>) -> Op<Moved> {
        self.write_after(file, offset, bufs, 0)
    }

    /// Fills `bufs` whole. The file's end inside the range is an [`io::ErrorKind::UnexpectedEof`].
    pub async fn read_exact(&self, file: &File, offset: u64, bufs: Vec<IoBuf>) -> (io::Result<()>, Vec<IoBuf>) {
        let (moved, bufs) = self.read_to_end(file, offset, bufs).await;
        let whole = moved.and_then(|moved| match moved == total_len(&bufs) {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        });
        (whole, bufs)
    }

    /// Fills `bufs` up to their end or the file's, whichever comes first, and says how many bytes that were.
    pub async fn read_to_end(&self, file: &File, offset: u64, mut bufs: Vec<IoBuf>) -> Moved {
        let total = total_len(&bufs);
        let mut done = 0;
        while done < total {
            let moved;
            (moved, bufs) = self
                .read_after(file, offset.saturating_add(done as u64), bufs, done)
                .await;
            match moved {
                Ok(0) => return (Ok(done), bufs),
                Ok(count) => done += count,
                Err(error) if retries(&error) => {}
                // Direct I/O stops at an end of file inside of its unit, and can not be asked whether that was the end.
                Err(error) if done % DIRECT_UNIT_BYTES != 0 && is_invalid(&error) => return (Ok(done), bufs),
                Err(error) => return (Err(error), bufs),
            }
        }
        (Ok(total), bufs)
    }

    /// Writes `bufs` whole. After an error an unknown part is written.
    pub async fn write_all(&self, file: &File, offset: u64, mut bufs: Vec<IoBuf>) -> (io::Result<()>, Vec<IoBuf>) {
        let total = total_len(&bufs);
        let mut done = 0;
        while done < total {
            let moved;
            (moved, bufs) = self
                .write_after(file, offset.saturating_add(done as u64), bufs, done)
                .await;
            match moved {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), bufs),
                Ok(count) => done += count,
                Err(error) if retries(&error) => {}
                Err(error) => return (Err(error), bufs),
            }
        }
        (Ok(()), bufs)
    }

    /// Writes `bufs` at `offset` within this call, if that takes no waiting: into the page cache, as long as writes there do not
    /// wait and the executor's turn is not spent. False: nothing or a part was written, and [`Ring::write_all`] does it.
    pub fn write_now(&self, file: &File, offset: u64, bufs: &[IoBuf]) -> bool {
        if self.inner.closed.get() {
            return false;
        }
        let written = self.inner.engine.borrow_mut().write_now(file, offset, bufs);
        written.is_some_and(|count| usize::try_from(count) == Ok(total_len(bufs)))
    }

    /// Takes what comes from a pipe, tap or socket into `bufs`, waiting for it. Dropped, it is cancelled, and what had come
    /// already may be lost. The file must be in blocking mode, else it fails with `EAGAIN` when nothing is there.
    pub fn receive(&self, file: &File, bufs: Vec<IoBuf>) -> Op<Moved> {
        let cargo = Cargo {
            bufs,
            file: Some(file.clone()),
            abandon: Abandon::Cancel,
            fills: Some(0),
        };
        self.start(&Action::Receive, cargo, finish_moved)
    }

    /// Sends `bufs` to a pipe, tap or socket. As [`Ring::receive`] in all else.
    pub fn send(&self, file: &File, bufs: Vec<IoBuf>) -> Op<Moved> {
        let cargo = Cargo {
            bufs,
            file: Some(file.clone()),
            abandon: Abandon::Cancel,
            fills: None,
        };
        self.start(&Action::Send, cargo, finish_moved)
    }

    /// Makes durable what was written to `file` and completed before this was called.
    pub fn sync(&self, file: &File, scope: SyncScope) -> Op<io::Result<()>> {
        let action = Action::Sync {
            data_only: scope == SyncScope::Data,
        };
        self.start(&action, change_of(file), finish_done)
    }

    /// Changes the space under `len` bytes from `offset` on. `len` of 0 is `EINVAL`; a file system or device that can not do it
    /// says `EOPNOTSUPP`.
    pub fn allocate(&self, file: &File, how: Allocation, offset: u64, len: u64) -> Op<io::Result<()>> {
        let flags = match how {
            Allocation::Reserve => FallocateFlags::empty(),
            Allocation::PunchHole => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            Allocation::ZeroRange => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
        };
        let mode = i32::try_from(flags.bits()).unwrap_or_default();
        self.start(&Action::Allocate { mode, offset, len }, change_of(file), finish_done)
    }

    /// Waits until a read from `file` would not block (or would fail).
    pub fn readable(&self, file: &File) -> Op<io::Result<()>> {
        self.start(&Action::Readable, wait_on(file), finish_done)
    }

    /// Waits until an eventfd is rung, resets it, and gives how often it was. In blocking and in non-blocking mode alike; one
    /// reader per eventfd.
    pub async fn read_event(&self, event: &File) -> io::Result<u64> {
        loop {
            match self.start(&Action::TakeEvent, wait_on(event), finish_event).await {
                Err(error) if error.raw_os_error() == Some(Errno::AGAIN.raw_os_error()) => self.readable(event).await?,
                Err(error) if retries(&error) => {}
                other => return other,
            }
        }
    }

    /// Waits for `duration`. Fails only when cancelled.
    pub fn sleep(&self, duration: Duration) -> Op<io::Result<()>> {
        let cargo = Cargo {
            bufs: Vec::new(),
            file: None,
            abandon: Abandon::Cancel,
            fills: None,
        };
        self.start(&Action::Sleep(duration), cargo, finish_sleep)
    }

    fn read_after(&self, file: &File, offset: u64, bufs: Vec<IoBuf>, skip: usize) -> Op<Moved> {
        let cargo = Cargo {
            bufs,
            file: Some(file.clone()),
            abandon: Abandon::Finish,
            fills: Some(skip),
        };
        self.start(&Action::Read { offset, skip }, cargo, finish_moved)
    }

    fn write_after(&self, file: &File, offset: u64, bufs: Vec<IoBuf>, skip: usize) -> Op<Moved> {
        let cargo = Cargo {
            bufs,
            file: Some(file.clone()),
            abandon: Abandon::Finish,
            fills: None,
        };
        self.start(&Action::Write { offset, skip }, cargo, finish_moved)
    }

    fn start<T>(&self, action: &Action, cargo: Cargo, finish: fn(Ending) -> T) -> Op<T> {
        if self.inner.closed.get() {
            return Op::refused(Rc::clone(&self.inner), Errno::CANCELED.into(), cargo.bufs, finish);
        }
        let launched = self.inner.engine.borrow_mut().launch(action, cargo);
        match launched {
            Ok(key) => Op::flying(Rc::clone(&self.inner), key, finish),
            Err((error, cargo)) => Op::refused(Rc::clone(&self.inner), error, cargo.bufs, finish),
        }
    }
}

/// One of [`Inner::kept`], until it is dropped.
struct Counted(Weak<Inner>);

impl Counted {
    fn new(inner: &Rc<Inner>) -> Self {
        inner.kept.set(inner.kept.get() + 1);
        Self(Rc::downgrade(inner))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(inner) = self.0.upgrade() {
            inner.kept.set(inner.kept.get() - 1);
        }
    }
}

fn total_len(bufs: &[IoBuf]) -> usize {
    bufs.iter().fold(0, |sum: usize, buf| sum.saturating_add(buf.len()))
}

fn retries(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Interrupted
}

fn is_invalid(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::INVAL.raw_os_error())
}

fn change_of(file: &File) -> Cargo {
    Cargo {
        bufs: Vec::new(),
        file: Some(file.clone()),
        abandon: Abandon::Finish,
        fills: None,
    }
}

fn wait_on(file: &File) -> Cargo {
    Cargo {
        bufs: Vec::new(),
        file: Some(file.clone()),
        abandon: Abandon::Cancel,
        fills: None,
    }
}

fn finish_moved(ending: Ending) -> Moved {
    (ending.result, ending.bufs)
}

fn finish_done(ending: Ending) -> io::Result<()> {
    ending.result.map(|_| ())
}

fn finish_event(ending: Ending) -> io::Result<u64> {
    ending.result.map(|_| ending.word)
}

fn finish_sleep(ending: Ending) -> io::Result<()> {
    match ending.result {
        // A timeout that ran out is an error to the kernel.
        Err(error) if error.raw_os_error() == Some(Errno::TIME.raw_os_error()) => Ok(()),
        other => other.map(|_| ()),
    }
}
