//! Boot sources of a daemon, polled all at once.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use api_types::{BootSourceFrom, BootSourceWish, OperationPhase};
use client::Client;

use super::served::{POLLS, Served};
use crate::{Figure, Target, median};

/// How long the daemon may take for anything.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often is looked whether all polls are over; what a look costs is part of what is measured.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A daemon, which stands beside this program; ends with the measurement.
struct Daemon {
    child: Child,
    client: Client,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// From the request to poll all sources, which have nothing new, until all operations are over.
pub(super) async fn figure(served: &Served, dir: &Path, rounds: u32) -> Result<Figure> {
    served.push_small()?;
    let daemon = start(dir, &served.host).await?;
    for number in 1..=POLLS {
        let wish = BootSourceWish {
            source: Some(BootSourceFrom {
                registry: Some(format!("docker://{}/demo/small:t{number}", served.host)),
                ..BootSourceFrom::default()
            }),
            schedule: Some("@yearly".to_owned()),
            managed: Some(format!("alias-{number}")),
            ..BootSourceWish::default()
        };
        daemon
            .client
            .put_boot_source(&format!("source-{number}"), &wish)
            .await?;
    }
    polled(&daemon.client).await?;
    let mut seconds = Vec::new();
    for _ in 0..rounds {
        seconds.push(polled(&daemon.client).await?);
    }
    let sources = daemon.client.boot_sources().await?.items;
    let is_imported = |source: &api_types::BootSource| source.imports.len() == 1 && source.failures == 0;
    ensure!(sources.iter().all(is_imported), "not all sources were imported once");
    Ok(Figure::new(
        "poll of 100 sources by the daemon",
        median(&mut seconds),
        "s",
        None,
        Target::AtMost(1.0),
    ))
}

/// Seconds that it took.
async fn polled(client: &Client) -> Result<f64> {
    let begun = Instant::now();
    let operations = client.sync_boot_sources().await?;
    ensure!(operations.len() == POLLS, "{} sources are polled", operations.len());
    loop {
        ensure!(begun.elapsed() < PATIENCE, "the polls do not end");
        tokio::time::sleep(LOOK_EVERY).await;
        let all = client.operations().await?;
        let ended = all
            .iter()
            .filter(|one| operations.iter().any(|begun| begun.id == one.id));
        let phases: Vec<_> = ended.map(|one| one.phase).collect();
        if phases.iter().all(|phase| *phase == OperationPhase::Succeeded) && phases.len() == POLLS {
            return Ok(begun.elapsed().as_secs_f64());
        }
        let failed = phases
            .iter()
            .any(|phase| matches!(phase, OperationPhase::Failed | OperationPhase::Cancelled));
        ensure!(!failed, "a poll failed");
    }
}

async fn start(dir: &Path, registry: &str) -> Result<Daemon> {
    let at = |name: &str| dir.join("daemon").join(name);
    std::fs::create_dir_all(at("state"))?;
    let config = format!(
        "socket = {:?}\nstate_dir = {:?}\nrun_dir = {:?}\nvmm_path = \"/bin/true\"\nreserved_space = 0\ninsecure_registries = [{registry:?}]\n\
         [boot_sources]\nsystem_directory = {:?}\ncustom_directory = {:?}\n",
        at("karat.sock"),
        at("state"),
        at("run"),
        at("system.d"),
        at("custom.d"),
    );
    std::fs::write(at("karat.toml"), config)?;
    let program = std::env::current_exe()?.with_file_name("karatd");
    let child = Command::new(&program)
        .arg("--config")
        .arg(at("karat.toml"))
        .env("KARAT_LOG", "warn")
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("{} can not be run: build karatd beside this program", program.display()))?;
    let client = Client::new(at("karat.sock"));
    let daemon = Daemon { child, client };
    let begun = Instant::now();
    while daemon.client.health().await.is_err() {
        ensure!(begun.elapsed() < PATIENCE, "karatd does not answer");
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(daemon)
}
