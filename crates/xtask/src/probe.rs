//! Where stock guests run: directly, if this machine's `/dev/kvm` boots a stock kernel; else in the lab.
//!
//! Decided by booting one, not by CPU flags: a `/dev/kvm` may be there and still not run a stock kernel.

use std::fs::{self, File};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::tools::{say, target, tethered};
use crate::{golden, packages};

/// What the tiny guest's init prints first.
const USERSPACE: &str = "karat: up";
/// Bare metal needs one second; emulated instructions need minutes.
const LIMIT: Duration = Duration::from_secs(20);

/// Can stock guests run on this machine itself? The answer holds until the machine is booted again.
pub fn boots_stock_kernels() -> Result<bool> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let memo = target().join("lab/probe");
    if let Some((known, answer)) = fs::read_to_string(&memo)
        .ok()
        .as_deref()
        .and_then(|text| text.split_once(' '))
        && known == boot.trim()
    {
        return Ok(tell(answer == "yes", "as probed before"));
    }
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(tell(false, "/dev/kvm cannot be opened"));
    }
    let (answer, why) = boot_one()?;
    fs::create_dir_all(target().join("lab"))?;
    fs::write(&memo, format!("{} {}", boot.trim(), if answer { "yes" } else { "no" }))?;
    Ok(tell(answer, why))
}

fn boot_one() -> Result<(bool, &'static str)> {
    packages::install(&[packages::LAB])?;
    let tiny = golden::tiny()?;
    let output = target().join("lab/probe.log");
    say("probes /dev/kvm by booting a stock kernel on it (at most 20 s)");
    let log = File::create(&output)?;
    let mut child = tethered("qemu-system-x86_64")
        .args([
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
            "-M",
            "microvm",
            "-accel",
            "kvm",
            "-cpu",
            "host",
        ])
        .args([
            "-m",
            "256",
            "-serial",
            "stdio",
            "-append",
            "console=ttyS0 quiet panic=-1 karat.test=poweroff",
        ])
        .arg("-kernel")
        .arg(tiny.dir.join("vmlinuz"))
        .arg("-initrd")
        .arg(tiny.dir.join("initrd.img"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot start qemu-system-x86_64")?;
    let started = Instant::now();
    let verdict = loop {
        if fs::read(&output).is_ok_and(|text| String::from_utf8_lossy(&text).contains(USERSPACE)) {
            break (true, "a stock kernel reached user space");
        }
        if child.try_wait()?.is_some() {
            break (false, "a stock kernel ended before it reached user space");
        }
        if started.elapsed() > LIMIT {
            break (false, "a stock kernel did not reach user space in time");
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let _ = child.kill();
    let _ = child.wait();
    Ok(verdict)
}

fn tell(answer: bool, why: &str) -> bool {
    let place = if answer {
        "directly on this machine"
    } else {
        "in the lab host"
    };
    say(format!("stock guests run {place}: {why}"));
    answer
}
