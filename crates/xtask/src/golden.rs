//! Guests: the golden Debian image and the tiny stock guest, as files and as container disks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache::{Artefact, Inputs, artefact};
use crate::lab::images;
use crate::tools::{as_root, asset, output, run, say};
use crate::{kernel, packages};

/// Modules of the tiny guest's initrd.
const TINY_MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "virtio_console",
    "button",
    "evdev",
];
/// Further modules for scenarios of disks.
const DISK_MODULES: &[&str] = &["virtio_scsi", "sd_mod", "sr_mod", "sg", "ext4", "xfs", "isofs"];
/// Debian packages that scenarios of disks have tools from, beside those of the base root.
const DISK_PACKAGES: &str = "fio xfsprogs sg3-utils";
/// Their tools, and some of the base root's.
const DISK_TOOLS: &[&str] = &[
    "/usr/bin/fio",
    "/usr/sbin/mkfs.xfs",
    "/usr/sbin/xfs_repair",
    "/usr/bin/sg_inq",
    "/usr/bin/sg_readcap",
    "/usr/sbin/mke2fs",
    "/usr/sbin/e2fsck",
    "/usr/sbin/fstrim",
    "/usr/bin/lsblk",
];
/// Virtual size of the tiny guest's disk: room for 1 GiB of test data and more.
const TINY_DISK: &str = "2G";

/// A Debian 12 with systemd: `debian.qcow2`, `vmlinuz`, `initrd.img`, `cmdline`.
pub fn debian() -> Result<Artefact> {
    let base = images::base()?;
    let scripts = ["golden-root.sh", "initrd.sh", "disk-init"].map(asset);
    let mut inputs = Inputs::default().text(&base.key);
    for script in &scripts {
        inputs = inputs.file(script)?;
    }
    artefact("golden", inputs, |dir| {
        packages::install(&[packages::IMAGES])?;
        say("builds the golden image: Debian 12 with systemd in qcow2, kernel, initrd (about 15 s)");
        let [root, initrd, init] = &scripts;
        run(as_root("sh")
            .arg(root)
            .arg(base.dir.join("base.tar"))
            .arg(dir)
            .args([initrd, init]))
    })
}

/// The tiny stock guest: `vmlinuz` (bzImage), `vmlinux` (the ELF in it), `initrd.img` (busybox and `assets/tiny-init`),
/// `blank.qcow2`, `cmdline`.
pub fn tiny() -> Result<Artefact> {
    let base = images::base()?;
    let scripts = ["initrd.sh", "tiny-init"].map(asset);
    let mut inputs = Inputs::default()
        .text(&base.key)
        .text(&TINY_MODULES.join(" "))
        .text(TINY_DISK);
    for script in &scripts {
        inputs = inputs.file(script)?;
    }
    artefact("tiny", inputs, |dir| {
        packages::install(&[packages::IMAGES])?;
        say("builds the tiny stock guest: Debian's kernel with a busybox initrd (about 5 s)");
        let root = dir.join("root");
        fs::create_dir_all(&root)?;
        // The root is merged: /lib is a symbolic link to /usr/lib.
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(&root).arg("-xf").arg(base.dir.join("base.tar"));
        run(tar.args([
            "--no-same-owner",
            "--wildcards",
            "./lib",
            "./usr/lib/modules",
            "./boot/vmlinuz-*",
        ]))?;
        let boot = fs::read_dir(root.join("boot"))?
            .next()
            .context("the base root has no kernel")??;
        fs::copy(boot.path(), dir.join("vmlinuz"))?;
        kernel::extract(&dir.join("vmlinuz"), &dir.join("vmlinux"))?;
        let [initrd, init] = &scripts;
        run(Command::new("sh")
            .arg(initrd)
            .arg(&root)
            .arg(init)
            .arg(dir.join("initrd.img"))
            .args(TINY_MODULES))?;
        fs::write(dir.join("cmdline"), "console=ttyS0 quiet net.ifnames=0 panic=-1\n")?;
        output(
            Command::new("qemu-img")
                .args(["create", "-q", "-f", "qcow2"])
                .arg(dir.join("blank.qcow2"))
                .arg(TINY_DISK),
        )?;
        fs::remove_dir_all(&root)?;
        Ok(())
    })
}

/// The initrd of the tiny stock guest for scenarios of disks: `initrd.img`, with file systems, the SCSI bus, and tools.
pub fn disk_tools() -> Result<Artefact> {
    let base = images::base()?;
    let scripts = ["disk-guest.sh", "initrd.sh", "tiny-init"].map(asset);
    let modules = [TINY_MODULES, DISK_MODULES].concat();
    let tools = DISK_TOOLS.join(" ");
    let mut inputs = Inputs::default()
        .text(&base.key)
        .text(&modules.join(" "))
        .text(DISK_PACKAGES)
        .text(&tools);
    for script in &scripts {
        inputs = inputs.file(script)?;
    }
    artefact("disk-tools", inputs, |dir| {
        packages::install(&[packages::IMAGES])?;
        say(format!(
            "builds the guest of the disk scenarios from the base root and: {DISK_PACKAGES}"
        ));
        let [build, initrd, init] = &scripts;
        run(as_root("sh")
            .arg(build)
            .arg(base.dir.join("base.tar"))
            .arg(dir)
            .args([initrd, init])
            .args([DISK_PACKAGES, &tools])
            .args(&modules))
    })
}

/// A container disk in OCI layout: every file a layer of its own, so that what did not change is not pulled again.
pub fn container_disk(name: &str, from: &Artefact, files: &[(&str, &str)]) -> Result<PathBuf> {
    let inputs = Inputs::default().text(&from.key).text(&format!("{files:?}"));
    let made = artefact(name, inputs, |dir| {
        packages::install(&[packages::REGISTRY])?;
        say(format!("packs container disk {name}"));
        let layout = dir.join("oci");
        let _ = fs::remove_dir_all(&layout);
        run(umoci().args(["init", "--layout"]).arg(&layout))?;
        let image = format!("{}:latest", layout.display());
        run(umoci().args(["new", "--image", &image]))?;
        for (file, to) in files {
            run(umoci()
                .args(["insert", "--image", &image])
                .arg(from.dir.join(file))
                .arg(to))?;
        }
        let cmdline = fs::read_to_string(from.dir.join("cmdline"))?;
        let label = format!("io.karat.cmdline={}", cmdline.trim());
        run(umoci().args(["config", "--image", &image, "--config.label", &label]))
    })?;
    Ok(made.dir.join("oci"))
}

/// The golden image as a container disk.
pub fn debian_container() -> Result<PathBuf> {
    let files = [
        ("vmlinuz", "/boot/vmlinuz"),
        ("initrd.img", "/boot/initrd.img"),
        ("cmdline", "/boot/cmdline"),
        ("debian.qcow2", "/disk/debian.qcow2"),
    ];
    container_disk("golden-container", &debian()?, &files)
}

/// The tiny guest as a container disk.
pub fn tiny_container() -> Result<PathBuf> {
    let files = [
        ("vmlinuz", "/boot/vmlinuz"),
        ("initrd.img", "/boot/initrd.img"),
        ("cmdline", "/boot/cmdline"),
        ("blank.qcow2", "/disk/blank.qcow2"),
    ];
    container_disk("tiny-container", &tiny()?, &files)
}

/// Where the files of [`tiny`] are, for those that boot it without a registry.
pub fn tiny_files(tiny: &Artefact) -> [PathBuf; 4] {
    ["vmlinuz", "vmlinux", "initrd.img", "blank.qcow2"].map(|name| Path::new(&tiny.dir).join(name))
}

fn umoci() -> Command {
    let mut command = Command::new("umoci");
    command.args(["--log", "error"]);
    command
}
