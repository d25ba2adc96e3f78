//! fio in a guest: writes its file anew again and again, reads it back, and ends when it is told to.

use anyhow::{Context, ensure};

use super::storage::WORK_LIMIT;
use crate::guest::Guest;

/// What is written and read back while the disk below changes, again and again.
const FIO_MIB: u64 = 48;

/// Makes a file system on `device`, which is mounted on `/root`, and begins.
pub(super) async fn begin(guest: &mut Guest, device: &str) -> anyhow::Result<()> {
    guest
        .run_within(
            &format!("/usr/bin/mke2fs -q -F -t ext4 {device} && busybox mount -t ext4 {device} /root"),
            WORK_LIMIT,
        )
        .await?;
    let load = format!(
        "((while [ ! -e /tmp/enough ]; do /usr/bin/fio --thread --name=live --directory=/root --size={FIO_MIB}m --rw=randwrite \
         --bsrange=4k-64k --ioengine=libaio --iodepth=16 --direct=1 --verify=crc32c --verify_fatal=1 --output=/tmp/fio || break; \
         echo round >> /tmp/rounds; done; busybox touch /tmp/ended) > /tmp/load 2>&1 &)"
    );
    guest.run(&load).await.map(drop)
}

/// Ends it; nothing that was written was read otherwise, and the file system is sound.
pub(super) async fn end(guest: &mut Guest, device: &str) -> anyhow::Result<()> {
    let ended = guest
        .run_within(
            "busybox touch /tmp/enough; while [ ! -e /tmp/ended ]; do busybox sleep 1; done; \
             busybox grep -q 'err= 0' /tmp/fio || busybox cat /tmp/fio /tmp/load; busybox wc -l < /tmp/rounds",
            WORK_LIMIT,
        )
        .await?;
    let rounds: u32 = ended.parse().with_context(|| format!("fio failed: {ended}"))?;
    ensure!(rounds > 0, "fio verified nothing");
    let check = format!("busybox umount /root && /usr/bin/e2fsck -fn {device}");
    guest.run_within(&check, WORK_LIMIT).await.map(drop)
}

/// `device` is what a power cut would have left of the file system: its journal is replayed, and then nothing is wrong.
pub(super) async fn left_sound(guest: &mut Guest, device: &str) -> anyhow::Result<()> {
    let check = format!("busybox mount -t ext4 {device} /root && busybox umount /root && /usr/bin/e2fsck -fn {device}");
    guest.run_within(&check, WORK_LIMIT).await.map(drop)
}
