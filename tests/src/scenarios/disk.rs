//! Data integrity of virtio-blk through the guest's own file I/O.

use std::time::Duration;

use anyhow::ensure;
use api_types::DiskWish;

use crate::daemon::Daemon;
use crate::disk::{PatternDisk, first_difference};
use crate::environment::Kernel;

/// Size of the data, MiB.
const SIZE_MIB: usize = 1024;
/// Time for a pass over the data in a guest of an emulated host.
const PASS_LIMIT: Duration = Duration::from_secs(300);

pub(super) async fn one_gib_survives_a_reboot(daemon: &mut Daemon) -> anyhow::Result<()> {
    let (source, target) = (daemon.files().join("source.raw"), daemon.files().join("target.raw"));
    PatternDisk::create(&source, SIZE_MIB, 0x6b61_7261_7400)?;
    std::fs::File::create_new(&target)?.set_len((SIZE_MIB as u64) << 20)?;
    let disk = |path: &std::path::Path, read_only| DiskWish {
        read_only,
        queues: Some(2),
        ..DiskWish::from_path(path.display().to_string())
    };
    let mut spec = daemon.stock("guest", Kernel::BzImage);
    spec.cpus = 2;
    spec.disks = vec![disk(&source, true), disk(&target, false)];
    daemon.run(&spec).await?;
    let mut guest = daemon.guest("guest").await?;
    let serials = guest
        .run("/bin/busybox cat /sys/block/vda/serial; echo; /bin/busybox cat /sys/block/vdb/serial")
        .await?;
    ensure!(serials.split_whitespace().eq(["disk1", "disk2"]), "serials {serials:?}");
    let write = guest
        .run("/bin/busybox dd if=/dev/zero of=/dev/vda bs=512 count=1 2>/dev/null && echo written || echo refused")
        .await?;
    ensure!(write == "refused", "the read-only disk was {write}");
    guest
        .run_within(
            "/bin/busybox dd if=/dev/vda of=/dev/vdb bs=1M conv=fsync 2>&1",
            PASS_LIMIT,
        )
        .await?;
    guest.leave("/bin/busybox reboot -f").await?;
    guest.rebooted().await?;
    let sums = guest
        .run_within("/bin/busybox md5sum /dev/vda /dev/vdb", PASS_LIMIT)
        .await?;
    let mut sums = sums.lines().filter_map(|line| line.split_whitespace().next());
    let (of_source, of_target) = (sums.next(), sums.next());
    ensure!(
        of_source.is_some() && of_source == of_target,
        "checksums differ after the reboot: {of_source:?} {of_target:?}"
    );
    daemon.stop_vm("guest").await?;
    let differs = first_difference(&source, &target)?;
    ensure!(
        differs.is_none(),
        "the file on the host differs from what was written at byte {differs:?}"
    );
    Ok(())
}
