//! Commands on machines that exist.

use api_types::{StopRequest, Vm, VmPhase};
use client::Client;

use crate::args::Format;
use crate::output::{columns, line, say, write};
use crate::progress::Progress;
use crate::show::{describe, figures};

pub(crate) async fn list(client: &Client, format: Format) -> anyhow::Result<()> {
    write(format, &client.vms().await?, |vms| {
        let row = |vm: &Vm| {
            [
                vm.spec.name.clone(),
                format!("{:?}", vm.status.phase),
                vm.spec.cpus.to_string(),
                vm.spec.memory.to_string(),
                vm.spec.image.clone().unwrap_or_default(),
                vm.status.reason.clone().unwrap_or_default(),
            ]
        };
        columns(
            ["NAME", "PHASE", "CPUS", "MEMORY", "IMAGE", "REASON"],
            &vms.iter().map(row).collect::<Vec<_>>(),
        )
    })
}

pub(crate) async fn show(client: &Client, vm: &str, format: Format) -> anyhow::Result<()> {
    let shown = client.vm(vm).await?;
    let runs = matches!(shown.status.phase, VmPhase::Running | VmPhase::Paused);
    let disks = match format {
        // One that has just ended has nothing to tell.
        Format::Table if runs => client.disks(vm).await.unwrap_or_default(),
        _ => Vec::new(),
    };
    write(format, &shown, |vm| describe(vm) + &figures(&disks))
}

pub(crate) async fn logs(client: &Client, vm: &str) -> anyhow::Result<()> {
    line(&client.console_log(vm).await?)
}

pub(crate) async fn start(client: &Client, vms: &[String]) -> anyhow::Result<()> {
    for vm in vms {
        start_one(client, vm).await?;
        say(&format!("started {vm}"));
    }
    Ok(())
}

/// Starts one machine and waits until its vCPUs run.
pub(crate) async fn start_one(client: &Client, vm: &str) -> anyhow::Result<()> {
    let operation = client.start_vm(vm).await?;
    let progress = Progress::new(&format!("starting {vm}"));
    client.wait(operation.id, |operation| progress.show(operation)).await?;
    Ok(())
}

pub(crate) async fn stop(client: &Client, vms: &[String], force: bool, timeout: Option<u32>) -> anyhow::Result<()> {
    for vm in vms {
        stop_one(client, vm, force, timeout).await?;
        say(&format!("stopped {vm}"));
    }
    Ok(())
}

async fn stop_one(client: &Client, vm: &str, force: bool, timeout: Option<u32>) -> anyhow::Result<()> {
    let operation = client
        .stop_vm(
            vm,
            &StopRequest {
                force,
                timeout_seconds: timeout,
            },
        )
        .await?;
    let progress = Progress::new(&format!("stopping {vm}"));
    client.wait(operation.id, |operation| progress.show(operation)).await?;
    Ok(())
}

pub(crate) async fn restart(client: &Client, vms: &[String], timeout: Option<u32>) -> anyhow::Result<()> {
    for vm in vms {
        stop_one(client, vm, false, timeout).await?;
        start_one(client, vm).await?;
        say(&format!("restarted {vm}"));
    }
    Ok(())
}

pub(crate) async fn flatten(client: &Client, vms: &[String]) -> anyhow::Result<()> {
    for vm in vms {
        let operation = client.flatten_vm(vm).await?;
        let progress = Progress::new(&format!("flattening {vm}"));
        client.wait(operation.id, |operation| progress.show(operation)).await?;
        say(&format!("the root disk of {vm} stands alone"));
    }
    Ok(())
}

pub(crate) async fn reset(client: &Client, vms: &[String]) -> anyhow::Result<()> {
    for vm in vms {
        client.reset_vm(vm).await?;
        say(&format!("reset {vm}"));
    }
    Ok(())
}

pub(crate) async fn pause(client: &Client, vms: &[String]) -> anyhow::Result<()> {
    for vm in vms {
        client.pause_vm(vm).await?;
        say(&format!("paused {vm}"));
    }
    Ok(())
}

pub(crate) async fn resume(client: &Client, vms: &[String]) -> anyhow::Result<()> {
    for vm in vms {
        client.resume_vm(vm).await?;
        say(&format!("resumed {vm}"));
    }
    Ok(())
}

pub(crate) async fn remove(client: &Client, vms: &[String], force: bool) -> anyhow::Result<()> {
    for vm in vms {
        client.remove_vm(vm, force).await?;
        say(&format!("removed {vm}"));
    }
    Ok(())
}
