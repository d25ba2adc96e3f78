//! Processes that die without a chance to tidy up.

use anyhow::{Context, ensure};
use api_types::VmPhase;
use rustix::process::{Pid, Signal, kill_process};

use crate::daemon::Daemon;
use crate::environment::Kernel;
use crate::guest::Guest;

async fn pid_of(daemon: &Daemon, name: &str) -> anyhow::Result<u32> {
    daemon
        .client
        .vm(name)
        .await?
        .status
        .pid
        .with_context(|| format!("{name} has no process"))
}

pub(super) async fn machine_process_killed(daemon: &mut Daemon) -> anyhow::Result<()> {
    daemon.run(&daemon.stock("victim", Kernel::Vmlinux)).await?;
    daemon.run(&daemon.stock("neighbour", Kernel::Vmlinux)).await?;
    let mut neighbour = daemon.guest("neighbour").await?;
    let before = pid_of(daemon, "neighbour").await?;
    let victim = i32::try_from(pid_of(daemon, "victim").await?)?;
    kill_process(Pid::from_raw(victim).context("no process")?, Signal::KILL)?;
    let vm = daemon.wait_for("victim", VmPhase::Failed).await?;
    ensure!(vm.status.reason.as_deref() == Some("Killed"), "{:?}", vm.status);
    ensure!(
        vm.status
            .message
            .as_deref()
            .is_some_and(|told| told.contains("SIGKILL")),
        "{:?}",
        vm.status
    );
    ensure!(
        pid_of(daemon, "neighbour").await? == before,
        "the neighbour has another process now"
    );
    neighbour.run("echo alive").await?;
    daemon.start_vm("victim").await?;
    daemon.guest("victim").await?;
    Ok(())
}

pub(super) async fn daemon_killed_under_two_guests(daemon: &mut Daemon) -> anyhow::Result<()> {
    let names = ["first", "second"];
    let mut pids = Vec::new();
    for name in names {
        daemon.run(&daemon.stock(name, Kernel::Vmlinux)).await?;
        let mut guest = daemon.guest(name).await?;
        guest.run(&format!("mark={name}")).await?;
        pids.push(pid_of(daemon, name).await?);
    }
    daemon.kill()?;
    for pid in &pids {
        ensure!(
            std::path::Path::new(&format!("/proc/{pid}")).exists(),
            "process {pid} died with the daemon"
        );
    }
    daemon.launch().await?;
    for (name, pid) in names.into_iter().zip(pids) {
        let vm = daemon.wait_for(name, VmPhase::Running).await?;
        ensure!(
            vm.status.pid == Some(pid),
            "{name} was process {pid} and is {:?}",
            vm.status.pid
        );
        let mut guest = Guest::reattach(&daemon.client, name).await?;
        let mark = guest.run("echo $mark").await?;
        ensure!(
            mark == name,
            "{name} is not the guest it was: its shell remembers {mark:?}"
        );
        ensure!(
            guest.transcript().contains("karat: shell"),
            "the scrollback of {name} is lost"
        );
        daemon.stop_vm(name).await?;
    }
    Ok(())
}
