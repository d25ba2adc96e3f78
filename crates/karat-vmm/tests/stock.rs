//! A stock Debian kernel on this machine's KVM. Runs where `KARAT_STOCK_GUEST` names a directory with `vmlinuz`, `vmlinux` and
//! `initrd.img` (the tiny stock guest of `cargo xtask`), which takes a KVM that runs stock kernels; skipped elsewhere.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests fail by panicking, and say why they skip"
)]

mod harness;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use control::{EndReason, VmRequest};
use harness::{Setup, Vmm};
use spec::NetSpec;

/// Under emulation, a boot takes ten seconds alone and much longer in company.
const BOOT: Duration = Duration::from_secs(180);

/// The guest's files, or a word on why there are none.
fn guest() -> Option<PathBuf> {
    let found = std::env::var_os("KARAT_STOCK_GUEST").map(PathBuf::from);
    if found.is_none() {
        eprintln!("skipped: KARAT_STOCK_GUEST is not set");
    }
    found
}

/// A machine that boots `kernel` and does `words`.
fn stock(guest: &std::path::Path, kernel: &str, words: &str) -> Setup {
    let mut setup = Setup::plain(guest.join(kernel)).memory(512 << 20);
    setup.initrd = Some(guest.join("initrd.img"));
    setup.parts.cmdline = format!("console=ttyS0 quiet panic=-1 net.ifnames=0 karat.test={words}");
    if let Ok(more) = std::env::var("KARAT_STOCK_CMDLINE") {
        setup.parts.cmdline = format!("{} {more}", setup.parts.cmdline);
    }
    setup
}

/// Boots `setup`, whose guest powers itself off; its console.
fn run_to_power_off(setup: Setup) -> String {
    let (mut vmm, _link) = Vmm::boot(setup);
    let mut console = vmm.console();
    console.wait_within("karat: poweroff", BOOT);
    console.wait_for_end();
    assert_eq!(vmm.report().reason, EndReason::GuestPowerOff);
    assert!(!console.seen.contains("failed"), "{}", console.seen);
    eprintln!("{}", console.seen);
    console.seen.clone()
}

#[test]
fn compressed_kernel_one_vcpu() {
    let Some(guest) = guest() else { return };
    let seen = run_to_power_off(stock(&guest, "vmlinuz", "cpus,memory,disks,rng,poweroff"));
    assert!(seen.contains("cpus online=1"), "{seen}");
}

#[test]
fn elf_kernel_four_vcpus_six_gib() {
    let Some(guest) = guest() else { return };
    let setup = stock(&guest, "vmlinux", "cpus,memory,poweroff").cpus(4).memory(6 << 30);
    let seen = run_to_power_off(setup);
    assert!(
        seen.contains("cpus online=4") && seen.contains("MemTotal_kib=60"),
        "{seen}"
    );
}

#[test]
fn disk_data_is_there_after_a_reset_and_in_another_machine() {
    let Some(guest) = guest() else { return };
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk");
    std::fs::File::create(&image).unwrap().set_len(128 << 20).unwrap();
    let words = "disks,resets:vda:3,write:vda:64,sum:vda:64,poweroff";
    let seen = run_to_power_off(stock(&guest, "vmlinuz", words).cpus(2).disk(&image, 2));
    let sum = |marker: &str| {
        let (_, rest) = seen.rsplit_once(marker).unwrap();
        rest.split_once("sha256=")
            .unwrap()
            .1
            .lines()
            .next()
            .unwrap()
            .trim()
            .to_owned()
    };
    assert_eq!(sum("karat: write dev=vda"), sum("karat: sum dev=vda"));
    assert_eq!(seen.matches("karat: resets seen=").count(), 4, "{seen}");
    let again = run_to_power_off(stock(&guest, "vmlinuz", "sum:vda:64,poweroff").disk(&image, 1));
    assert!(again.contains(&sum("karat: sum dev=vda")), "{again}");
}

#[test]
fn pings_over_a_tap_and_pause() {
    let Some(guest) = guest() else { return };
    let sh = |line: &str| {
        let done = Command::new("sh").args(["-c", line]).status().unwrap();
        assert!(done.success(), "{line}");
    };
    let pairs = tap::open("karat-stock0", 2).unwrap();
    sh("ip address add 10.77.0.1/24 dev karat-stock0 && ip link set karat-stock0 up");
    let mut setup = stock(
        &guest,
        "vmlinuz",
        "nics,ip:eth0:10.77.0.2/24,ping:10.77.0.1,button,tick",
    )
    .cpus(2);
    setup.parts.nets.push(NetSpec {
        mac: "02:00:00:00:77:02".parse().unwrap(),
        queue_pairs: 2,
    });
    setup.taps.push(pairs);
    let (mut vmm, mut link) = Vmm::boot(setup);
    let mut console = vmm.console();
    console.wait_within("karat: tick n=0", BOOT);
    eprintln!("{}\n{}", console.seen, vmm.resident());
    assert!(
        console.seen.contains("ping address=10.77.0.1 answered=yes"),
        "{}",
        console.seen
    );
    sh("ping -c 3 -W 5 10.77.0.2");
    link.ask(VmRequest::Pause).unwrap();
    sh("! ping -c 2 -W 1 10.77.0.2");
    link.ask(VmRequest::Resume).unwrap();
    sh("ping -c 3 -W 5 10.77.0.2");
    link.ask(VmRequest::PowerButton).unwrap();
    console.wait_within("reboot: Power down", BOOT);
    assert_eq!(vmm.report().reason, EndReason::GuestPowerOff);
}
