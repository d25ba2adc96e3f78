//! Power button, guest reset and guest power-off.

use anyhow::ensure;
use api_types::VmPhase;

use crate::daemon::Daemon;
use crate::environment::Kernel;

pub(super) async fn button_reset_and_power_off(daemon: &mut Daemon) -> anyhow::Result<()> {
    daemon.run(&daemon.stock("guest", Kernel::BzImage)).await?;
    let mut guest = daemon.guest("guest").await?;
    daemon.client.reset_vm("guest").await?;
    guest.rebooted().await?;
    guest.leave("/bin/busybox poweroff -f").await?;
    let vm = daemon.wait_for("guest", VmPhase::Stopped).await?;
    ensure!(vm.status.reason.as_deref() == Some("GuestPowerOff"), "{:?}", vm.status);
    daemon.start_vm("guest").await?;
    daemon.guest("guest").await?;
    daemon.stop_vm("guest").await?;
    let vm = daemon.client.vm("guest").await?;
    let by_itself = vm.status.reason.as_deref() == Some("GuestPowerOff");
    ensure!(vm.status.phase == VmPhase::Stopped && by_itself, "{:?}", vm.status);
    Ok(())
}

pub(super) async fn five_resets(daemon: &mut Daemon) -> anyhow::Result<()> {
    daemon.run(&daemon.stock("guest", Kernel::Vmlinux)).await?;
    let mut guest = daemon.guest("guest").await?;
    let pid = daemon.client.vm("guest").await?.status.pid;
    for _ in 0..5 {
        guest.leave("/bin/busybox reboot -f").await?;
        guest.rebooted().await?;
    }
    let vm = daemon.client.vm("guest").await?;
    ensure!(
        vm.status.phase == VmPhase::Running && vm.status.resets == 5,
        "{:?}",
        vm.status
    );
    ensure!(
        vm.status.pid == pid,
        "process {pid:?} became {:?} over resets",
        vm.status.pid
    );
    Ok(())
}
