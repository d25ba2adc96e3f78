//! What can not work is refused with a reason, and nothing is left of it.

use anyhow::{Context, bail, ensure};
use api_types::{BootWish, ErrorCode, VmPhase};
use client::ClientError;

use crate::daemon::Daemon;
use crate::environment::Kernel;

fn refused(result: Result<impl std::fmt::Debug, ClientError>, code: ErrorCode, words: &str) -> anyhow::Result<()> {
    match result {
        Err(error) if error.code() == Some(code) && error.to_string().contains(words) => Ok(()),
        other => bail!("instead of {code:?} with {words:?} came {other:?}"),
    }
}

pub(super) async fn kernel_that_is_no_kernel(daemon: &mut Daemon) -> anyhow::Result<()> {
    let mut spec = daemon.stock("guest", Kernel::Vmlinux);
    let path = daemon.files().join("noise");
    std::fs::write(&path, b"this is no kernel\n".repeat(1000))?;
    spec.boot = Some(BootWish {
        kernel: Some(path.display().to_string()),
        ..BootWish::default()
    });
    daemon.client.create_vm(&spec).await?;
    let operation = daemon.client.start_vm("guest").await?;
    refused(
        daemon.client.wait(operation.id, |_| ()).await,
        ErrorCode::BadKernel,
        "kernel",
    )?;
    let vm = daemon.client.vm("guest").await?;
    ensure!(
        vm.status.phase != VmPhase::Running && vm.status.pid.is_none(),
        "{:?}",
        vm.status
    );
    // The same machine starts once its kernel is one.
    std::fs::copy(daemon.files().join("vmlinux"), &path)?;
    daemon.start_vm("guest").await?;
    Ok(())
}

pub(super) async fn refusals_leave_nothing_behind(daemon: &mut Daemon) -> anyhow::Result<()> {
    let good = daemon.stock("guest", Kernel::Vmlinux);
    let mut image = good.clone();
    image.image = Some("localhost:1/no/such:image".to_owned());
    refused(daemon.client.create_vm(&image).await, ErrorCode::InvalidSpec, "no/such")?;
    let mut large = good.clone();
    large.memory = "1024Ti".parse()?;
    refused(
        daemon.client.create_vm(&large).await,
        ErrorCode::InvalidSpec,
        "the host has",
    )?;
    let mut outside = good.clone();
    outside.boot = Some(BootWish {
        kernel: Some("/etc/shadow".to_owned()),
        ..BootWish::default()
    });
    refused(
        daemon.client.create_vm(&outside).await,
        ErrorCode::InvalidSpec,
        "outside of what the host allows",
    )?;
    ensure!(daemon.client.vms().await?.is_empty(), "a refused machine is listed");
    daemon.client.create_vm(&good).await?;
    refused(daemon.client.create_vm(&good).await, ErrorCode::NameTaken, "guest")?;
    ensure!(daemon.client.vms().await?.len() == 1, "the first machine is lost");
    daemon.client.remove_vm("guest", false).await?;
    refused(daemon.client.vm("guest").await, ErrorCode::NotFound, "guest")
}

pub(super) async fn two_starts_at_once(daemon: &mut Daemon) -> anyhow::Result<()> {
    daemon.client.create_vm(&daemon.stock("guest", Kernel::Vmlinux)).await?;
    let (one, two) = tokio::join!(start(daemon), start(daemon));
    let (won, lost) = if one.is_ok() { (one, two) } else { (two, one) };
    won.context("neither of two starts won")?;
    refused(lost, ErrorCode::WrongState, "guest")?;
    let vm = daemon.wait_for("guest", VmPhase::Running).await?;
    ensure!(vm.status.pid.is_some(), "{:?}", vm.status);
    daemon.guest("guest").await?;
    Ok(())
}

async fn start(daemon: &Daemon) -> Result<(), ClientError> {
    let operation = daemon.client.start_vm("guest").await?;
    daemon.client.wait(operation.id, |_| ()).await.map(drop)
}
