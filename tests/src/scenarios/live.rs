//! Volumes that come, change their files and go under the load of a real guest.

use anyhow::ensure;
use api_types::{ByteSize, DiskBus, DiskFormat, DiskMirror, DiskWish, VolumeAccepted, VolumeCheckRequest};

use super::load;
use super::storage::{boot, finish};
use crate::daemon::Daemon;
use crate::guest::Guest;

/// Size of the volume that is worked on.
const SIZE_MIB: u32 = 192;

async fn make(daemon: &Daemon, name: &str, mib: u32) -> anyhow::Result<()> {
    let wish = serde_json::json!({ "name": name, "size": ByteSize::from_mib(mib), "format": DiskFormat::Qcow2 });
    let made = daemon.client.create_volume(&serde_json::from_value(wish)?).await?;
    finish(daemon, made).await
}

pub(super) fn on_scsi(volume: &str) -> DiskWish {
    DiskWish {
        bus: DiskBus::Scsi,
        ..DiskWish::from_volume(volume)
    }
}

/// Waits until the guest has (or has no more) a SCSI disk of that name: its driver is told, and looks for itself.
pub(super) async fn has(guest: &mut Guest, device: &str, there: bool) -> anyhow::Result<()> {
    let test = if there { "-e" } else { "! -e" };
    let seen = guest
        .run(&format!(
            "for try in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do [ {test} /sys/block/{device} ] && break; busybox sleep 1; done; \
             [ {test} /sys/block/{device} ] && echo as-wanted || busybox ls /sys/block"
        ))
        .await?;
    ensure!(
        seen == "as-wanted",
        "{device} is to be there: {there}; there are: {seen}"
    );
    Ok(())
}

/// A change of the disk's files under load, whose outcome is how many files there are.
async fn change(daemon: &Daemon, accepted: VolumeAccepted, files: usize) -> anyhow::Result<()> {
    finish(daemon, accepted).await?;
    let disks = daemon.client.disks("guest").await?;
    let disk = disks.iter().find(|disk| disk.layers.len() == files);
    ensure!(disk.is_some(), "no disk consists of {files} files: {disks:?}");
    Ok(())
}

pub(super) async fn disks_change_under_fio(daemon: &mut Daemon) -> anyhow::Result<()> {
    make(daemon, "first", 16).await?;
    make(daemon, "data", SIZE_MIB).await?;
    let mut guest = boot(daemon, vec![on_scsi("first")]).await?;
    daemon.client.attach_disk("guest", &on_scsi("data")).await?;
    has(&mut guest, "sdb", true).await?;
    load::begin(&mut guest, "/dev/sdb").await?;
    let client = &daemon.client;
    change(daemon, client.snapshot_disk("guest", "data").await?, 2).await?;
    change(daemon, client.snapshot_disk("guest", "data").await?, 3).await?;
    change(daemon, client.stream_disk("guest", "data").await?, 1).await?;
    let to_raw = DiskMirror {
        format: Some(DiskFormat::Raw),
        ..DiskMirror::default()
    };
    change(daemon, client.mirror_disk("guest", "data", &to_raw).await?, 1).await?;
    let copy = DiskMirror {
        name: Some("copy".to_owned()),
        format: Some(DiskFormat::Qcow2),
    };
    finish(daemon, client.mirror_disk("guest", "data", &copy).await?).await?;
    load::end(&mut guest, "/dev/sdb").await?;
    daemon.client.detach_disk("guest", "data").await?;
    has(&mut guest, "sdb", false).await?;
    daemon.client.attach_disk("guest", &on_scsi("copy")).await?;
    has(&mut guest, "sdb", true).await?;
    load::left_sound(&mut guest, "/dev/sdb").await?;
    daemon.stop_vm("guest").await?;
    for volume in ["data", "copy"] {
        let check = VolumeCheckRequest::default();
        finish(daemon, daemon.client.check_volume(volume, &check).await?).await?;
    }
    let data = daemon.client.volume("data").await?;
    ensure!(data.format == Some(DiskFormat::Raw), "{data:?}");
    Ok(())
}
