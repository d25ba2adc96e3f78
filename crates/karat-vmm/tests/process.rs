//! The process around the machine: its connections, its console, its end.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod harness;

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use control::{EndReason, FdRole, RefusalKind, VmEvent, VmRequest, VmState};
use harness::{Setup, Vmm, can_run};

#[test]
fn a_late_reader_gets_what_was_said_before() {
    if !can_run() {
        return;
    }
    let (vmm, _link) = Vmm::boot(Setup::tiny("serial,ticks"));
    let mut first = vmm.console();
    first.wait_for("tick 5");
    let mut second = vmm.console();
    second.wait_for("tick 7");
    assert!(second.seen.starts_with("TINY entry="), "{}", second.seen);
    drop(first);
    let mut third = vmm.console();
    third.wait_for("tick 9");
    assert!(third.seen.starts_with("TINY entry="), "{}", third.seen);
}

#[test]
fn what_is_typed_reaches_the_guest() {
    if !can_run() {
        return;
    }
    let (mut vmm, _link) = Vmm::boot(Setup::tiny("echo"));
    let mut console = vmm.console();
    console.wait_for("READY echo");
    let line: String = ('a'..='z').cycle().take(3000).collect();
    console.type_in(&line);
    console.type_in("\n");
    console.wait_for(&line);
    console.wait_for("PASS echo");
    assert_eq!(vmm.report().reason, EndReason::DebugExit { code: 0 });
}

#[test]
fn a_reader_that_does_not_read_holds_nobody_up() {
    if !can_run() {
        return;
    }
    let (vmm, _link) = Vmm::boot(Setup::tiny("ticks"));
    let _deaf = vmm.console();
    let mut console = vmm.console();
    console.wait_for("tick 20");
}

#[test]
fn the_console_log_is_rotated() {
    if !can_run() {
        return;
    }
    let mut setup = Setup::tiny("ticks");
    setup.log_max_bytes = 100;
    setup.log_keep = 2;
    let (mut vmm, mut link) = Vmm::boot(setup);
    let mut console = vmm.console();
    console.wait_for("tick 30");
    link.ask(VmRequest::Quit).unwrap();
    vmm.wait();
    let seen = console.wait_for_end();
    let log = vmm.console_log();
    assert!(seen.ends_with(&log) && (200..=300).contains(&log.len()), "log {log:?}");
    assert_eq!(std::fs::read_dir(vmm.path("log")).unwrap().count(), 3);
}

#[test]
fn daemons_come_and_go() {
    if !can_run() {
        return;
    }
    let (mut vmm, first) = Vmm::boot(Setup::tiny("ticks"));
    drop(first);
    vmm.console().wait_for("tick 2");
    let (mut second, mut third) = (vmm.link(), vmm.link());
    assert_eq!(second.hello.status.state, VmState::Running);
    assert_eq!(second.hello.pid, vmm.pid());
    assert!(second.hello.status.id.is_some());
    second.ask(VmRequest::Pause).unwrap();
    let state = third.wait_for(|event| match event {
        VmEvent::StateChanged { state } => Some(*state),
        _ => None,
    });
    assert_eq!(state, VmState::Paused, "events reach everybody");
    let refusal = third.ask(VmRequest::Pause).unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::WrongState);
    assert!(refusal.message.contains("paused"), "{}", refusal.message);
    drop(second);
    third.ask(VmRequest::Resume).unwrap();
    assert_eq!(vmm.report_after_quit(&mut third).reason, EndReason::Requested);
}

#[test]
fn bad_frames_cost_a_connection_and_nothing_else() {
    if !can_run() {
        return;
    }
    let (vmm, mut good) = Vmm::boot(Setup::tiny("ticks"));
    let too_long = u32::MAX.to_le_bytes();
    let garbage = [4, 0, 0, 0, 0xff, 0xfe, 0, 0];
    let unknown = *b"\x30\0\0\0{\"number\":1,\"request\":{\"kind\":\"explode\",\"x\":12}}";
    for bad in [&too_long[..], &garbage, &unknown] {
        let mut link = vmm.link();
        link.socket.write_all(bad).unwrap();
        let mut rest = [0; 16];
        assert!(
            matches!(link.socket.read(&mut rest), Ok(0) | Err(_)),
            "the connection is closed"
        );
    }
    assert_eq!(good.ask(VmRequest::Status).unwrap().state, VmState::Running);
    vmm.console().wait_for("tick 3");
}

#[test]
fn a_signal_ends_it_with_a_report() {
    if !can_run() {
        return;
    }
    let (mut vmm, mut link) = Vmm::boot(Setup::tiny("spin"));
    vmm.console().wait_for("READY spin");
    vmm.signal("HUP");
    std::thread::sleep(Duration::from_millis(50));
    assert!(vmm.is_running(), "the end of a terminal is none of its business");
    vmm.signal("TERM");
    let report = link.wait_for_report();
    assert_eq!(report.reason, EndReason::Requested);
    assert!(report.message.contains("SIGTERM"), "{}", report.message);
    assert_eq!(vmm.report(), report);
}

#[test]
fn without_a_machine_it_just_ends() {
    let mut vmm = Vmm::spawn();
    let mut link = vmm.link();
    assert_eq!(link.hello.status.state, VmState::Empty);
    assert_eq!(link.ask(VmRequest::Start).unwrap_err().kind, RefusalKind::WrongState);
    assert_eq!(link.ask(VmRequest::Quit).unwrap().state, VmState::Ended);
    assert!(vmm.wait().success());
    let mut vmm = Vmm::spawn();
    let _link = vmm.link();
    vmm.signal("TERM");
    assert!(vmm.wait().success());
}

#[test]
fn what_is_no_kernel_is_refused_with_a_report() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let tiny = std::fs::read(harness::tiny_guest()).unwrap();
    let kernels = [
        file("empty", b""),
        file("text", b"I am no kernel, and never claimed to be one.\n"),
        file("truncated", &tiny[..tiny.len() / 3]),
    ];
    for kernel in kernels {
        let mut vmm = Vmm::spawn();
        let mut link = vmm.link();
        let setup = Setup {
            kernel,
            ..Setup::tiny("serial")
        };
        let refusal = vmm.create(&mut link, setup).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::BadKernel, "{}", refusal.message);
        assert!(refusal.message.contains("kernel"), "{}", refusal.message);
        let report = vmm.report();
        assert_eq!(report.reason, EndReason::BuildFailed);
        assert_eq!(report.message, refusal.message);
    }
}

#[test]
fn missing_and_needless_files_are_refused() {
    let mut vmm = Vmm::spawn();
    let mut link = vmm.link();
    let run = std::fs::File::open(vmm.path("run")).unwrap();
    let create = |fds: Vec<FdRole>| {
        VmRequest::Create(Box::new(control::CreateVm {
            machine: Setup::tiny("serial").parts.try_into().unwrap(),
            chains: vec![],
            fds,
            console_log_max_bytes: 1 << 20,
            console_log_keep: 1,
        }))
    };
    let refusal = link
        .ask_with_files(create(vec![FdRole::RunDirectory]), &[run.as_fd()])
        .unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::BadFile, "{}", refusal.message);
    assert_eq!(
        vmm.report().reason,
        EndReason::BuildFailed,
        "the run directory did come along"
    );
}

#[test]
fn started_by_hand_it_explains_itself() {
    let run = |arguments: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_karat-vmm"))
            .args(arguments)
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    let (code, text) = run(&[]);
    assert!(
        code == Some(2) && text.contains("descriptor 3 is no listening socket"),
        "{text}"
    );
    let (code, text) = run(&["--version"]);
    assert_eq!(
        (code, text),
        (Some(0), format!("karat-vmm {}\n", env!("CARGO_PKG_VERSION")))
    );
    assert_eq!(run(&["--help"]).0, Some(0));
    let (code, text) = run(&["--explode"]);
    assert!(code == Some(2) && text.contains("--explode"), "{text}");
}
