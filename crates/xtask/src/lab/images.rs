//! The lab's file systems: the base root, and the lab host derived from it.

use anyhow::Result;

use crate::cache::{Artefact, Inputs, artefact};
use crate::packages;
use crate::tools::{as_root, asset, run, say};

/// In every Debian root we make.
const BASE_PACKAGES: &str =
    "systemd systemd-sysv udev dbus kmod iproute2 iputils-ping linux-image-cloud-amd64 procps e2fsprogs";
/// In the lab host besides.
const LAB_PACKAGES: &str = "ca-certificates nftables curl jq socat qemu-utils psmisc strace libcap2-bin netcat-openbsd";
/// The lab host with the peer that figures are measured against.
const PEER_PACKAGES: &str = "qemu-system-x86 seabios";

/// The base root `base.tar` (about 45 s).
pub fn base() -> Result<Artefact> {
    let script = asset("base-root.sh");
    let inputs = Inputs::default().text(BASE_PACKAGES).file(&script)?;
    artefact("base", inputs, |dir| {
        packages::install(&[packages::IMAGES])?;
        say(format!(
            "builds the Debian base root from packages (about 1 minute): {BASE_PACKAGES}"
        ));
        run(as_root("sh")
            .arg(&script)
            .arg(dir.join("base.tar"))
            .arg(BASE_PACKAGES.replace(' ', ",")))
    })
}

/// The lab host: `root.img`, `vmlinuz`, `initrd.img` (about 30 s). `with_peer` adds QEMU to it, for figures.
pub fn host(with_peer: bool) -> Result<Artefact> {
    let base = base()?;
    let scripts = ["lab-root.sh", "lab-service.sh", "initrd.sh", "disk-init"].map(asset);
    let (name, wanted) = if with_peer {
        ("host-with-peer", format!("{LAB_PACKAGES} {PEER_PACKAGES}"))
    } else {
        ("host", LAB_PACKAGES.to_owned())
    };
    let mut inputs = Inputs::default().text(&base.key).text(&wanted);
    for script in &scripts {
        inputs = inputs.file(script)?;
    }
    artefact(name, inputs, |dir| {
        packages::install(&[packages::IMAGES])?;
        say(format!("builds the lab host's disk from the base root and: {wanted}"));
        let [root, service, initrd, init] = &scripts;
        run(as_root("sh")
            .arg(root)
            .arg(base.dir.join("base.tar"))
            .arg(dir)
            .args([service, initrd, init])
            .arg(&wanted))
    })
}
