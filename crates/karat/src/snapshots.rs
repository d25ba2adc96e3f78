//! `karat snapshot …`.

use api_types::{NetworkWish, Snapshot, SnapshotRestore, SnapshotWish};
use client::Client;

use crate::args::Format;
use crate::network_arg::Network;
use crate::output::{columns, fields, human, say, word, write};
use crate::progress::Progress;
use crate::snapshot_args::{RestoreArgs, SnapshotCommand};

/// Carries a command out.
pub(crate) async fn run(client: &Client, command: SnapshotCommand, format: Format) -> anyhow::Result<()> {
    match command {
        SnapshotCommand::Create { vm, name } => create(client, SnapshotWish { vm, name }, format).await,
        SnapshotCommand::Ls => list(client, format).await,
        SnapshotCommand::Show { snapshot } => write(format, &client.snapshot(&snapshot).await?, describe),
        SnapshotCommand::Rm { snapshots } => {
            for snapshot in snapshots {
                client.remove_snapshot(&snapshot).await?;
                say(&format!("removed {snapshot}"));
            }
            Ok(())
        }
        SnapshotCommand::Restore(args) => restore(client, args, format).await,
    }
}

async fn create(client: &Client, wish: SnapshotWish, format: Format) -> anyhow::Result<()> {
    let accepted = client.create_snapshot(&wish).await?;
    let progress = Progress::new(&format!("snapshot of {}", wish.vm));
    let wait = client.wait(accepted.operation, |operation| progress.show(operation));
    wait.await?;
    let snapshot = client.snapshot(&accepted.snapshot.id.to_string()).await?;
    write(format, &snapshot, |snapshot| format!("{}\n", snapshot.name))
}

async fn restore(client: &Client, args: RestoreArgs, format: Format) -> anyhow::Result<()> {
    let networks = args.network.into_iter().filter_map(|network| match network {
        Network::None => None,
        Network::Tap(tap) => Some(NetworkWish {
            tap,
            mac: None,
            queue_pairs: None,
        }),
    });
    let networks: Vec<_> = networks.collect();
    let wish = SnapshotRestore {
        name: args.name,
        networks: (!networks.is_empty()).then_some(networks),
        eager: args.eager,
        stopped: args.stopped,
    };
    let restored = client.restore_snapshot(&args.snapshot, &wish).await?;
    if let Some(operation) = restored.operation {
        let progress = Progress::new(&format!("restoring {}", wish.name));
        client.wait(operation, |operation| progress.show(operation)).await?;
    }
    let vm = client.vm(&restored.vm.id.to_string()).await?;
    write(format, &vm, |vm| format!("{}\n", vm.spec.name))
}

async fn list(client: &Client, format: Format) -> anyhow::Result<()> {
    write(format, &client.snapshots().await?, |snapshots| {
        let row = |snapshot: &Snapshot| {
            [
                snapshot.name.clone(),
                snapshot.vm.clone(),
                word(&snapshot.state),
                human(snapshot.memory_bytes),
                human(snapshot.usage_bytes),
                snapshot.created_at.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
            ]
        };
        columns(
            ["NAME", "MACHINE", "STATE", "MEMORY", "USAGE", "CREATED"],
            &snapshots.iter().map(row).collect::<Vec<_>>(),
        )
    })
}

fn describe(snapshot: &Snapshot) -> String {
    fields(&[
        ("name", snapshot.name.clone()),
        ("id", snapshot.id.to_string()),
        ("machine", format!("{} ({})", snapshot.vm, snapshot.vm_id)),
        ("state", word(&snapshot.state)),
        ("memory", human(snapshot.memory_bytes)),
        ("usage", human(snapshot.usage_bytes)),
        ("image", snapshot.image_digest.clone().unwrap_or_default()),
        ("created", snapshot.created_at.to_string()),
    ])
}
