//! The emulated host: QEMU's TCG with AMD SVM, as a command line.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::tools::tethered;

/// What one lab host is made of.
pub struct HostConfig {
    /// RAM in MiB; taken from this machine only as far as it is touched. 10 GiB hold a guest of 6 GiB.
    pub memory_mib: u32,
    /// Virtual CPUs. One thread of this machine each. Of several, the first runs nothing but the host's kernel: guests on it die
    /// of a race in the emulator (docs/lab-notes.md, "The emulator's races").
    pub cpus: u32,
    /// Extra words of the kernel command line.
    pub cmdline: String,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            memory_mib: 10240,
            cpus: 1,
            cmdline: String::new(),
        }
    }
}

/// File names in a host's run directory.
pub(super) const CONSOLE: &str = "console.log";
pub(super) const OUT: &str = "out";
pub(super) const STATUS: &str = "status";
pub(super) const RESULTS: &str = "results.tar";
pub(super) const MESSAGES: &str = "qemu.log";
pub(super) const PAYLOAD: &str = "payload.img";

/// Name of the port whose only use is that bytes on it interrupt the host: see [`super::Host::pulse`].
pub(super) const PULSE: &str = "karat.pulse";

/// Where the person or the log is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Console {
    /// Serial console to a file.
    Log,
    /// Serial console on our own terminal.
    Terminal,
}

/// What every lab host has. `snapshot`: the root is shared between runs, its changes are thrown away. `event_idx=off`: with it, a
/// device does not interrupt again before the last interrupt was taken, and the lost ones are what [`PULSE`] is for.
const MACHINE: &str = "-nodefaults -no-user-config -no-reboot -display none -machine q35,graphics=off,hpet=off \
    -accel tcg,thread=multi,tb-size=512 -cpu EPYC,+svm,-x2apic \
    -netdev user,id=outer,ipv6=off -device virtio-net-pci,netdev=outer,romfile= \
    -object rng-random,id=rng,filename=/dev/urandom -device virtio-rng-pci,rng=rng -device virtio-serial-pci,event_idx=off";
/// Kernel command line of every lab host.
const CMDLINE: &str = "console=ttyS0 root=LABEL=karat-lab rw quiet mitigations=off tsc=reliable net.ifnames=0 audit=0 \
    apparmor=0 random.trust_cpu=on panic=-1";

/// The QEMU command of host number `number` (from 1) of `hosts`, its files in `run`.
pub(super) fn command(
    config: &HostConfig,
    images: &Path,
    run: &Path,
    (number, hosts): (usize, usize),
    console: Console,
) -> Command {
    let mut qemu = tethered("qemu-system-x86_64");
    // File names below are relative: UNIX socket paths have room for 107 bytes only.
    qemu.current_dir(run).args(MACHINE.split_whitespace());
    qemu.args(["-smp", &config.cpus.to_string(), "-m", &config.memory_mib.to_string()]);
    qemu.arg("-kernel")
        .arg(images.join("vmlinuz"))
        .arg("-initrd")
        .arg(images.join("initrd.img"));
    let mode = if console == Console::Terminal { "shell" } else { "run" };
    let words = format!(
        "{CMDLINE} {} karat.host={number} karat.lab={mode} {}",
        affinity(config.cpus),
        config.cmdline
    );
    qemu.args(["-append", words.trim()]);
    drive(
        &mut qemu,
        "root",
        &images.join("root.img").display().to_string(),
        "snapshot=on",
    );
    drive(&mut qemu, "payload", PAYLOAD, "read-only=on");
    if hosts == 2 {
        let other = format!("../host{}/wire", 3 - number);
        option(
            &mut qemu,
            &format!("-netdev dgram,id=wire,local.type=unix,local.path=wire,remote.type=unix,remote.path={other}"),
        );
        option(
            &mut qemu,
            &format!("-device virtio-net-pci,netdev=wire,romfile=,mac=52:54:00:99:00:{number:02x}"),
        );
    }
    for (port, file) in [("karat.out", OUT), ("karat.status", STATUS), ("karat.results", RESULTS)] {
        option(&mut qemu, &format!("-chardev file,id={port},path={file}"));
        option(&mut qemu, &format!("-device virtserialport,chardev={port},name={port}"));
    }
    match console {
        Console::Log => {
            option(
                &mut qemu,
                &format!("-chardev file,id=console,path={CONSOLE} -serial chardev:console"),
            );
            option(
                &mut qemu,
                &format!("-chardev stdio,id={PULSE},signal=off -device virtserialport,chardev={PULSE},name={PULSE}"),
            );
            qemu.stdin(Stdio::piped());
            // What the emulator says (mostly which CPU features TCG lacks) matters only when it fails.
            qemu.stderr(File::create(run.join(MESSAGES)).map_or_else(|_| Stdio::null(), Stdio::from));
        }
        Console::Terminal => option(&mut qemu, "-serial mon:stdio"),
    }
    qemu
}

/// Keeps every process, thus every vCPU thread, off the first of several CPUs.
fn affinity(cpus: u32) -> String {
    match cpus {
        0 | 1 => String::new(),
        2 => "systemd.cpu_affinity=1".to_owned(),
        _ => format!("systemd.cpu_affinity=1-{}", cpus - 1),
    }
}

fn drive(qemu: &mut Command, id: &str, file: &str, options: &str) {
    qemu.args([
        "-drive",
        &format!("id={id},if=none,format=raw,cache=unsafe,file={file},{options}"),
    ]);
    option(qemu, &format!("-device virtio-blk-pci,drive={id}"));
}

/// Adds words that have no spaces inside.
fn option(qemu: &mut Command, words: &str) {
    qemu.args(words.split_whitespace());
}
