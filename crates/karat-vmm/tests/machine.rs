//! Tiny guests on the machine's own KVM: what a guest sees of its machine, and how machines end.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod harness;

use control::{EndReason, VmEvent, VmRequest, VmState};
use harness::{Setup, Vmm, can_run};

/// Boots `setup`, whose guest leaves by itself; checks that it found nothing wrong, and gives its console.
fn run_to_end(setup: Setup) -> String {
    let (mut vmm, mut link) = Vmm::boot(setup);
    let mut console = vmm.console();
    let report = link.wait_for_report();
    let seen = console.wait_for_end().to_owned();
    assert_eq!(report.reason, EndReason::DebugExit { code: 0 }, "{seen}");
    assert_eq!(vmm.report(), report, "the same in the run directory");
    assert_eq!(vmm.console_log(), seen, "the same in the log");
    seen
}

#[test]
fn serial_output_and_a_first_entry() {
    if !can_run() {
        return;
    }
    let (mut vmm, mut link) = Vmm::boot(Setup::tiny("serial,ticks"));
    let mut console = vmm.console();
    console.wait_for("PASS serial");
    console.wait_for("tick 1");
    let status = link.ask(VmRequest::Status).unwrap();
    let micros = status.first_entry_us.expect("the guest has been entered");
    assert!(micros < 1_000_000, "{micros} µs from start to first entry");
    link.ask(VmRequest::Quit).unwrap();
    assert_eq!(vmm.report().reason, EndReason::Requested);
}

#[test]
fn ports_memory_mapped_registers_tables_clock_and_interrupts() {
    if !can_run() {
        return;
    }
    let seen = run_to_end(Setup::tiny("acpi,memory,pio,mmio,rtc,irq"));
    for name in ["acpi", "memory", "pio", "mmio", "rtc", "irq"] {
        assert!(seen.contains(&format!("PASS {name}")), "{seen}");
    }
}

#[test]
fn all_vcpus_start() {
    if !can_run() {
        return;
    }
    let seen = run_to_end(Setup::tiny("smp").cpus(4));
    assert!(seen.contains("cpus=4"), "{seen}");
}

#[test]
fn a_triple_fault_is_reported_with_registers() {
    if !can_run() {
        return;
    }
    let (mut vmm, mut link) = Vmm::boot(Setup::tiny("triple-fault"));
    let report = link.wait_for_report();
    assert_eq!(report.reason, EndReason::TripleFault);
    assert!(
        report.message.contains("vcpu 0") && report.message.contains("rip="),
        "{}",
        report.message
    );
    assert_eq!(vmm.report(), report);
}

#[test]
fn five_resets_in_one_process() {
    if !can_run() {
        return;
    }
    let (mut vmm, mut link) = Vmm::boot(Setup::tiny("reset"));
    let pid = vmm.pid();
    for expected in 1..=5 {
        let resets = link.wait_for(|event| match event {
            VmEvent::GuestReset { resets } => Some(*resets),
            _ => None,
        });
        assert_eq!(resets, expected);
    }
    let descriptors = || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    link.ask(VmRequest::Pause).unwrap();
    let before = descriptors();
    link.ask(VmRequest::Resume).unwrap();
    for _ in 0..5 {
        link.wait_for(|event| matches!(event, VmEvent::GuestReset { .. }).then_some(()));
    }
    // A guest that resets at once may be rebuilt just now.
    let _ = link.ask(VmRequest::Pause);
    assert!(
        descriptors() <= before + 2,
        "resets leak descriptors: {before}, then {}",
        descriptors()
    );
    link.ask(VmRequest::Quit).unwrap();
    assert!(vmm.report().resets >= 10);
}

#[test]
fn the_daemon_can_reset_too() {
    if !can_run() {
        return;
    }
    let (mut vmm, mut link) = Vmm::boot(Setup::tiny("reset-8042"));
    link.wait_for(|event| matches!(event, VmEvent::GuestReset { .. }).then_some(()));
    drop(vmm.report_after_quit(&mut link));
    let (mut vmm, mut link) = Vmm::boot(Setup::tiny("halt"));
    vmm.console().wait_for("READY halt");
    assert_eq!(link.ask(VmRequest::Reset).unwrap().resets, 1);
    let mut console = vmm.console();
    console.wait_for("READY halt");
    while console.seen.matches("READY halt").count() < 2 {
        console.read();
    }
    assert_eq!(vmm.report_after_quit(&mut link).resets, 1);
}

#[test]
fn power_off_ends_cleanly() {
    if !can_run() {
        return;
    }
    let (mut vmm, mut link) = Vmm::boot(Setup::tiny("poweroff"));
    assert_eq!(link.wait_for_report().reason, EndReason::GuestPowerOff);
    assert_eq!(vmm.report().reason, EndReason::GuestPowerOff);
}

#[test]
fn the_power_button_reaches_the_guest() {
    if !can_run() {
        return;
    }
    let (mut vmm, mut link) = Vmm::boot(Setup::tiny("power-button"));
    let mut console = vmm.console();
    console.wait_for("READY power-button");
    link.ask(VmRequest::PowerButton).unwrap();
    console.wait_for("PASS power-button");
    assert_eq!(vmm.report().reason, EndReason::DebugExit { code: 0 });
}

#[test]
fn a_failing_guest_makes_its_code_visible() {
    if !can_run() {
        return;
    }
    let (mut vmm, _link) = Vmm::boot(Setup::tiny("no-such-test"));
    assert_eq!(vmm.report().reason, EndReason::DebugExit { code: 1 });
    assert_eq!(vmm.wait().code(), Some(1));
}

#[test]
fn a_paused_guest_makes_no_progress() {
    if !can_run() {
        return;
    }
    let (mut vmm, mut link) = Vmm::boot(Setup::tiny("ticks"));
    let mut console = vmm.console();
    console.wait_for("tick 3");
    for _ in 0..5 {
        assert_eq!(link.ask(VmRequest::Pause).unwrap().state, VmState::Paused);
        // What was printed before the pause arrives still.
        std::thread::sleep(std::time::Duration::from_millis(50));
        console.read();
        let before = console.seen.len();
        std::thread::sleep(std::time::Duration::from_millis(150));
        console.read();
        assert_eq!(console.seen.len(), before, "the guest prints while paused");
        assert_eq!(link.ask(VmRequest::Resume).unwrap().state, VmState::Running);
        let next = console.seen.matches("tick").count() + 2;
        console.wait_for(&format!("tick {next}"));
    }
    assert_eq!(vmm.report_after_quit(&mut link).reason, EndReason::Requested);
}
