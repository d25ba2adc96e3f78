//! Stock kernels in both forms, with few and many vCPUs, below and above the hole in memory.

use anyhow::ensure;
use api_types::ByteSize;

use crate::daemon::Daemon;
use crate::environment::Kernel;

pub(super) async fn bzimage_with_one_vcpu(daemon: &mut Daemon) -> anyhow::Result<()> {
    boots(daemon, Kernel::BzImage, 1, ByteSize::from_mib(512)).await
}

pub(super) async fn vmlinux_with_four_vcpus_and_6_gib(daemon: &mut Daemon) -> anyhow::Result<()> {
    boots(daemon, Kernel::Vmlinux, 4, ByteSize::from_mib(6 << 10)).await
}

async fn boots(daemon: &mut Daemon, kernel: Kernel, cpus: u32, memory: ByteSize) -> anyhow::Result<()> {
    let mut spec = daemon.stock("guest", kernel);
    (spec.cpus, spec.memory) = (cpus, memory);
    let vm = daemon.run(&spec).await?;
    ensure!(
        vm.status.start_to_guest_us.is_some(),
        "no time to the first guest instruction: {:?}",
        vm.status
    );
    let mut guest = daemon.guest("guest").await?;
    let online = guest.run("/bin/busybox grep -c ^processor /proc/cpuinfo").await?;
    ensure!(online == cpus.to_string(), "{online} vCPUs online instead of {cpus}");
    let kib: u64 = guest
        .run("/bin/busybox awk '/^MemTotal/ {print $2}' /proc/meminfo")
        .await?
        .parse()?;
    let wanted = memory.bytes() >> 10;
    // The kernel keeps its own code, page structures and reservations out of MemTotal: a tenth and 64 MiB is plenty.
    ensure!(
        kib <= wanted && kib + wanted / 10 + (64 << 10) >= wanted,
        "{kib} KiB of {wanted} KiB arrived"
    );
    if memory.bytes() > 4 << 30 {
        let high = guest
            .run("/bin/busybox awk -F'[-:]' '/System RAM/ && length($1) > 8' /proc/iomem")
            .await?;
        ensure!(high.starts_with("100000000"), "no memory at 4 GiB:\n{high}");
    }
    daemon.stop_vm("guest").await
}
