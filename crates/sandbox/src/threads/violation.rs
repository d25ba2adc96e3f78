//! A forbidden call, told before the process ends.
//!
//! ```text
//!   a thread ── forbidden call ──▶ kernel: not made, SIGSYS ──▶ handler ── writes it down, rings ──▶ steward
//!                                                                 │                                 │ tells, in peace
//!                                                                 │ ◀──────── or a second passes ───┘
//!                                                                 └── another forbidden call, with SIGSYS blocked: the kernel ends
//!                                                                     the process by SIGSYS, whatever the handler is
//! ```
//!
//! The handler interrupts its thread anywhere, perhaps with locks held. It takes none and allocates nothing.
#![expect(unsafe_code, reason = "a signal handler, and a system call to end by")]

use std::ffi::{c_int, c_void};
use std::fmt::{self, Write};
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use super::bell;
use super::filter::kind_of_this_thread;
use super::kind::ThreadKind;
use super::names;

/// How long the steward may take to tell of it, in steps of [`STEP`].
const STEPS: u32 = 1000;
/// One of them.
const STEP: Duration = Duration::from_millis(1);
/// Bytes of a line on standard error: what is longer is cut.
const LINE_BYTES: usize = 320;
/// `SYS_SECCOMP`, what `si_code` is when a filter sent SIGSYS (`<asm-generic/siginfo.h>`).
const SYS_SECCOMP: c_int = 1;

/// A system call that a thread made though its list lacks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Violation {
    /// What thread it was; none: one that a confined thread started by itself, with the list it has.
    pub kind: Option<ThreadKind>,
    /// Number of the call.
    pub call: i64,
    /// Its six arguments, as far as it has as many.
    pub arguments: [u64; 6],
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let call = self.call;
        let kind = self.kind.map_or("nameless", ThreadKind::name);
        let name = names::name(call).unwrap_or("unknown");
        write!(
            f,
            "system call {name} ({call}) is forbidden to the {kind} thread that made it, with arguments"
        )?;
        let separators = [" ", ", ", ", ", ", ", ", ", ", "];
        for (separator, argument) in separators.into_iter().zip(self.arguments) {
            write!(f, "{separator}{argument:#x}")?;
        }
        Ok(())
    }
}

/// Somebody is telling of a violation; later ones only end.
static CLAIMED: AtomicBool = AtomicBool::new(false);
/// What it is, and that it stands there.
static CALL: AtomicI64 = AtomicI64::new(0);
static KIND: AtomicUsize = AtomicUsize::new(0);
static ARGUMENTS: [AtomicU64; 6] = [const { AtomicU64::new(0) }; 6];
static WRITTEN: AtomicBool = AtomicBool::new(false);
/// The steward has told of it.
static TOLD: AtomicBool = AtomicBool::new(false);

/// The violation that waits to be told; the steward's to ask.
pub(super) fn take() -> Option<Violation> {
    if !WRITTEN.swap(false, Ordering::AcqRel) {
        return None;
    }
    let mut arguments = [0; 6];
    for (place, argument) in arguments.iter_mut().zip(&ARGUMENTS) {
        *place = argument.load(Ordering::Relaxed);
    }
    Some(Violation {
        kind: ThreadKind::ALL.get(KIND.load(Ordering::Relaxed)).copied(),
        call: CALL.load(Ordering::Relaxed),
        arguments,
    })
}

/// The thread that made the call may end the process now.
pub(super) fn told() {
    TOLD.store(true, Ordering::Release);
}

/// From now on forbidden calls are told. For the whole process.
pub(super) fn install_handler() -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid sigaction: default handler, empty mask, no flags.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = on_forbidden as extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler uses atomics, a constant-initialised thread-local, its stack and system calls: all of it is
    // async-signal-safe.
    if unsafe { libc::sigaction(libc::SIGSYS, &raw const action, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

extern "C" fn on_forbidden(_signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes the address of a siginfo_t that lives as long as the handler runs.
    let code = unsafe { (*info).si_code };
    if code != SYS_SECCOMP {
        // Somebody sent the signal; it says nothing.
        return;
    }
    let kind = kind_of_this_thread();
    let violation = read(context.cast_const(), kind);
    if CLAIMED.swap(true, Ordering::AcqRel) {
        // Another one is being told, and ends the process.
        pause(2 * STEPS);
    } else if kind == Some(ThreadKind::Steward) || !tell(&violation) {
        say(&violation);
    }
    end()
}

/// What call it was, from the registers it was made with.
fn read(context: *const c_void, kind: Option<ThreadKind>) -> Violation {
    // SAFETY: handlers that were installed with SA_SIGINFO get the address of a ucontext_t, which lives as long as they run.
    let registers = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let register = |place: c_int| {
        let value = usize::try_from(place).ok().and_then(|place| registers.get(place));
        value.copied().unwrap_or_default()
    };
    let arguments = [
        libc::REG_RDI,
        libc::REG_RSI,
        libc::REG_RDX,
        libc::REG_R10,
        libc::REG_R8,
        libc::REG_R9,
    ];
    Violation {
        kind,
        // The kernel has put back what the call was made with.
        call: register(libc::REG_RAX),
        arguments: arguments.map(|place| register(place).cast_unsigned()),
    }
}

/// Has the steward tell; true if it did.
fn tell(violation: &Violation) -> bool {
    CALL.store(violation.call, Ordering::Relaxed);
    KIND.store(violation.kind.map_or(usize::MAX, ThreadKind::index), Ordering::Relaxed);
    for (place, argument) in ARGUMENTS.iter().zip(violation.arguments) {
        place.store(argument, Ordering::Relaxed);
    }
    WRITTEN.store(true, Ordering::Release);
    bell::ring() && pause(STEPS)
}

/// Waits until it was told, or for so many steps; true if it was told.
fn pause(steps: u32) -> bool {
    for _ in 0..steps {
        if TOLD.load(Ordering::Acquire) {
            return true;
        }
        let step = rustix::thread::Timespec {
            tv_sec: 0,
            tv_nsec: i64::from(STEP.subsec_nanos()),
        };
        let _ = rustix::thread::nanosleep(&step);
    }
    TOLD.load(Ordering::Acquire)
}

/// A line on standard error, from the stack.
fn say(violation: &Violation) {
    let mut line = Line {
        bytes: [0; LINE_BYTES],
        len: 0,
    };
    // Cut where it is too long.
    let _ = writeln!(line, "{violation}; the process ends");
    let bytes = line.bytes.get(..line.len).unwrap_or_default();
    let _ = rustix::io::write(rustix::stdio::stderr(), bytes);
}

struct Line {
    bytes: [u8; LINE_BYTES],
    len: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let free = self.bytes.get_mut(self.len..).unwrap_or_default();
        let count = text.len().min(free.len());
        for (place, &byte) in free.iter_mut().zip(text.as_bytes()) {
            *place = byte;
        }
        self.len += count;
        if count < text.len() { Err(fmt::Error) } else { Ok(()) }
    }
}

/// Ends the process by SIGSYS.
fn end() -> ! {
    // SAFETY: vhangup(2) takes no arguments. No list has it, and while SIGSYS is blocked, as in this handler, a call that traps
    // ends the process.
    unsafe { libc::syscall(libc::SYS_vhangup) };
    // SAFETY: ends the process at once; nothing is run at its exit.
    unsafe { libc::_exit(128 + libc::SIGSYS) }
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn a_line_names_thread_and_call_and_is_cut_where_it_must() {
        let violation = Violation {
            kind: Some(ThreadKind::QueueWorker),
            call: libc::SYS_socket,
            arguments: [2, 1, 0, u64::MAX, 0, 0],
        };
        let text = violation.to_string();
        assert_eq!(
            text,
            "system call socket (41) is forbidden to the queue worker thread that made it, with arguments 0x2, 0x1, 0x0, \
             0xffffffffffffffff, 0x0, 0x0"
        );
        let mut line = Line {
            bytes: [0; LINE_BYTES],
            len: 0,
        };
        for _ in 0..3 {
            let _ = write!(line, "{text}");
        }
        assert_eq!(line.len, LINE_BYTES);
        assert!(line.bytes.starts_with(text.as_bytes()));
    }
}
