//! Calls that belong together, and what each group is for.

use libc::{
    SYS_accept4, SYS_brk, SYS_clock_gettime, SYS_clock_nanosleep, SYS_clone, SYS_clone3, SYS_close, SYS_eventfd2,
    SYS_exit, SYS_exit_group, SYS_fallocate, SYS_fcntl, SYS_fdatasync, SYS_flock, SYS_fstat, SYS_fsync, SYS_ftruncate,
    SYS_futex, SYS_getdents64, SYS_getpid, SYS_getrandom, SYS_getsockopt, SYS_gettid, SYS_io_uring_enter,
    SYS_io_uring_register, SYS_io_uring_setup, SYS_ioctl, SYS_lseek, SYS_madvise, SYS_memfd_create, SYS_mmap,
    SYS_mprotect, SYS_mremap, SYS_munmap, SYS_nanosleep, SYS_newfstatat, SYS_open, SYS_openat, SYS_poll, SYS_ppoll,
    SYS_prctl, SYS_pread64, SYS_preadv, SYS_preadv2, SYS_pwrite64, SYS_pwritev, SYS_pwritev2, SYS_read, SYS_readlinkat,
    SYS_readv, SYS_recvfrom, SYS_recvmsg, SYS_renameat, SYS_renameat2, SYS_restart_syscall, SYS_rseq, SYS_rt_sigaction,
    SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_sched_getaffinity, SYS_sched_yield, SYS_seccomp, SYS_sendmsg, SYS_sendto,
    SYS_set_robust_list, SYS_setsockopt, SYS_shutdown, SYS_sigaltstack, SYS_stat, SYS_statx, SYS_sync_file_range,
    SYS_tgkill, SYS_unlinkat, SYS_userfaultfd, SYS_write, SYS_writev,
};

use super::list::{Allowed, is, is_not, masked};

/// What any thread needs to run Rust code on the C library: memory, locks, time, logs on standard error, its own end. glibc counts
/// the processors (`sched_getaffinity`) for the ninth thread that wants memory, whichever that is.
pub(super) const EVERY_THREAD: &[i64] = &[
    SYS_read,
    SYS_write,
    SYS_close,
    SYS_munmap,
    SYS_mremap,
    SYS_madvise,
    SYS_brk,
    SYS_futex,
    SYS_sched_yield,
    SYS_sched_getaffinity,
    SYS_getpid,
    SYS_gettid,
    SYS_rt_sigreturn,
    SYS_rt_sigprocmask,
    SYS_sigaltstack,
    SYS_restart_syscall,
    SYS_clock_gettime,
    SYS_clock_nanosleep,
    SYS_nanosleep,
    SYS_getrandom,
    SYS_poll,
    SYS_ppoll,
    SYS_exit,
    SYS_exit_group,
];

/// What any thread needs some ways of: memory that is not code, signals to this process, and what Rust's handler of faults and
/// copies of descriptors want.
pub(super) fn conditional(list: &mut Allowed) {
    let executable = libc::PROT_EXEC.unsigned_abs();
    list.when(SYS_mmap, &[masked(2, executable, 0)]);
    list.when(SYS_mprotect, &[masked(2, executable, 0)]);
    // Locks of threads that died, kicks, and `abort`. The process keeps its number for life.
    list.when(SYS_tgkill, &[is(0, std::process::id())]);
    for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGABRT] {
        list.when(SYS_rt_sigaction, &[is(0, signal.unsigned_abs())]);
    }
    for command in [libc::F_DUPFD_CLOEXEC, libc::F_GETFD, libc::F_GETFL, libc::F_SETFL] {
        list.when(SYS_fcntl, &[is(1, command.unsigned_abs())]);
    }
}

/// Sockets that others connected: none is made here.
const SOCKETS: &[i64] = &[
    SYS_accept4,
    SYS_recvfrom,
    SYS_recvmsg,
    SYS_sendto,
    SYS_sendmsg,
    SYS_shutdown,
];

/// Those, and whether they block.
pub(super) fn sockets(list: &mut Allowed) {
    list.add(SOCKETS);
    list.when(SYS_ioctl, &[is(1, FIONBIO)]);
}

/// Streams of a migration, their time limits, and which guest memory was never touched.
pub(super) const STREAMS: &[i64] = &[SYS_setsockopt, SYS_getsockopt, SYS_readv, SYS_writev, SYS_lseek];

/// Guest memory that comes after its machine: pages are taken away, and put in their place when they are touched.
pub(super) const ABSENT_MEMORY: &[i64] = &[SYS_userfaultfd, SYS_fallocate];

/// Requests of it (`<linux/userfaultfd.h>`): `UFFDIO_REGISTER`, `UFFDIO_WAKE`, `UFFDIO_COPY`, `UFFDIO_API`.
pub(super) const USERFAULTFD: (u8, &[u8]) = (0xaa, &[0x00, 0x02, 0x03, 0x3f]);

/// Names in directories: logs, reports, saved machines.
pub(super) const DIRECTORIES: &[i64] = &[
    SYS_fstat,
    SYS_statx,
    SYS_newfstatat,
    SYS_fsync,
    SYS_fdatasync,
    SYS_ftruncate,
    SYS_lseek,
    SYS_renameat,
    SYS_renameat2,
    SYS_unlinkat,
    SYS_eventfd2,
];

/// Files that are open: disks, and where a machine is saved.
pub(super) const FILES: &[i64] = &[
    SYS_readv,
    SYS_writev,
    SYS_pread64,
    SYS_pwrite64,
    SYS_preadv,
    SYS_pwritev,
    SYS_preadv2,
    SYS_pwritev2,
    SYS_fallocate,
    SYS_fsync,
    SYS_fdatasync,
    SYS_sync_file_range,
    SYS_ftruncate,
    SYS_fstat,
    SYS_statx,
    SYS_newfstatat,
    SYS_lseek,
    SYS_eventfd2,
];

/// Rings of io_uring, from their making on.
pub(super) const RINGS: &[i64] = &[SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register];

/// Guest memory.
pub(super) const MEMORY: &[i64] = &[SYS_memfd_create];

/// A device that begins to work because its guest says so does that on a vCPU's thread.
pub(super) const DEVICES_OF_A_VCPU: &[i64] = &[SYS_eventfd2, SYS_fstat, SYS_statx, SYS_lseek, SYS_newfstatat];

/// Requests of KVM (`<linux/kvm.h>`).
pub(super) const KVM: u8 = 0xae;
/// Into the guest.
pub(super) const KVM_RUN: u8 = 0x80;
/// Doorbells, interrupts and what a resumed vCPU is told: `KVM_SET_GSI_ROUTING`, `KVM_IRQFD`, `KVM_IOEVENTFD`,
/// `KVM_SIGNAL_MSI`, `KVM_KVMCLOCK_CTRL`.
pub(super) const KVM_DEVICES: &[u8] = &[0x6a, 0x76, 0x79, 0xa5, 0xad];
/// The registers of a vCPU that fails, for the report: `KVM_GET_REGS`, `KVM_GET_SREGS`.
pub(super) const KVM_LOOK: &[u8] = &[0x81, 0x83];
/// Making a machine, its state and its dirty log. In the order of numbers: from `KVM_GET_API_VERSION` to
/// `KVM_GET_SUPPORTED_CPUID`; `KVM_CREATE_VCPU`, `KVM_GET_DIRTY_LOG`, `KVM_SET_USER_MEMORY_REGION`, `KVM_SET_TSS_ADDR`,
/// `KVM_SET_IDENTITY_MAP_ADDR`; `KVM_CREATE_IRQCHIP`, `KVM_GET_IRQCHIP`, `KVM_SET_IRQCHIP`; `KVM_SET_CLOCK`, `KVM_GET_CLOCK`; registers,
/// MSRs, FPU, local APIC, CPUID, run state, events, debug registers, TSC, XSAVE, XCRs; `KVM_CLEAR_DIRTY_LOG`,
/// `KVM_GET_XSAVE2`.
pub(super) const KVM_BUILD: &[u8] = &[
    0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x41, 0x42, 0x46, 0x47, 0x48, 0x60, 0x62, 0x63, 0x7b, 0x7c, 0x81, 0x82, 0x83,
    0x84, 0x88, 0x89, 0x8d, 0x8e, 0x8f, 0x90, 0x91, 0x98, 0x99, 0x9f, 0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7,
    0xc0, 0xcf,
];

/// Requests of taps (`<linux/if_tun.h>`): `TUNSETOFFLOAD`, `TUNSETVNETHDRSZ`, `TUNSETQUEUE`. Not `TUNSETIFF`: what interface a
/// queue is of has been decided.
const TUN: (u8, &[u8]) = (0x54, &[208, 216, 217]);
/// Requests of block devices (`<linux/fs.h>`): `BLKSSZGET`, `BLKGETSIZE64`, `BLKDISCARD`, `BLKPBSZGET`.
const BLOCK: (u8, &[u8]) = (0x12, &[104, 114, 119, 123]);

/// What devices do to open taps and disks: requests, and locks on files.
pub(super) fn devices(list: &mut Allowed) {
    list.ioctls(TUN.0, TUN.1);
    list.ioctls(BLOCK.0, BLOCK.1);
    for command in [libc::F_OFD_SETLK, libc::F_OFD_GETLK] {
        list.when(SYS_fcntl, &[is(1, command.unsigned_abs())]);
    }
    // What was written and is only read from now on.
    list.when(SYS_flock, &[is(1, (libc::LOCK_SH | libc::LOCK_NB).unsigned_abs())]);
}

/// Opens names in directories that were passed. A filter sees no names: one that begins at the root is not told apart.
pub(super) fn open_beneath(list: &mut Allowed) {
    list.when(SYS_openat, &[is_not(0, AT_FDCWD)]);
}

/// Reads what the host says of itself: limits in `/proc` and `/sys`, and who holds a lock. By any path, but only to read.
/// `/dev/kvm` is opened so, too.
pub(super) fn read_host(list: &mut Allowed) {
    let writes = (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC).unsigned_abs();
    let reads = libc::O_RDONLY.unsigned_abs();
    list.when(SYS_openat, &[masked(2, writes, reads)]);
    list.when(SYS_open, &[masked(1, writes, reads)]);
    list.add(&[SYS_stat, SYS_getdents64, SYS_readlinkat]);
}

/// Starts threads, and nothing else: `clone` with the flags of glibc's `pthread_create`. The first acts of a new thread, which
/// come before its own filter, are its parent's as well; that filter, too. `clone3` is not trapped, so that it can be said not to
/// exist.
pub(super) fn start_threads(list: &mut Allowed) {
    list.when(SYS_clone, &[is(0, THREAD)]);
    list.add(&[SYS_clone3, SYS_set_robust_list, SYS_rseq]);
    for option in [libc::PR_SET_NAME, libc::PR_SET_NO_NEW_PRIVS] {
        list.when(SYS_prctl, &[is(0, option.unsigned_abs())]);
    }
    list.when(SYS_seccomp, &[is(0, libc::SECCOMP_SET_MODE_FILTER)]);
}

/// The handler of the signal that gets a vCPU out of the guest: the first one that libc leaves to programs.
pub(super) fn kick_handler(list: &mut Allowed) {
    list.when(SYS_rt_sigaction, &[is(0, libc::SIGRTMIN().unsigned_abs())]);
}

/// Whether a descriptor blocks (`<asm-generic/ioctls.h>`).
const FIONBIO: u32 = 0x5421;

/// `AT_FDCWD` as a filter sees it.
const AT_FDCWD: u32 = libc::AT_FDCWD.cast_unsigned();

/// What `pthread_create` asks of `clone`, as in glibc 2.31 to 2.41.
const THREAD: u32 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID)
    .cast_unsigned();
