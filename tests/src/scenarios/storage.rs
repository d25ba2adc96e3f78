//! qcow2 chains under file systems of a real guest, on both buses; power cuts.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use api_types::{
    ByteSize, DiskBus, DiskFormat, DiskLimits, DiskWish, VmPhase, VolumeAccepted, VolumeCheckRequest, VolumeResize,
};
use rustix::process::{Pid, Signal, kill_process};

use crate::daemon::Daemon;
use crate::environment::Kernel;
use crate::guest::Guest;

/// Virtual size of the disks: more than the 300 MiB that mkfs.xfs insists on.
const SIZE: &str = "512M";
/// Time for what works on all of a file system in a guest of an emulated host.
pub(super) const WORK_LIMIT: Duration = Duration::from_secs(300);
/// Bytes in a block of `st_blocks` (stat(2)).
const STAT_BLOCK_BYTES: u64 = 512;
/// What fio writes to each file system, MiB.
const FIO_MIB: u64 = 32;

/// A file system and its tools, by their paths: the shell would take its own for some.
#[derive(Debug, Clone, Copy)]
enum FileSystem {
    Ext4,
    Xfs,
}

impl FileSystem {
    const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }

    const fn make(self) -> &'static str {
        match self {
            Self::Ext4 => "/usr/bin/mke2fs -q -F -t ext4",
            Self::Xfs => "/usr/bin/mkfs.xfs -q -f",
        }
    }

    /// Fails if anything is wrong, and changes nothing.
    const fn check(self) -> &'static str {
        match self {
            Self::Ext4 => "/usr/bin/e2fsck -fn",
            Self::Xfs => "/usr/bin/xfs_repair -n",
        }
    }
}

/// A top image over two others: 4 MiB of `Z` at 100 MiB come from the lowest, 4 MiB of `U` at 200 MiB from the middle.
fn chain(dir: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let layer = |layer: &str| format!("{name}-{layer}.qcow2");
    let (base, middle, top) = (layer("base"), layer("middle"), layer("top"));
    qemu(dir, "qemu-img", &["create", "-q", "-f", "qcow2", &base, SIZE])?;
    qemu(dir, "qemu-io", &["-c", "write -q -P 0x5a 100M 4M", &base])?;
    for (image, backing) in [(&middle, &base), (&top, &middle)] {
        qemu(
            dir,
            "qemu-img",
            &["create", "-q", "-f", "qcow2", "-b", backing, "-F", "qcow2", image],
        )?;
    }
    qemu(dir, "qemu-io", &["-c", "write -q -P 0x55 200M 4M", &middle])?;
    Ok(dir.join(top))
}

pub(super) fn qemu(dir: &Path, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program)
        .current_dir(dir)
        .args(arguments)
        .output()
        .with_context(|| format!("{program} can not be run; it is part of qemu-utils"))?;
    let told = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(
        output.status.success(),
        "{program} {arguments:?}: {}: {told}",
        output.status
    );
    Ok(told)
}

fn check_image(image: &Path) -> anyhow::Result<()> {
    let path = image.display().to_string();
    qemu(Path::new("/"), "qemu-img", &["check", "-f", "qcow2", &path]).map(drop)
}

fn used_bytes(image: &Path) -> anyhow::Result<u64> {
    Ok(image.metadata()?.blocks() * STAT_BLOCK_BYTES)
}

/// A guest with the tools of disk scenarios and these disks.
pub(super) async fn boot(daemon: &Daemon, disks: Vec<DiskWish>) -> anyhow::Result<Guest> {
    let mut spec = daemon.stock("guest", Kernel::BzImage);
    let initrd = daemon.install("initrd-disk")?.display().to_string();
    spec.boot.get_or_insert_default().initrd = Some(initrd);
    spec.disks = disks;
    daemon.run(&spec).await?;
    tooled(daemon).await
}

async fn tooled(daemon: &Daemon) -> anyhow::Result<Guest> {
    let mut guest = daemon.guest("guest").await?;
    guest.run("export PATH=/bin:/usr/bin").await?;
    Ok(guest)
}

fn qcow2_disk(image: &Path, bus: DiskBus, serial: &str) -> DiskWish {
    DiskWish {
        format: Some(DiskFormat::Qcow2),
        bus,
        serial: Some(serial.to_owned()),
        ..DiskWish::from_path(image.display().to_string())
    }
}

pub(super) async fn chain_on_virtio(daemon: &mut Daemon) -> anyhow::Result<()> {
    let image = chain(&daemon.files(), "disk")?;
    let mut guest = boot(daemon, vec![qcow2_disk(&image, DiskBus::Virtio, "virtio-serial")]).await?;
    let serial = guest
        .run("/usr/bin/lsblk -dnO -P /dev/vda; busybox cat /sys/block/vda/serial")
        .await?;
    ensure!(serial.ends_with("virtio-serial"), "{serial}");
    shows_the_chain(&mut guest, "/dev/vda").await?;
    for kind in [FileSystem::Ext4, FileSystem::Xfs] {
        carries(&mut guest, "/dev/vda", kind, &image).await?;
    }
    daemon.stop_vm("guest").await?;
    check_image(&image)
}

pub(super) async fn chain_on_scsi(daemon: &mut Daemon) -> anyhow::Result<()> {
    let image = chain(&daemon.files(), "disk")?;
    let disc = daemon.files().join("disc.iso");
    crate::disk::PatternDisk::create(&disc, 1, 0x0c0d)?;
    let cdrom = DiskWish {
        bus: DiskBus::Scsi,
        cdrom: true,
        ..DiskWish::from_path(disc.display().to_string())
    };
    let mut guest = boot(daemon, vec![qcow2_disk(&image, DiskBus::Scsi, "scsi-serial"), cdrom]).await?;
    let page = guest
        .run("/usr/bin/sg_inq --page=0x80 /dev/sda; /usr/bin/lsblk -dnO -P /dev/sda")
        .await?;
    ensure!(page.contains("scsi-serial"), "{page}");
    let kind = guest.run("/usr/bin/sg_inq /dev/sr0").await?;
    ensure!(kind.contains("cd/dvd"), "{kind}");
    let differs = guest.run("busybox md5sum < /dev/sr0").await?;
    let there = Command::new("md5sum").stdin(std::fs::File::open(&disc)?).output()?;
    ensure!(
        differs.split_whitespace().next() == String::from_utf8_lossy(&there.stdout).split_whitespace().next(),
        "the disc reads as {differs}"
    );
    shows_the_chain(&mut guest, "/dev/sda").await?;
    for kind in [FileSystem::Ext4, FileSystem::Xfs] {
        carries(&mut guest, "/dev/sda", kind, &image).await?;
    }
    daemon.stop_vm("guest").await?;
    check_image(&image)
}

/// What each layer holds is seen, and zeroes elsewhere.
async fn shows_the_chain(guest: &mut Guest, device: &str) -> anyhow::Result<()> {
    for (at, byte) in [(100, "132"), (200, "125"), (300, "000")] {
        let others = guest
            .run(&format!(
                "busybox dd if={device} bs=1M skip={at} count=4 2>/dev/null | busybox tr -d '\\{byte}' | busybox wc -c"
            ))
            .await?;
        ensure!(others == "0", "{others} bytes at {at} MiB are not \\{byte}");
    }
    Ok(())
}

/// A file system that verifies under fio, is sound afterwards, and gives space back when its files are gone.
async fn carries(guest: &mut Guest, device: &str, kind: FileSystem, image: &Path) -> anyhow::Result<()> {
    let name = kind.name();
    guest
        .run_within(&format!("{} {device}", kind.make()), WORK_LIMIT)
        .await?;
    guest.run(&format!("busybox mount -t {name} {device} /root")).await?;
    let fio = format!(
        "/usr/bin/fio --thread --name=verify --directory=/root --size={FIO_MIB}m --rw=randwrite --bsrange=4k-64k --ioengine=libaio \
         --iodepth=16 --direct=1 --verify=crc32c --verify_fatal=1 --output=/tmp/fio || busybox cat /tmp/fio; \
         busybox grep -q 'err= 0' /tmp/fio"
    );
    guest.run_within(&fio, WORK_LIMIT).await?;
    guest.run_within("busybox sync", WORK_LIMIT).await?;
    let full = used_bytes(image)?;
    guest
        .run_within(
            &format!(
                "busybox rm /root/verify* && busybox sync && /usr/bin/fstrim /root && busybox umount /root && {} {device}",
                kind.check()
            ),
            WORK_LIMIT,
        )
        .await?;
    let trimmed = used_bytes(image)?;
    ensure!(
        trimmed + (FIO_MIB << 20) / 2 < full,
        "{name}: the image took {full} bytes, and takes {trimmed} after fstrim"
    );
    Ok(())
}

/// By how much the image grows before fio is surely at work, bytes.
const CUT_BYTES: u64 = 1 << 20;
/// How long that may take, seconds: a busy emulated host takes tens.
const CUT_WAIT_S: u32 = 120;

pub(super) async fn power_cut_under_fio(daemon: &mut Daemon) -> anyhow::Result<()> {
    let image = chain(&daemon.files(), "disk")?;
    let device = "/dev/vda";
    let mut guest = boot(daemon, vec![qcow2_disk(&image, DiskBus::Virtio, "disk")]).await?;
    for kind in [FileSystem::Ext4, FileSystem::Xfs] {
        let name = kind.name();
        let prepare = format!(
            "{} {device} && busybox mount -t {name} {device} /root && echo kept-{name} > /root/mark && busybox sync",
            kind.make()
        );
        guest.run_within(&prepare, WORK_LIMIT).await?;
        guest
            .run(
                "(/usr/bin/fio --thread --name=cut --directory=/root --size=64m --rw=randwrite --bsrange=4k-64k --ioengine=libaio \
                 --iodepth=16 --fsync=32 --direct=1 --time_based --runtime=600 > /tmp/fio 2>&1 &)",
            )
            .await?;
        let before = used_bytes(&image)?;
        // Until fio writes, and then for as long as it takes to write over some of it.
        for _ in 0..CUT_WAIT_S {
            if used_bytes(&image)? >= before + CUT_BYTES {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        ensure!(
            used_bytes(&image)? > before,
            "fio wrote nothing in {CUT_WAIT_S} s: {}",
            guest.run("busybox cat /tmp/fio").await?
        );
        tokio::time::sleep(Duration::from_secs(15)).await;
        let vm = daemon.client.vm("guest").await?;
        let pid = i32::try_from(vm.status.pid.context("no process")?)?;
        kill_process(Pid::from_raw(pid).context("no process")?, Signal::KILL)?;
        daemon.wait_for("guest", VmPhase::Failed).await?;
        check_image(&image)?;
        daemon.start_vm("guest").await?;
        guest = tooled(daemon).await?;
        // Mounting replays the journal; after that nothing may be wrong.
        let mark = guest
            .run_within(
                &format!("busybox mount -t {name} {device} /root && busybox cat /root/mark && busybox umount /root"),
                WORK_LIMIT,
            )
            .await?;
        ensure!(mark == format!("kept-{name}"), "{mark}");
        guest
            .run_within(&format!("{} {device}", kind.check()), WORK_LIMIT)
            .await?;
    }
    daemon.stop_vm("guest").await?;
    check_image(&image)
}

pub(super) async fn volumes_grow_under_a_guest(daemon: &mut Daemon) -> anyhow::Result<()> {
    let (small, large) = (ByteSize::from_mib(64), ByteSize::from_mib(96));
    let limits = DiskLimits {
        read_bytes_per_s: Some(ByteSize::from_mib(4)),
        ..DiskLimits::default()
    };
    let mut disks = Vec::new();
    for (name, format, bus) in [
        ("plain", DiskFormat::Raw, DiskBus::Virtio),
        ("cow", DiskFormat::Qcow2, DiskBus::Scsi),
    ] {
        let wish = serde_json::json!({ "name": name, "size": small, "format": format });
        let made = daemon.client.create_volume(&serde_json::from_value(wish)?).await?;
        finish(daemon, made).await?;
        disks.push(DiskWish {
            bus,
            limits,
            ..DiskWish::from_volume(name)
        });
    }
    let mut guest = boot(daemon, disks).await?;
    for (volume, device) in [("plain", "vda"), ("cow", "sda")] {
        has_size(&mut guest, device, small).await?;
        let resize = VolumeResize { size: large };
        let grown = daemon.client.resize_volume(volume, &resize).await?;
        finish(daemon, grown).await?;
        has_size(&mut guest, device, large).await?;
        keeps_at_the_end(&mut guest, device, large).await?;
        reads_no_faster_than(&mut guest, device, 4).await?;
    }
    daemon.stop_vm("guest").await?;
    for volume in ["plain", "cow"] {
        let check = daemon
            .client
            .check_volume(volume, &VolumeCheckRequest::default())
            .await?;
        finish(daemon, check).await?;
        let found = daemon.client.volume(volume).await?;
        ensure!(found.size_bytes == Some(large.bytes()), "{found:?}");
    }
    Ok(())
}

/// The guest sees this size, now or within seconds: it looks for itself when it is told of a change.
async fn has_size(guest: &mut Guest, device: &str, size: ByteSize) -> anyhow::Result<()> {
    let (sectors, wanted) = (format!("busybox cat /sys/block/{device}/size"), size.bytes() / 512);
    let seen = guest
        .run(&format!(
            "for try in 1 2 3 4 5 6 7 8 9 10; do [ \"$({sectors})\" = {wanted} ] && break; busybox sleep 1; done; {sectors}"
        ))
        .await?;
    ensure!(seen == wanted.to_string(), "{device} has {seen} sectors, not {wanted}");
    Ok(())
}

/// What is written at the very end is read from there.
async fn keeps_at_the_end(guest: &mut Guest, device: &str, size: ByteSize) -> anyhow::Result<()> {
    let last = (size.bytes() >> 16) - 1;
    guest
        .run(&format!(
            "busybox dd if=/dev/urandom of=/tmp/piece bs=64k count=1 2>/dev/null && \
             busybox dd if=/tmp/piece of=/dev/{device} bs=64k seek={last} conv=fsync 2>/dev/null && \
             echo 3 > /proc/sys/vm/drop_caches && \
             busybox dd if=/dev/{device} bs=64k skip={last} 2>/dev/null | busybox cmp - /tmp/piece"
        ))
        .await
        .map(drop)
}

async fn reads_no_faster_than(guest: &mut Guest, device: &str, mib_per_s: u32) -> anyhow::Result<()> {
    let mib = mib_per_s * 6;
    let took = guest
        .run_within(
            &format!(
                "from=$(busybox cut -d. -f1 /proc/uptime); busybox dd if=/dev/{device} of=/dev/null bs=1M count={mib} \
                 iflag=direct 2>/dev/null && echo $(($(busybox cut -d. -f1 /proc/uptime) - from))"
            ),
            WORK_LIMIT,
        )
        .await?;
    let seconds: u32 = took.parse().with_context(|| format!("{took:?} seconds"))?;
    // Less what may go at once, and what whole seconds hide.
    ensure!(
        seconds >= 5,
        "{mib} MiB at {mib_per_s} MiB/s took {seconds} s on {device}"
    );
    Ok(())
}

pub(super) async fn finish(daemon: &Daemon, accepted: VolumeAccepted) -> anyhow::Result<()> {
    let operation = accepted.operation.context("nothing is being done to the volume")?;
    daemon.client.wait(operation, |_| ()).await?;
    Ok(())
}
