//! `karat migrate` and `karat migration`.

use api_types::{IncomingMigration, Migration, MigrationPatch, MigrationWish};
use client::Client;
use indicatif::{ProgressBar, ProgressStyle};

use crate::args::Format;
use crate::migration_args::{MigrateArgs, MigrationCommand};
use crate::output::{columns, fields, human, say, write};

/// Moves a machine, and waits until it is there.
pub(crate) async fn migrate(client: &Client, args: MigrateArgs, format: Format) -> anyhow::Result<()> {
    let options = args.options();
    let wish = MigrationWish {
        vm: args.vm,
        target: args.to,
        options,
    };
    let begun = client.migrate(&wish).await?;
    if args.detach {
        return write(format, &begun, |begun| format!("{}\n", begun.id));
    }
    let bar = Bar::new(&begun);
    let over = client
        .wait_for_migration(begun.id, |migration| bar.show(migration))
        .await;
    drop(bar);
    let over = over?;
    say(&format!("moved {} to {}", over.vm, over.target));
    match format {
        Format::Table => Ok(()),
        _ => write(format, &over, |_| String::new()),
    }
}

pub(crate) async fn run(client: &Client, command: MigrationCommand, format: Format) -> anyhow::Result<()> {
    match command {
        MigrationCommand::Ls => write(format, &client.migrations().await?, |list| table(list)),
        MigrationCommand::Incoming => write(format, &client.incoming_migrations().await?, |list| incoming(list)),
        MigrationCommand::Show { id } => write(format, &client.migration(id).await?, describe),
        MigrationCommand::Cancel { ids } => {
            for id in ids {
                client.cancel_migration(id).await?;
                say(&format!("cancelled {id}"));
            }
            Ok(())
        }
        MigrationCommand::Tune { id, bandwidth } => {
            let patch = MigrationPatch {
                bandwidth_per_migration: bandwidth,
            };
            write(format, &client.tune_migration(id, &patch).await?, describe)
        }
    }
}

fn table(list: &[Migration]) -> String {
    let row = |migration: &Migration| {
        [
            migration.id.to_string(),
            migration.vm.clone(),
            migration.target.clone(),
            format!("{:?}", migration.phase),
            progress(migration),
            migration.created_at.to_string(),
        ]
    };
    let rows: Vec<_> = list.iter().map(row).collect();
    columns(["ID", "VM", "TARGET", "PHASE", "PROGRESS", "CREATED"], &rows)
}

fn incoming(list: &[IncomingMigration]) -> String {
    let row = |migration: &IncomingMigration| {
        [
            migration.id.to_string(),
            migration.vm.clone(),
            migration.source_url.clone(),
            format!("{:?}", migration.phase),
            migration.created_at.to_string(),
        ]
    };
    let rows: Vec<_> = list.iter().map(row).collect();
    columns(["ID", "VM", "SOURCE", "PHASE", "CREATED"], &rows)
}

fn progress(migration: &Migration) -> String {
    let figures = migration.progress.as_ref();
    let done = figures.map(|figures| {
        let there = figures.total_bytes.saturating_sub(figures.remaining_bytes);
        format!("{} of {}", human(there), human(figures.total_bytes))
    });
    done.unwrap_or_default()
}

fn describe(migration: &Migration) -> String {
    let figures = migration.progress.as_ref();
    let figure = |value: Option<String>| value.unwrap_or_default();
    let time = |at: Option<jiff::Timestamp>| at.map(|at| at.to_string()).unwrap_or_default();
    fields(&[
        ("id", migration.id.to_string()),
        ("machine", format!("{} ({})", migration.vm, migration.vm_id)),
        ("target", migration.target.clone()),
        ("target address", migration.target_address.clone().unwrap_or_default()),
        ("phase", format!("{:?}", migration.phase)),
        ("method", format!("{:?}", migration.method)),
        ("progress", progress(migration)),
        ("sent", figure(figures.map(|figures| human(figures.wire_bytes)))),
        ("round", figure(figures.map(|figures| figures.round.to_string()))),
        (
            "guest writes",
            figure(figures.map(|figures| format!("{}/s", human(figures.dirty_bytes_per_s)))),
        ),
        (
            "throughput",
            figure(figures.map(|figures| format!("{}/s", human(figures.throughput_bytes_per_s)))),
        ),
        (
            "expected downtime",
            figure(figures.map(|figures| format!("{} ms", figures.expected_downtime_ms))),
        ),
        (
            "downtime",
            figure(
                figures
                    .and_then(|figures| figures.downtime_ms)
                    .map(|ms| format!("{ms} ms")),
            ),
        ),
        (
            "error",
            migration
                .error
                .as_ref()
                .map(|error| error.detail.clone())
                .unwrap_or_default(),
        ),
        ("created", migration.created_at.to_string()),
        ("started", time(migration.started_at)),
        ("ended", time(migration.ended_at)),
    ])
}

/// A bar where stderr is a terminal.
struct Bar(ProgressBar);

impl Bar {
    fn new(migration: &Migration) -> Self {
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(format!("moving {}", migration.vm));
        Self(bar)
    }

    fn show(&self, migration: &Migration) {
        self.0
            .set_message(format!("moving {}: {:?}", migration.vm, migration.phase));
        if let Some(figures) = &migration.progress {
            self.0.set_length(figures.total_bytes);
            self.0
                .set_position(figures.total_bytes.saturating_sub(figures.remaining_bytes));
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
