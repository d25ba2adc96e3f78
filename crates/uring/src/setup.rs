//! Opening a kernel ring, and saying in an operator's words why there is none.

use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use io_uring::{IoUring, Probe, opcode, register::Restriction, squeue};
use rustix::io::Errno;

use crate::engine::Means;
use crate::pool::Pool;

/// Where the kernel says who may use io_uring (Linux 6.6, admin-guide/sysctl/kernel.rst).
const SYSCTL: &str = "/proc/sys/kernel/io_uring_disabled";

/// Completions the kernel holds for one submission entry. Operations may be in flight far beyond the submission queue, which
/// only bounds one batch; with room for four batches the kernel's slower overflow list stays unused in practice.
const COMPLETIONS_PER_ENTRY: u32 = 4;

/// Largest submission queue the kernel takes (`IORING_MAX_ENTRIES`, io_uring/io_uring.c).
const MAX_ENTRIES: u32 = 32_768;

/// Why this host gives no ring.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The administrator switched io_uring off.
    #[error(
        "io_uring is disabled on this host (kernel.io_uring_disabled={level}): set it to 0, or to 1 and \
         kernel.io_uring_group to a group of this process"
    )]
    Disabled {
        /// Value of the sysctl: 1 or 2.
        level: u8,
    },
    /// The kernel has io_uring, this process may not use it.
    #[error(
        "io_uring is refused to this process although the host has it on: allow io_uring_setup in its seccomp filter"
    )]
    Refused,
    /// The kernel has no io_uring, or one too old.
    #[error("io_uring of this kernel lacks {missing}: run Linux 5.15 or newer with CONFIG_IO_URING")]
    TooOld {
        /// What was looked for.
        missing: &'static str,
    },
    /// This thread runs an executor already.
    #[error("this thread already has an io_uring executor: use one per thread")]
    Occupied,
    /// Threads, where there is no ring or none is wanted.
    #[error("threads for input and output can not be started")]
    Threads {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Anything else, as a limit on open files or locked memory.
    #[error("io_uring ring of {entries} entries can not be set up")]
    Failed {
        /// Entries asked for.
        entries: u32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// What executors work with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EngineChoice {
    /// io_uring where it may be used, threads elsewhere.
    #[default]
    Best,
    /// io_uring, or nothing.
    Ring,
    /// A few threads per executor, and ordinary system calls.
    Threads,
}

/// The choice of the process: an [`EngineChoice`] as a number.
static CHOSEN: AtomicU8 = AtomicU8::new(0);

/// The fallback was told of.
static TOLD: AtomicBool = AtomicBool::new(false);

/// Chooses what executors of this process work with that are made from now on.
pub fn choose_engine(choice: EngineChoice) {
    let number = match choice {
        EngineChoice::Best => 0,
        EngineChoice::Ring => 1,
        EngineChoice::Threads => 2,
    };
    CHOSEN.store(number, Ordering::Relaxed);
}

pub(crate) fn chosen() -> EngineChoice {
    match CHOSEN.load(Ordering::Relaxed) {
        1 => EngineChoice::Ring,
        2 => EngineChoice::Threads,
        _ => EngineChoice::Best,
    }
}

/// A ring or threads, as chosen. What keeps a ring from a process for good makes it threads; a lack of memory or descriptors does
/// not, as threads need those as well.
pub(crate) fn means(entries: u32, choice: EngineChoice) -> Result<Means, SetupError> {
    let threads = || {
        let pool = Pool::new().map_err(|source| SetupError::Threads { source })?;
        Ok(Means::Pool(pool))
    };
    match choice {
        EngineChoice::Threads => threads(),
        EngineChoice::Ring => open(entries).map(Means::Ring),
        EngineChoice::Best => match open(entries) {
            Ok(ring) => Ok(Means::Ring(ring)),
            Err(reason @ (SetupError::Disabled { .. } | SetupError::Refused | SetupError::TooOld { .. })) => {
                if !TOLD.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%reason, "disks and networks use threads instead of io_uring, which is slower");
                }
                threads()
            }
            Err(error) => Err(error),
        },
    }
}

/// Whether io_uring can be used here, without keeping anything open.
///
/// # Errors
/// The first reason found why executors would use threads instead.
pub fn probe() -> Result<(), SetupError> {
    open(8).map(drop)
}

/// A ring of `entries` (rounded up to a power of two, clamped to what the kernel takes), in the fastest mode this kernel knows.
pub(crate) fn open(entries: u32) -> Result<IoUring, SetupError> {
    let entries = entries.clamp(1, MAX_ENTRIES);
    // Fastest first: completions run only when this thread enters the kernel (Linux 6.1), no interprocessor interrupts
    // (5.19), anything.
    let modes: [fn(&mut io_uring::Builder); 3] = [
        |b| {
            b.setup_single_issuer()
                .setup_defer_taskrun()
                .setup_taskrun_flag()
                .setup_submit_all();
        },
        |b| {
            b.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
        },
        |_| {},
    ];
    let mut last = io::Error::from(Errno::INVAL);
    for mode in modes {
        let mut builder = IoUring::builder();
        builder
            .dontfork()
            .setup_r_disabled()
            .setup_clamp()
            .setup_cqsize(entries.saturating_mul(COMPLETIONS_PER_ENTRY));
        mode(&mut builder);
        match builder.build(entries) {
            Ok(ring) => return check(ring, entries),
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => last = error,
            Err(error) => return Err(explain(error, entries, sysctl_level())),
        }
    }
    Err(explain(last, entries, sysctl_level()))
}

/// Refuses rings that lack what the executor relies on.
fn check(ring: IoUring, entries: u32) -> Result<IoUring, SetupError> {
    if !ring.params().is_feature_nodrop() {
        return Err(SetupError::TooOld {
            missing: "completions that are never dropped (IORING_FEAT_NODROP)",
        });
    }
    let failed = |source| SetupError::Failed { entries, source };
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(failed)?;
    let needed = [
        (opcode::Readv::CODE, "IORING_OP_READV"),
        (opcode::Writev::CODE, "IORING_OP_WRITEV"),
        (opcode::Read::CODE, "IORING_OP_READ"),
        (opcode::Write::CODE, "IORING_OP_WRITE"),
        (opcode::Fsync::CODE, "IORING_OP_FSYNC"),
        (opcode::Fallocate::CODE, "IORING_OP_FALLOCATE"),
        (opcode::PollAdd::CODE, "IORING_OP_POLL_ADD"),
        (opcode::Timeout::CODE, "IORING_OP_TIMEOUT"),
        (opcode::AsyncCancel::CODE, "IORING_OP_ASYNC_CANCEL"),
    ];
    match needed.iter().find(|(code, _)| !probe.is_supported(*code)) {
        Some((_, missing)) => Err(SetupError::TooOld { missing }),
        None => {
            bind(&ring, &needed.map(|(code, _)| code)).map_err(failed)?;
            Ok(ring)
        }
    }
}

/// Lets a ring that was made disabled do these operations, and nothing else for as long as it lives: what it is asked for by
/// memory is not seen by a seccomp filter, and could be to open a file.
fn bind(ring: &IoUring, operations: &[u8]) -> io::Result<()> {
    let mut rules: Vec<_> = operations.iter().copied().map(Restriction::sqe_op).collect();
    rules.push(Restriction::sqe_flags_allowed(squeue::Flags::ASYNC.bits()));
    ring.submitter().register_restrictions(&mut rules)?;
    ring.submitter().register_enable_rings()
}

fn sysctl_level() -> Option<u8> {
    fs::read_to_string(SYSCTL).ok()?.trim().parse().ok()
}

fn explain(source: io::Error, entries: u32, level: Option<u8>) -> SetupError {
    match source.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOSYS) => SetupError::TooOld {
            missing: "io_uring_setup",
        },
        Some(Errno::PERM | Errno::ACCESS) => match level {
            Some(level @ 1..) => SetupError::Disabled { level },
            _ => SetupError::Refused,
        },
        _ => SetupError::Failed { entries, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_disabled_from_refused_from_absent() {
        let why = |errno: Errno, level| explain(errno.into(), 8, level).to_string();
        assert!(
            why(Errno::PERM, Some(2)).starts_with("io_uring is disabled on this host (kernel.io_uring_disabled=2): ")
        );
        assert!(why(Errno::PERM, Some(0)).contains("seccomp"));
        assert!(why(Errno::PERM, None).contains("seccomp"));
        assert!(why(Errno::NOSYS, None).contains("Linux 5.15"));
        assert!(why(Errno::MFILE, Some(0)).contains("ring of 8 entries"));
    }

    #[test]
    #[expect(unsafe_code, reason = "an operation of which the kernel is given an address")]
    fn a_ring_opens_no_file_and_can_not_be_had_to() {
        let mut ring = open(8).unwrap();
        let operations = [
            opcode::OpenAt::new(io_uring::types::Fd(libc::AT_FDCWD), c"/etc/passwd".as_ptr()).build(),
            opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build(),
            opcode::PollAdd::new(io_uring::types::Fd(0), 1)
                .build()
                .flags(squeue::Flags::IO_LINK),
        ];
        for operation in operations {
            // SAFETY: the path is a constant; nothing else has an address.
            unsafe { ring.submission().push(&operation) }.unwrap();
            ring.submit_and_wait(1).unwrap();
            let result = ring.completion().next().unwrap().result();
            assert_eq!(Errno::from_raw_os_error(-result), Errno::ACCESS);
        }
        let refused = ring.submitter().register_probe(&mut Probe::new());
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(Errno::ACCESS.raw_os_error()));
    }

    #[test]
    fn this_host_has_it() {
        probe().expect("io_uring");
    }
}
