//! Filters at work. What they forbid ends a process, so each attempt is made by a child: this very program, told by its
//! environment what to try.
#![expect(unsafe_code, reason = "forbidden system calls are made with their numbers")]

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::sync::mpsc;
use std::time::Duration;

use super::list::Allowed;
use super::*;

/// What a child is to try: a mode, the number of a kind, and the name of an attempt.
const ATTEMPT: &str = "KARAT_SECCOMP_ATTEMPT";

type Attempt = (&'static str, [i64; 6]);

/// System calls with arguments that no list allows.
const FORBIDDEN: [Attempt; 12] = [
    (
        "socket",
        [
            libc::SYS_socket,
            libc::AF_INET as i64,
            libc::SOCK_STREAM as i64,
            0,
            0,
            0,
        ],
    ),
    (
        "unix socket",
        [
            libc::SYS_socket,
            libc::AF_UNIX as i64,
            libc::SOCK_STREAM as i64,
            0,
            0,
            0,
        ],
    ),
    ("execve", [libc::SYS_execve, 0, 0, 0, 0, 0]),
    ("fork", [libc::SYS_fork, 0, 0, 0, 0, 0]),
    // A new process, a new user namespace.
    ("clone", [libc::SYS_clone, libc::SIGCHLD as i64, 0, 0, 0, 0]),
    ("unshare", [libc::SYS_unshare, libc::CLONE_NEWUSER as i64, 0, 0, 0, 0]),
    ("ptrace", [libc::SYS_ptrace, 0, 0, 0, 0, 0]),
    (
        "write a file",
        [
            libc::SYS_openat,
            libc::AT_FDCWD as i64,
            0,
            (libc::O_WRONLY | libc::O_CREAT) as i64,
            0,
            0,
        ],
    ),
    (
        "code",
        [
            libc::SYS_mmap,
            0,
            4096,
            (libc::PROT_READ | libc::PROT_EXEC) as i64,
            0x22,
            -1,
        ],
    ),
    (
        "more code",
        [
            libc::SYS_mprotect,
            0,
            4096,
            (libc::PROT_READ | libc::PROT_EXEC) as i64,
            0,
            0,
        ],
    ),
    ("kill the parent", [libc::SYS_tgkill, 1, 1, libc::SIGTERM as i64, 0, 0]),
    ("another interface", [libc::SYS_ioctl, 0, 0x4004_54ca, 0, 0, 0]),
];

/// Calls that some lists have, and others lack.
const ELSEWHERE: [(Attempt, &[ThreadKind]); 7] = [
    (
        ("absent memory", [libc::SYS_userfaultfd, -1, 0, 0, 0, 0]),
        &[ThreadKind::Migration],
    ),
    (
        ("read a file", [libc::SYS_openat, libc::AT_FDCWD as i64, 0, 0, 0, 0]),
        &[ThreadKind::StateDriver, ThreadKind::DiskJob, ThreadKind::Migration],
    ),
    (
        ("new ring", [libc::SYS_io_uring_setup, 0, 0, 0, 0, 0]),
        &[ThreadKind::StateDriver, ThreadKind::DiskJob],
    ),
    (("guest", [libc::SYS_ioctl, -1, 0xae80, 0, 0, 0]), &[ThreadKind::Vcpu]),
    (
        ("machine", [libc::SYS_ioctl, -1, 0xae01, 0, 0, 0]),
        &[ThreadKind::StateDriver],
    ),
    (
        ("accept", [libc::SYS_accept4, -1, 0, 0, 0, 0]),
        &[ThreadKind::Control, ThreadKind::Console, ThreadKind::Migration],
    ),
    (
        ("disk", [libc::SYS_pwritev, -1, 0, 0, 0, 0]),
        &[
            ThreadKind::StateDriver,
            ThreadKind::QueueWorker,
            ThreadKind::Transfer,
            ThreadKind::DiskJob,
        ],
    ),
];

fn child(mode: &str, kind: ThreadKind, attempt: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "threads::tests::body_of_the_child",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(ATTEMPT, format!("{mode}/{}/{attempt}", kind.index()))
        .env("RUST_BACKTRACE", "1")
        .output()
        .unwrap()
}

/// Not a test by itself: what the children of the others do.
#[test]
fn body_of_the_child() {
    let Ok(what) = std::env::var(ATTEMPT) else { return };
    let words: Vec<_> = what.splitn(3, '/').collect();
    let kind = ThreadKind::ALL[words[1].parse::<usize>().unwrap()];
    let name = words[2].to_owned();
    confine_threads(words[0].parse().unwrap(), |violation| eprintln!("TOLD: {violation}")).unwrap();
    let (name, by_itself) = match name.strip_prefix("by itself: ") {
        Some(rest) => (rest.to_owned(), true),
        None => (name, false),
    };
    let attempt = move || {
        let all = FORBIDDEN.into_iter().chain(ELSEWHERE.map(|(attempt, _)| attempt));
        let Some((_, [call, a, b, c, d, e])) = all.into_iter().find(|(other, _)| *other == name) else {
            return match name.as_str() {
                "nothing" => {}
                "much memory" => take_and_free(),
                "many threads" => many_threads(),
                other => panic!("no attempt {other}"),
            };
        };
        // SAFETY: the addresses are null, the descriptors bad: whatever of these calls is made fails, or does nothing.
        unsafe { libc::syscall(call, a, b, c, d, e) };
    };
    let attempt = move || match by_itself {
        true => std::thread::spawn(attempt).join().unwrap(),
        false => attempt(),
    };
    if kind == ThreadKind::Steward {
        run_by_steward(attempt, Duration::from_secs(5));
    } else {
        NewThread::new(kind, "confined").spawn(attempt).unwrap().join().unwrap();
    }
    eprintln!("SURVIVED");
}

/// As heaps of threads grow and shrink.
fn take_and_free() {
    for _ in 0..3 {
        let blocks: Vec<_> = (0..40).map(|_| vec![1_u8; 60 << 10]).collect();
        std::hint::black_box(&blocks);
    }
}

/// More threads than glibc begins heaps for without looking how many processors there are.
fn many_threads() {
    let (go, wait) = mpsc::channel::<()>();
    let wait = std::sync::Arc::new(std::sync::Mutex::new(wait));
    let threads: Vec<_> = (0..24)
        .map(|number| {
            let wait = std::sync::Arc::clone(&wait);
            let body = move || {
                take_and_free();
                // Until all have begun.
                let _ = wait.lock().unwrap().recv();
            };
            NewThread::new(ThreadKind::ALL[2 + number % 9], "one of many")
                .spawn(body)
                .unwrap()
        })
        .collect();
    drop(go);
    for thread in threads {
        thread.join().unwrap();
    }
}

fn survived(output: &Output) -> bool {
    output.status.success() && String::from_utf8_lossy(&output.stderr).contains("SURVIVED")
}

#[test]
fn every_kind_is_denied_what_no_list_has() {
    for kind in ThreadKind::ALL {
        for (name, _) in FORBIDDEN {
            let output = child("enforce", kind, name);
            let told = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{kind:?}, {name}: {told}");
            let thread = format!("is forbidden to the {} thread", kind.name());
            assert!(told.contains(&thread), "{kind:?}, {name}: {told}");
        }
    }
}

#[test]
fn kinds_are_denied_what_others_may() {
    for (attempt, may) in ELSEWHERE {
        for kind in ThreadKind::ALL {
            let output = child("enforce", kind, attempt.0);
            let told = String::from_utf8_lossy(&output.stderr);
            // The steward may what anybody may.
            if may.contains(&kind) || kind == ThreadKind::Steward {
                assert!(survived(&output), "{kind:?}, {}: {told}", attempt.0);
            } else {
                assert_eq!(
                    output.status.signal(),
                    Some(libc::SIGSYS),
                    "{kind:?}, {}: {told}",
                    attempt.0
                );
                assert!(told.contains("TOLD: system call "), "by the steward: {told}");
            }
        }
    }
}

#[test]
fn threads_that_confined_ones_start_by_themselves_are_confined_alike() {
    for kind in [ThreadKind::StateDriver, ThreadKind::DiskJob, ThreadKind::Migration] {
        assert!(survived(&child("enforce", kind, "by itself: much memory")), "{kind:?}");
        let output = child("enforce", kind, "by itself: socket");
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{kind:?}: {told}");
        assert!(
            told.contains("TOLD: system call socket (41) is forbidden to the nameless thread"),
            "{told}"
        );
    }
    for kind in [ThreadKind::Vcpu, ThreadKind::QueueWorker] {
        let output = child("enforce", kind, "by itself: nothing");
        assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{kind:?} starts no threads");
    }
}

#[test]
fn without_a_forbidden_call_or_without_a_filter_nothing_happens() {
    for kind in ThreadKind::ALL {
        for attempt in ["nothing", "much memory"] {
            let output = child("enforce", kind, attempt);
            assert!(
                survived(&output),
                "{kind:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
    let output = child("enforce", ThreadKind::Vcpu, "many threads");
    assert!(survived(&output), "{}", String::from_utf8_lossy(&output.stderr));
    for mode in ["log", "off"] {
        let output = child(mode, ThreadKind::Vcpu, "socket");
        assert!(survived(&output), "{mode}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn lists_hold_nothing_that_leads_out() {
    let list = |kind| Allowed::of(kind).calls().collect::<Vec<_>>();
    let steward = list(ThreadKind::Steward);
    for kind in ThreadKind::ALL {
        let calls = list(kind);
        assert!(calls.iter().all(|call| steward.contains(call)), "{kind:?}");
        for out in [
            libc::SYS_creat,
            libc::SYS_openat2,
            libc::SYS_socket,
            libc::SYS_socketpair,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_kill,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_pidfd_getfd,
            libc::SYS_setns,
            libc::SYS_mount,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_vhangup,
        ] {
            assert!(!calls.contains(&out), "{kind:?}: {out}");
        }
    }
    for guest_facing in [
        ThreadKind::Vcpu,
        ThreadKind::QueueWorker,
        ThreadKind::Offload,
        ThreadKind::Transfer,
    ] {
        let calls = list(guest_facing);
        for call in [
            libc::SYS_open,
            libc::SYS_openat,
            libc::SYS_clone,
            libc::SYS_clone3,
            libc::SYS_io_uring_setup,
            libc::SYS_sendmsg,
            libc::SYS_seccomp,
        ] {
            assert!(!calls.contains(&call), "{guest_facing:?}: {call}");
        }
    }
}

#[test]
fn in_a_process_that_is_not_confined_threads_are_ordinary() {
    let (tell, told) = mpsc::channel();
    let body = move || {
        tell.send(std::fs::read_to_string("/proc/thread-self/status").unwrap())
            .unwrap();
    };
    let thread = NewThread::new(ThreadKind::Offload, "ordinary").stack_bytes(64 << 10);
    thread.spawn(body).unwrap().join().unwrap();
    let status = told.recv().unwrap();
    assert!(
        status.contains("\nSeccomp:\t0\n") && status.contains("Name:\tordinary\n"),
        "{status}"
    );
}

#[test]
fn modes_have_names() {
    for mode in [SeccompMode::Enforce, SeccompMode::Log, SeccompMode::Off] {
        assert_eq!(mode.to_string().parse::<SeccompMode>().unwrap(), mode);
    }
    assert_eq!(
        "on".parse::<SeccompMode>().unwrap_err().to_string(),
        "\"on\" is none of enforce, log and off"
    );
}
