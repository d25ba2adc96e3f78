//! `karat boot-source …`.

use api_types::{BootSource, BootSourceWish};
use client::Client;

use crate::args::Format;
use crate::output::{columns, fields, say, write};
use crate::progress::Progress;
use crate::source_args::BootSourceCommand;

/// Carries a command out.
pub(crate) async fn run(client: &Client, command: BootSourceCommand, format: Format) -> anyhow::Result<()> {
    match command {
        BootSourceCommand::Ls => list(client, format).await?,
        BootSourceCommand::Show { source } => write(format, &client.boot_source(&source).await?, describe)?,
        BootSourceCommand::Set(args) => {
            let known = client.boot_sources().await?.items;
            let wish = args.wish();
            let source = if known.iter().any(|one| one.name == args.source) {
                client.edit_boot_source(&args.source, &wish).await?
            } else {
                client.put_boot_source(&args.source, &wish).await?
            };
            write(format, &source, describe)?;
        }
        BootSourceCommand::Sync { all: true, .. } => sync_all(client).await?,
        BootSourceCommand::Sync { sources, .. } => {
            for source in sources {
                let operation = client.sync_boot_source(&source).await?;
                let progress = Progress::new(&source);
                client.wait(operation.id, |operation| progress.show(operation)).await?;
                drop(progress);
                say(&format!("{source} is up to date"));
            }
        }
        BootSourceCommand::Enable { sources } => switch(client, &sources, true).await?,
        BootSourceCommand::Disable { sources } => switch(client, &sources, false).await?,
        BootSourceCommand::Rm { sources } => {
            for source in sources {
                client.remove_boot_source(&source).await?;
                say(&format!("removed {source}"));
            }
        }
    }
    Ok(())
}

/// Waits for all, and then tells which are not up to date.
async fn sync_all(client: &Client) -> anyhow::Result<()> {
    let mut failed = 0;
    for operation in client.sync_boot_sources().await? {
        let source = &operation.subject;
        let progress = Progress::new(source);
        let ended = client.wait(operation.id, |operation| progress.show(operation)).await;
        drop(progress);
        match ended {
            Ok(_) => say(&format!("{source} is up to date")),
            Err(error) => {
                failed += 1;
                say(&format!("{source}: {error}"));
            }
        }
    }
    anyhow::ensure!(failed == 0, "{failed} boot sources are not up to date");
    Ok(())
}

async fn switch(client: &Client, sources: &[String], on: bool) -> anyhow::Result<()> {
    let wish = BootSourceWish {
        enabled: Some(on),
        ..BootSourceWish::default()
    };
    for source in sources {
        client.edit_boot_source(source, &wish).await?;
        say(&format!("{} {source}", if on { "enabled" } else { "disabled" }));
    }
    Ok(())
}

async fn list(client: &Client, format: Format) -> anyhow::Result<()> {
    let list = client.boot_sources().await?;
    for problem in &list.problems {
        say(&format!("wrong: {problem}"));
    }
    write(format, &list.items, |items| {
        let row = |source: &BootSource| {
            let definition = &source.definition;
            [
                source.name.clone(),
                source.origin.clone(),
                definition.managed.clone().unwrap_or_default(),
                definition.schedule.clone().unwrap_or_default(),
                up_to_date(source),
                source.imports.len().to_string(),
            ]
        };
        columns(
            ["NAME", "ORIGIN", "ALIAS", "SCHEDULE (UTC)", "UP TO DATE", "IMPORTS"],
            &items.iter().map(row).collect::<Vec<_>>(),
        )
    })
}

/// `yes`, or the reason why not.
fn up_to_date(source: &BootSource) -> String {
    let condition = source.conditions.iter().find(|one| one.kind == "UpToDate");
    match condition {
        Some(one) if one.status == "True" => "yes".to_owned(),
        Some(one) => one.reason.clone(),
        None => String::new(),
    }
}

fn describe(source: &BootSource) -> String {
    let definition = &source.definition;
    let from = definition.source.clone().unwrap_or_default();
    let digests: Vec<_> = [from.checksums, from.checksums_signature]
        .into_iter()
        .flatten()
        .collect();
    let digests = digests.join(", signed by ");
    let from = [from.registry, from.url, from.s3, from.file];
    let imports = source.imports.iter();
    let imports: Vec<_> = imports
        .map(|import| format!("{} ({})", import.image, import.at))
        .collect();
    let conditions = source.conditions.iter();
    let conditions: Vec<_> = conditions
        .map(|one| format!("{} {} ({}): {}", one.kind, one.status, one.reason, one.message))
        .collect();
    let error = source.last_error.as_ref();
    let time = |time: Option<jiff::Timestamp>| time.map(|time| time.to_string()).unwrap_or_default();
    fields(&[
        ("name", source.name.clone()),
        ("origin", source.origin.clone()),
        ("description", definition.description.clone().unwrap_or_default()),
        ("from", from.into_iter().flatten().next().unwrap_or_default()),
        ("alias", definition.managed.clone().unwrap_or_default()),
        ("schedule", definition.schedule.clone().unwrap_or_default()),
        (
            "enabled",
            if definition.enabled == Some(false) { "no" } else { "yes" }.to_owned(),
        ),
        (
            "imports kept",
            definition
                .imports_to_keep
                .map(|keep| keep.to_string())
                .unwrap_or_default(),
        ),
        ("store", definition.store.clone().unwrap_or_default()),
        (
            "largest disk",
            definition.max_size.map(|size| size.to_string()).unwrap_or_default(),
        ),
        ("digests", digests),
        ("defined in", source.defined_in.clone().unwrap_or_default()),
        ("conditions", conditions.join("; ")),
        ("imports", imports.join(", ")),
        ("importing", source.importing.clone().unwrap_or_default()),
        ("last poll", time(source.last_attempt)),
        ("next poll", time(source.next_poll)),
        (
            "last error",
            error
                .map(|one| format!("{}: {}", one.code, one.message))
                .unwrap_or_default(),
        ),
    ])
}
