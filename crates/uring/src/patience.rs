//! Operations that may wait for ever, on the engine without a ring: all of them in one system call.
#![expect(
    unsafe_code,
    reason = "ppoll, readv and writev by address; the owners are in `flight`"
)]

use std::io;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use crate::action::Action;
use crate::flight::{Key, Slot};
use crate::outcome::outcome;

/// Offset that means "a stream: no offset" (preadv2(2)).
const NO_OFFSET: libc::off_t = -1;

/// What is tried when the file is ready.
#[derive(Clone, Copy)]
enum Try {
    Receive,
    Send,
    Readable,
    TakeEvent,
}

struct Waiting {
    key: Key,
    fd: RawFd,
    how: Try,
    /// Good until the operation lands, as it is the slot's.
    segments: *const libc::iovec,
    count: i32,
    word: *mut u64,
}

impl Waiting {
    const fn events(&self) -> libc::c_short {
        match self.how {
            Try::Send => libc::POLLOUT,
            Try::Receive | Try::Readable | Try::TakeEvent => libc::POLLIN,
        }
    }

    /// The result, or `None` to wait on.
    fn attempt(&self) -> Option<i32> {
        let word = libc::iovec {
            iov_base: self.word.cast(),
            iov_len: size_of::<u64>(),
        };
        let result = match self.how {
            Try::Readable => i32::from(libc::POLLIN),
            Try::Receive | Try::Send => self.transfer(self.segments, self.count),
            Try::TakeEvent => self.transfer(&raw const word, 1),
        };
        let waits = result == -libc::EAGAIN && !self.never_waits();
        (!waits && result != -libc::EINTR).then_some(result)
    }

    /// Moves what can be moved without waiting. Files that know no such thing are asked plainly: they are ready.
    fn transfer(&self, segments: *const libc::iovec, count: i32) -> i32 {
        let sends = matches!(self.how, Try::Send);
        let moved = match sends {
            // SAFETY: `count` segments of buffers that the operation's slot keeps, as said at the field.
            true => unsafe { libc::pwritev2(self.fd, segments, count, NO_OFFSET, libc::RWF_NOWAIT) },
            // SAFETY: as above, or one segment of the slot's scratch memory.
            false => unsafe { libc::preadv2(self.fd, segments, count, NO_OFFSET, libc::RWF_NOWAIT) },
        };
        let result = outcome(moved);
        if ![-libc::EOPNOTSUPP, -libc::EINVAL, -libc::ENOSYS].contains(&result) {
            return result;
        }
        outcome(match sends {
            // SAFETY: as above.
            true => unsafe { libc::writev(self.fd, segments, count) },
            // SAFETY: as above.
            false => unsafe { libc::readv(self.fd, segments, count) },
        })
    }

    /// Whether there is nothing to wait for: the file says at once that it has nothing, and that is the result.
    fn tries_at_once(&self) -> bool {
        !matches!(self.how, Try::Readable) && self.never_waits()
    }

    /// Whether the file is in non-blocking mode, in which it says so when nothing is there.
    fn never_waits(&self) -> bool {
        // SAFETY: no address is passed.
        let flags = unsafe { libc::fcntl(self.fd, libc::F_GETFL) };
        flags >= 0 && flags & libc::O_NONBLOCK != 0
    }
}

/// All that waits.
#[derive(Default)]
pub(crate) struct Patience {
    waiting: Vec<Waiting>,
    sleeping: Vec<(Key, Instant)>,
    polled: Vec<libc::pollfd>,
}

impl Patience {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.sleeping.is_empty()
    }

    pub(crate) fn sleep(&mut self, key: Key, duration: Duration) {
        let now = Instant::now();
        // A sleep of more than a year is one of a year.
        let until = now
            .checked_add(duration)
            .unwrap_or(now + Duration::from_secs(31_536_000));
        self.sleeping.push((key, until));
    }

    /// Waits for `fd`; what the operation needs is in `slot`, which keeps it in place.
    pub(crate) fn wait(&mut self, key: Key, fd: RawFd, action: &Action, slot: &mut Slot) {
        let how = match action {
            Action::Receive => Try::Receive,
            Action::Send => Try::Send,
            Action::TakeEvent => Try::TakeEvent,
            _ => Try::Readable,
        };
        self.waiting.push(Waiting {
            key,
            fd,
            how,
            segments: slot.segments.as_ptr(),
            count: i32::try_from(slot.segments.len()).unwrap_or(i32::MAX),
            word: slot.scratch.word.get(),
        });
    }

    /// Takes an operation out; false if it is not there.
    pub(crate) fn forget(&mut self, key: Key) -> bool {
        let before = self.waiting.len() + self.sleeping.len();
        self.waiting.retain(|waiting| waiting.key != key);
        self.sleeping.retain(|(sleeping, _)| *sleeping != key);
        self.waiting.len() + self.sleeping.len() < before
    }

    /// Adds to `landed` what has ended; waits for something, or for one of `bells`, if told to. Says which bells have rung.
    pub(crate) fn look(
        &mut self,
        bells: [RawFd; 2],
        waits: bool,
        landed: &mut Vec<(Key, i32)>,
    ) -> io::Result<[bool; 2]> {
        let entry = |fd, events| libc::pollfd { fd, events, revents: 0 };
        self.polled.clear();
        self.polled.extend(bells.map(|fd| entry(fd, libc::POLLIN)));
        // A file that never waits is tried at once.
        let at_once = self.waiting.iter().any(Waiting::tries_at_once);
        self.polled
            .extend(self.waiting.iter().map(|waiting| entry(waiting.fd, waiting.events())));
        self.poll(waits && !at_once)?;
        let mut ready = self.polled.iter().map(|polled| polled.revents != 0);
        let rung = [ready.next().unwrap_or(false), ready.next().unwrap_or(false)];
        let mut ready = ready.collect::<Vec<_>>().into_iter();
        self.waiting.retain(|waiting| {
            let ready = ready.next().unwrap_or(false);
            let tried = ready || waiting.tries_at_once();
            match tried.then(|| waiting.attempt()).flatten() {
                Some(result) => {
                    landed.push((waiting.key, result));
                    false
                }
                None => true,
            }
        });
        let now = Instant::now();
        self.sleeping.retain(|(key, until)| {
            if *until <= now {
                // As the kernel has it: a timeout that ran out is an error.
                landed.push((*key, -libc::ETIME));
            }
            *until > now
        });
        Ok(rung)
    }

    fn poll(&mut self, waits: bool) -> io::Result<()> {
        let next = self.sleeping.iter().map(|(_, until)| *until).min();
        let timeout = match (waits, next) {
            (false, _) => Some(Duration::ZERO),
            (true, Some(until)) => Some(until.saturating_duration_since(Instant::now())),
            (true, None) => None,
        };
        let timeout = timeout.map(|timeout| libc::timespec {
            tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let timeout = timeout.as_ref().map_or(std::ptr::null(), |timeout| &raw const *timeout);
        let count = libc::nfds_t::try_from(self.polled.len()).unwrap_or(libc::nfds_t::MAX);
        // SAFETY: `polled` has `count` entries, `timeout` is null or a `timespec`, and no signal mask is passed.
        let status = unsafe { libc::ppoll(self.polled.as_mut_ptr(), count, timeout, std::ptr::null()) };
        match outcome(status as isize) {
            result if result == -libc::EINTR => {
                self.polled.iter_mut().for_each(|polled| polled.revents = 0);
                Ok(())
            }
            result if result < 0 => Err(io::Error::from_raw_os_error(-result)),
            _ => Ok(()),
        }
    }
}
