//! Pause and resume.

use std::time::Duration;

use anyhow::ensure;
use api_types::VmPhase;

use crate::daemon::Daemon;
use crate::environment::Kernel;

pub(super) async fn holds_still_and_goes_on(daemon: &mut Daemon) -> anyhow::Result<()> {
    let mut spec = daemon.stock("guest", Kernel::Vmlinux);
    spec.cpus = 2;
    daemon.run(&spec).await?;
    let mut guest = daemon.guest("guest").await?;
    guest
        .type_line("while :; do echo beat; /bin/busybox usleep 200000; done &")
        .await?;
    guest.expect("beat", Duration::from_secs(20)).await?;
    daemon.client.pause_vm("guest").await?;
    daemon.wait_for("guest", VmPhase::Paused).await?;
    // What was printed before the pause may still be on its way.
    let mut quiet = Duration::ZERO;
    while guest.expect("beat", Duration::from_secs(3)).await.is_ok() {
        quiet += Duration::from_secs(1);
        ensure!(quiet < Duration::from_secs(30), "the guest goes on while it is paused");
    }
    daemon.client.resume_vm("guest").await?;
    daemon.wait_for("guest", VmPhase::Running).await?;
    guest.expect("beat", Duration::from_secs(20)).await?;
    Ok(())
}
