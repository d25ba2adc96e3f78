//! Getting a vCPU out of the guest from another thread.
//!
//! ```text
//!   vCPU thread                                     any thread: kick()
//!   ───────────                                     ──────────────────
//!   A  thread := my id                              1  pending := true
//!   B  pending was true? ──▶ Interrupted            2  thread != 0? ──▶ signal it
//!   C  KVM_RUN
//! ```
//! Either B sees 1, or 2 sees A (both orders are sequentially consistent). In the second case the signal arrives before C, and
//! its handler sets `immediate_exit`, so that C returns at once; or it arrives during C, which it interrupts.
#![expect(
    unsafe_code,
    reason = "a signal handler, and the byte of the vCPU's shared page it writes"
)]

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering};

thread_local! {
    /// `immediate_exit` of the vCPU that runs on this thread; null while none does.
    static IMMEDIATE_EXIT: Cell<*const AtomicU8> = const { Cell::new(ptr::null()) };
    /// This thread's id, once it lets the kick signal through; 0 before.
    static THREAD: Cell<i32> = const { Cell::new(0) };
}

/// What a vCPU and its kickers share.
#[derive(Debug, Default)]
struct Door {
    pending: AtomicBool,
    /// The thread that runs the vCPU just now, 0 when none does.
    thread: AtomicI32,
}

/// Interrupts one vCPU; any thread may hold it. Outlives the vCPU harmlessly.
#[derive(Debug, Clone)]
pub struct Kicker(Arc<Door>);

impl Kicker {
    /// Has the vCPU's current or next [`crate::Vcpu::run`] return [`crate::Exit::Interrupted`]. Several kicks before that may
    /// count as one. Never blocks.
    pub fn kick(&self) {
        self.0.pending.store(true, Ordering::SeqCst);
        let thread = self.0.thread.load(Ordering::SeqCst);
        if thread == 0 {
            return;
        }
        let process = rustix::process::getpid().as_raw_nonzero().get();
        // SAFETY: tgkill takes plain numbers. Should the thread have ended meanwhile and its id belong to another thread of
        // this process, that one runs our handler, which finds no vCPU there and does nothing.
        unsafe { libc::syscall(libc::SYS_tgkill, process, thread, kick_signal()) };
    }
}

/// The vCPU's side of the door.
#[derive(Debug, Default)]
pub(crate) struct Kick(Arc<Door>);

impl Kick {
    /// A handle for others.
    pub(crate) fn kicker(&self) -> Kicker {
        Kicker(Arc::clone(&self.0))
    }

    /// True if somebody kicked since the last call.
    pub(crate) fn take_pending(&self) -> bool {
        self.0.pending.swap(false, Ordering::SeqCst)
    }

    /// Marks this thread as the one inside of `KVM_RUN`, until the guard goes. `immediate_exit` must point to that byte of
    /// the vCPU's shared page, and the page must stay mapped while the guard lives.
    pub(crate) fn enter(&self, immediate_exit: *const AtomicU8) -> io::Result<Entered<'_>> {
        let thread = admit_signal()?;
        IMMEDIATE_EXIT.set(immediate_exit);
        self.0.thread.store(thread, Ordering::SeqCst);
        Ok(Entered(self))
    }
}

/// See [`Kick::enter`].
pub(crate) struct Entered<'a>(&'a Kick);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.0.thread.store(0, Ordering::SeqCst);
        IMMEDIATE_EXIT.set(ptr::null());
    }
}

/// The real-time signal that kicks: the first one libc leaves to programs.
fn kick_signal() -> i32 {
    libc::SIGRTMIN()
}

/// Installs the handler (once per process) and unblocks the signal (once per thread). Answers this thread's id.
fn admit_signal() -> io::Result<i32> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let known = THREAD.get();
    if known != 0 {
        return Ok(known);
    }
    INSTALLED
        .get_or_init(|| install_handler().map_err(|error| error.raw_os_error().unwrap_or(libc::EINVAL)))
        .map_err(io::Error::from_raw_os_error)?;
    let mut mask = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset fills the set it is given.
    unsafe { libc::sigemptyset(mask.as_mut_ptr()) };
    // SAFETY: the set was filled by sigemptyset.
    let mut mask = unsafe { mask.assume_init() };
    // SAFETY: a valid set, and a signal number that exists.
    unsafe { libc::sigaddset(&raw mut mask, kick_signal()) };
    // SAFETY: a valid set; the old mask is not asked for.
    let status = unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const mask, ptr::null_mut()) };
    if status != 0 {
        return Err(io::Error::from_raw_os_error(status));
    }
    let thread = rustix::thread::gettid().as_raw_nonzero().get();
    THREAD.set(thread);
    Ok(thread)
}

fn install_handler() -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid sigaction: default handler, empty mask, no flags.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = on_kick as extern "C" fn(i32) as usize;
    // Restart what a late kick hits outside of KVM_RUN; KVM_RUN itself is never restarted.
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the handler only touches a constant-initialised thread-local and an atomic: async-signal-safe.
    if unsafe { libc::sigaction(kick_signal(), &raw const action, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

extern "C" fn on_kick(_signal: i32) {
    let immediate_exit = IMMEDIATE_EXIT.get();
    if !immediate_exit.is_null() {
        // SAFETY: set by `Kick::enter`, whose caller keeps the page mapped until the guard has cleared the pointer again; the
        // handler runs on the very thread that would clear it.
        let immediate_exit = unsafe { &*immediate_exit };
        immediate_exit.store(1, Ordering::Relaxed);
    }
}
