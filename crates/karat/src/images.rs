//! `karat image …`.

use api_types::{ErrorCode, Image, ImageAccepted, ImageFinding, ImageImportInfo};
use client::{Client, ClientError};

use crate::args::Format;
use crate::image_args::ImageCommand;
use crate::image_stores;
use crate::output::{columns, fields, human, say, word, write};
use crate::progress::Progress;
use crate::upload;

/// Carries a command out.
pub(crate) async fn run(client: &Client, command: ImageCommand, format: Format) -> anyhow::Result<()> {
    match command {
        ImageCommand::Pull { reference } => {
            let image = fetch(client, &reference).await?;
            write(format, &image, digest_line)?;
        }
        ImageCommand::Ls {
            hidden,
            visibility,
            owner,
        } => {
            let images = client
                .images_that(hidden, visibility.as_deref(), owner.as_deref())
                .await?;
            list(&images, format)?;
        }
        ImageCommand::Show { image } => write(format, &client.image(&image).await?, describe)?,
        ImageCommand::Create(args) => {
            let accepted = client.create_image(&args.wish()).await?;
            imported(client, &args.name, accepted, format).await?;
        }
        ImageCommand::Import { image, from, options } => {
            let accepted = client.import_image(&image, &options.ask(from)).await?;
            imported(client, &image, accepted, format).await?;
        }
        ImageCommand::Upload(args) => {
            let accepted = upload::send(client, &args).await?;
            imported(client, &args.image, accepted, format).await?;
        }
        ImageCommand::Copy {
            image,
            stores,
            allow_failure,
            ..
        } => copy(client, &image, stores, allow_failure).await?,
        ImageCommand::Displace { image, store } => {
            client.displace_image(&image, &store).await?;
            say(&format!("took {image} out of {store}"));
        }
        ImageCommand::Set(args) => {
            let image = client.edit_image(&args.image, &args.patch()).await?;
            write(format, &image, describe)?;
        }
        ImageCommand::Verify { images } => verify(client, images).await?,
        ImageCommand::Push { image, reference } => push(client, &image, &reference).await?,
        ImageCommand::Deactivate { images } => {
            for image in images {
                client.deactivate_image(&image).await?;
                say(&format!("deactivated {image}"));
            }
        }
        ImageCommand::Reactivate { images } => {
            for image in images {
                client.reactivate_image(&image).await?;
                say(&format!("reactivated {image}"));
            }
        }
        ImageCommand::ImportInfo => write(format, &client.import_info().await?, import_info)?,
        ImageCommand::Store(command) => image_stores::stores(client, command, format).await?,
        ImageCommand::Cache(command) => image_stores::cache(client, command, format).await?,
        ImageCommand::Fsck => fsck(client, format).await?,
        ImageCommand::Rm { images } => {
            for image in images {
                client.remove_image(&image).await?;
                say(&format!("removed {image}"));
            }
        }
    }
    Ok(())
}

async fn copy(client: &Client, image: &str, stores: Vec<String>, allow_failure: Option<bool>) -> anyhow::Result<()> {
    let accepted = client.copy_image(image, stores, allow_failure).await?;
    follow(client, image, accepted).await?;
    say(&format!("copied {image}"));
    Ok(())
}

async fn verify(client: &Client, images: Vec<String>) -> anyhow::Result<()> {
    for image in images {
        let operation = client.verify_image(&image).await?;
        client.wait(operation.id, |_| ()).await?;
        say(&format!("{image} is what it was"));
    }
    Ok(())
}

async fn push(client: &Client, image: &str, reference: &str) -> anyhow::Result<()> {
    let operation = client.push_image(image, reference).await?;
    let progress = Progress::new(reference);
    client.wait(operation.id, |operation| progress.show(operation)).await?;
    say(&format!("published {image} as {reference}"));
    Ok(())
}

async fn fsck(client: &Client, format: Format) -> anyhow::Result<()> {
    let found = client.fsck_images().await?;
    write(format, &found, |found| {
        let row = |finding: &ImageFinding| {
            [
                finding.store.clone(),
                finding.code.clone(),
                finding.subject.clone(),
                finding.message.clone(),
            ]
        };
        let rows: Vec<_> = found.findings.iter().map(row).collect();
        columns(["STORE", "FINDING", "SUBJECT", "MEANING"], &rows)
    })?;
    anyhow::ensure!(found.findings.is_empty(), "records and stores do not agree");
    Ok(())
}

/// Waits for an import, and prints what the record is then.
async fn imported(client: &Client, name: &str, accepted: ImageAccepted, format: Format) -> anyhow::Result<()> {
    if follow(client, name, accepted).await? {
        say(&format!("imported {name}"));
    }
    write(format, &client.image(name).await?, digest_line)
}

/// Waits for what was begun; whether there was anything.
async fn follow(client: &Client, name: &str, accepted: ImageAccepted) -> anyhow::Result<bool> {
    let Some(operation) = accepted.operation else {
        return Ok(false);
    };
    let progress = Progress::new(name);
    client.wait(operation, |operation| progress.show(operation)).await?;
    Ok(true)
}

fn import_info(info: &ImageImportInfo) -> String {
    let stores = info.stores.iter().map(|store| {
        let quota = store.quota_bytes.map(|bytes| format!(" of {}", human(bytes)));
        let used = store
            .used_bytes
            .map(|bytes| format!("{}{}", human(bytes), quota.unwrap_or_default()));
        format!(
            "{} ({})",
            store.name,
            store.problem.clone().or(used).unwrap_or_default()
        )
    });
    fields(&[
        ("methods", info.methods.join(", ")),
        ("largest disk", human(info.max_disk_bytes)),
        ("stores", stores.collect::<Vec<_>>().join(", ")),
        ("object stores", info.s3_servers.join(", ")),
    ])
}

fn digest_line(image: &Image) -> String {
    format!("{}\n", image.digest.as_ref().unwrap_or(&image.id))
}

/// The image under this name, pulled only where it is not here yet.
pub(crate) async fn ensure(client: &Client, reference: &str) -> anyhow::Result<Image> {
    match client.image(reference).await {
        Err(ClientError::Refused(problem)) if problem.code == ErrorCode::NotFound => fetch(client, reference).await,
        other => Ok(other?),
    }
}

async fn fetch(client: &Client, reference: &str) -> anyhow::Result<Image> {
    let operation = client.pull_image(reference).await?;
    let progress = Progress::new(reference);
    let done = client.wait(operation, |operation| progress.show(operation)).await?;
    drop(progress);
    let digest = done.result.unwrap_or_else(|| reference.to_owned());
    say(&format!("pulled {reference}"));
    Ok(client.image(&digest).await?)
}

fn list(images: &[Image], format: Format) -> anyhow::Result<()> {
    write(format, &images, |images| {
        let row = |image: &Image| {
            [
                image.name.clone(),
                word(&image.state),
                image.references.first().cloned().unwrap_or_default(),
                image
                    .digest
                    .as_deref()
                    .map_or_else(String::new, |digest| short(digest).to_owned()),
                image.virtual_size_bytes.map(human).unwrap_or_default(),
                image.size_bytes.map(human).unwrap_or_default(),
                image.created_at.strftime("%Y-%m-%d %H:%M").to_string(),
            ]
        };
        columns(
            [
                "NAME",
                "STATE",
                "REFERENCE",
                "DIGEST",
                "VIRTUAL SIZE",
                "SIZE",
                "CREATED (UTC)",
            ],
            &images.iter().map(row).collect::<Vec<_>>(),
        )
    })
}

fn describe(image: &Image) -> String {
    let yes = |is: bool| if is { "yes".to_owned() } else { String::new() };
    let failure = image.failure.as_ref();
    let conditions = image.conditions.iter();
    let conditions: Vec<_> = conditions
        .map(|one| format!("{}: {}", one.property, one.message))
        .collect();
    let properties = image.properties.iter();
    let properties: Vec<_> = properties.map(|(key, value)| format!("{key}={value}")).collect();
    let least = |number: u32, unit: &str| match number {
        0 => String::new(),
        number => format!("{number} {unit}"),
    };
    fields(&[
        ("name", image.name.clone()),
        ("id", image.id.clone()),
        ("description", image.description.clone()),
        ("state", word(&image.state)),
        (
            "failure",
            failure
                .map(|one| format!("{}: {}", one.code, one.message))
                .unwrap_or_default(),
        ),
        ("digest", image.digest.clone().unwrap_or_default()),
        ("references", image.references.join(", ")),
        ("stores", image.stores.join(", ")),
        ("on the way to stores", image.importing_to_stores.join(", ")),
        ("not in stores", image.failed_import.join(", ")),
        ("aliases", image.aliases.join(", ")),
        ("boot source", image.boot_source.clone().unwrap_or_default()),
        ("came as", image.source_format.clone().unwrap_or_default()),
        ("virtual size", image.virtual_size_bytes.map(human).unwrap_or_default()),
        ("size", image.size_bytes.map(human).unwrap_or_default()),
        ("own kernel", if image.has_kernel { "yes" } else { "no" }.to_owned()),
        ("cmdline", image.cmdline.clone().unwrap_or_default()),
        ("least disk", least(image.min_disk_gib, "GiB")),
        ("least memory", least(image.min_ram_mib, "MiB")),
        ("visibility", image.visibility.clone()),
        ("owner", image.owner.clone().unwrap_or_default()),
        ("protected", yes(image.protected)),
        ("hidden", yes(image.hidden)),
        ("tags", image.tags.iter().cloned().collect::<Vec<_>>().join(", ")),
        ("properties", properties.join(", ")),
        ("not for machines", conditions.join("; ")),
        ("created", image.created_at.to_string()),
        ("used by", image.used_by.join(", ")),
        ("used by volumes", image.used_by_volumes.join(", ")),
    ])
}

/// The first twelve digits of a digest: enough to tell images of one host apart.
fn short(digest: &str) -> &str {
    let hex = digest.split_once(':').map_or(digest, |(_, hex)| hex);
    hex.get(..12).unwrap_or(hex)
}
