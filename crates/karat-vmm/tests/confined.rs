//! Seccomp filters of a running machine process, as the host's kernel sees them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod harness;

use std::fs;
use std::time::{Duration, Instant};

use control::{EndReason, VmEvent, VmRequest};
use harness::{Link, PATIENCE, Setup, Vmm, can_run};

/// A thread as `/proc` tells of it (proc_pid_status(5)).
#[derive(Debug)]
struct Task {
    name: String,
    is_main: bool,
    /// 2: there are filters.
    mode: u32,
    /// How many.
    filters: u32,
    no_new_privs: bool,
}

fn tasks(vmm: &Vmm) -> Vec<Task> {
    let pid = vmm.pid().to_string();
    let folders = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let task = |folder: fs::DirEntry| {
        // Gone meanwhile.
        let status = fs::read_to_string(folder.path().join("status")).ok()?;
        let line = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.unwrap_or_else(|| panic!("no {key} in {status}")).trim().to_owned()
        };
        Some(Task {
            name: line("Name:"),
            is_main: folder.file_name().to_str() == Some(&pid),
            mode: line("Seccomp:").parse().unwrap(),
            filters: line("Seccomp_filters:").parse().unwrap(),
            no_new_privs: line("NoNewPrivs:") == "1",
        })
    };
    folders.filter_map(|folder| task(folder.unwrap())).collect()
}

/// Checks that every thread is confined, and by its own list; the names of them.
fn all_are_confined(vmm: &Vmm) -> Vec<String> {
    let tasks = tasks(vmm);
    for task in &tasks {
        assert!(task.mode == 2 && task.no_new_privs, "{task:?} of {tasks:#?}");
        // What hides clone3, and the list of its own; besides, what it has from the steward that started it.
        let own = task.is_main || task.name == "steward";
        assert_eq!(task.filters, if own { 2 } else { 3 }, "{task:?} of {tasks:#?}");
    }
    tasks.into_iter().map(|task| task.name).collect()
}

fn assert_has(names: &[String], wanted: &[&str]) {
    for start in wanted {
        assert!(
            names.iter().any(|name| name.starts_with(start)),
            "no {start} in {names:?}"
        );
    }
}

/// Two vCPUs, a disk of two queues whose device works.
fn machine(folder: &tempfile::TempDir, test: &str) -> Setup {
    let image = folder.path().join("disk");
    fs::write(&image, vec![0; 1 << 20]).unwrap();
    Setup::tiny(test).cpus(2).disk(&image, 2)
}

#[test]
fn every_thread_of_a_running_machine_is_confined() {
    let vmm = Vmm::spawn();
    let mut link = vmm.link();
    assert_has(
        &all_are_confined(&vmm),
        &["karat-vmm", "steward", "console", "state-driver"],
    );
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let test = vec!["blk,blk-verify"; 60].join(",");
    vmm.create(&mut link, machine(&folder, &test)).unwrap();
    assert_has(&all_are_confined(&vmm), &["vcpu0", "vcpu1"]);
    link.ask(VmRequest::Start).unwrap();
    let deadline = Instant::now() + PATIENCE;
    // Its driver gives the device up and begins anew, again and again. What a paused machine has stays.
    let names = loop {
        link.ask(VmRequest::Pause).unwrap();
        let names = all_are_confined(&vmm);
        if names.iter().any(|name| name.starts_with("disk0")) {
            break names;
        }
        assert!(Instant::now() < deadline, "no worker of the disk in {names:?}");
        link.ask(VmRequest::Resume).unwrap();
        std::thread::sleep(Duration::from_millis(3));
    };
    assert_has(&names, &["vcpu0", "vcpu1", "steward", "console", "state-driver"]);
    link.ask(VmRequest::Resume).unwrap();
    link.ask(VmRequest::Reset).unwrap();
    link.wait_for(|event| matches!(event, VmEvent::GuestReset { .. }).then_some(()));
    link.ask(VmRequest::Pause).unwrap();
    assert_has(&all_are_confined(&vmm), &["vcpu0", "vcpu1"]);
    link.ask(VmRequest::Quit).unwrap();
}

/// glibc gives the first few threads heaps without a question, and looks at the host for the next.
#[test]
fn a_machine_of_many_threads_runs() {
    if !can_run() {
        return;
    }
    let (mut vmm, mut link) = Vmm::boot(Setup::tiny("smp").cpus(16));
    let report = link.wait_for_report();
    assert_eq!(report.reason, EndReason::DebugExit { code: 0 }, "{}", vmm.console_log());
    vmm.wait();
}

#[test]
fn filters_can_be_had_to_log_or_not_at_all() {
    for (argument, mode) in [("--seccomp=enforce", 2), ("--seccomp=log", 2), ("--seccomp=off", 0)] {
        let mut vmm = Vmm::spawn_with(&[argument]);
        let mut link = vmm.link();
        let tasks = tasks(&vmm);
        assert!(tasks.iter().all(|task| task.mode == mode), "{argument}: {tasks:#?}");
        link.ask(VmRequest::Quit).unwrap();
        assert!(vmm.wait().success());
    }
    let mut vmm = Vmm::spawn_with(&["--seccomp=on"]);
    assert_eq!(vmm.wait().code(), Some(2));
    assert!(
        vmm.stderr().contains("none of enforce, log and off"),
        "{}",
        vmm.stderr()
    );
}

#[test]
fn a_machine_runs_alike_in_all_modes() {
    if !can_run() {
        return;
    }
    for argument in ["--seccomp=log", "--seccomp=off"] {
        let folder = tempfile::tempdir().unwrap();
        let vmm = Vmm::spawn_with(&[argument]);
        let mut link: Link = vmm.link();
        vmm.create(&mut link, machine(&folder, "blk,ticks")).unwrap();
        link.ask(VmRequest::Start).unwrap();
        let mut console = vmm.console();
        console.wait_for("tick 1");
        assert!(console.seen.contains("PASS blk"), "{}", console.seen);
    }
}
