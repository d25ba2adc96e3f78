//! Debian packages that a command needs: installs what is missing, and says so.

use std::process::Stdio;

use anyhow::{Context, Result};

use crate::tools::{as_root, have, run, say};

/// What builds the lab host's and the golden image's file systems.
pub const IMAGES: &[&str] = &[
    "mmdebstrap",
    "busybox-static",
    "cpio",
    "e2fsprogs",
    "kmod",
    "qemu-utils",
    "util-linux",
    "lz4",
];
/// What makes and checks disk images next to ours.
pub const QEMU_IMAGES: &[&str] = &["qemu-utils"];
/// What tests hold Karat against: without it they are skipped.
pub const PEERS: &[&str] = &[
    "acpica-tools",
    "bzip2",
    "ca-certificates",
    "gnupg",
    "nginx-light",
    "openssl",
    "prometheus",
    "xorriso",
    "xz-utils",
    "zstd",
];
/// What boots the lab host.
pub const LAB: &[&str] = &["qemu-system-x86", "seabios", "util-linux"];
/// What makes and serves container disks.
pub const REGISTRY: &[&str] = &["umoci", "skopeo", "docker-registry"];
/// Services that packages start, where systemd runs. Tests run servers of their own.
const SERVICES: [(&str, &str); 3] = [
    ("docker-registry", "docker-registry.service"),
    ("nginx-light", "nginx.service"),
    ("prometheus", "prometheus.service"),
];
/// What the workspace's native code is compiled with.
pub const COMPILER: &[&str] = &["gcc", "libc6-dev"];

/// Installs those of `wanted` that are not there.
pub fn install(wanted: &[&[&str]]) -> Result<()> {
    let mut missing: Vec<&str> = wanted
        .iter()
        .copied()
        .flatten()
        .copied()
        .filter(|name| !installed(name))
        .collect();
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    anyhow::ensure!(
        have("apt-get"),
        "these Debian packages are missing and there is no apt-get: {}",
        missing.join(" ")
    );
    say(format!("installs Debian packages: {}", missing.join(" ")));
    let install = || {
        let mut command = as_root("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
            .args([
                "-qq",
                "-o",
                "Dpkg::Use-Pty=0",
                "install",
                "-y",
                "--no-install-recommends",
            ])
            .args(&missing);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    };
    // The package lists may be missing or old: one update, one more try.
    if run(install().stderr(Stdio::null())).is_err() {
        run(as_root("apt-get").args(["-qq", "update"]).stdin(Stdio::null()))?;
        run(&mut install()).context("the packages above are needed; install them by hand and try again")?;
    }
    let has_systemd = std::path::Path::new("/run/systemd/system").is_dir();
    for (package, service) in SERVICES {
        if has_systemd && missing.contains(&package) {
            say(format!(
                "stops {service}, which its package started: tests run their own"
            ));
            run(as_root("systemctl").args(["--quiet", "disable", "--now", service]))?;
        }
    }
    Ok(())
}

fn installed(package: &str) -> bool {
    let asked = std::process::Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    asked.is_ok_and(|answer| answer.stdout == b"installed")
}
