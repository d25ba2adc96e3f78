//! `karat image …`.

use api_types::{ErrorCode, Image};
use client::{Client, ClientError};

use crate::args::Format;
use crate::output::{columns, fields, human, say, write};
use crate::progress::Progress;

/// Pulls, and prints what came.
pub(crate) async fn pull(client: &Client, reference: &str, format: Format) -> anyhow::Result<()> {
    let image = fetch(client, reference).await?;
    write(format, &image, |image| format!("{}\n", image.digest))
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

pub(crate) async fn list(client: &Client, format: Format) -> anyhow::Result<()> {
    write(format, &client.images().await?, |images| {
        let row = |image: &Image| {
            [
                image.references.first().cloned().unwrap_or_default(),
                short(&image.digest).to_owned(),
                human(image.virtual_size_bytes),
                human(image.size_bytes),
                image.created_at.strftime("%Y-%m-%d %H:%M").to_string(),
            ]
        };
        columns(
            ["REFERENCE", "DIGEST", "VIRTUAL SIZE", "SIZE", "CREATED (UTC)"],
            &images.iter().map(row).collect::<Vec<_>>(),
        )
    })
}

pub(crate) async fn show(client: &Client, image: &str, format: Format) -> anyhow::Result<()> {
    write(format, &client.image(image).await?, |image| {
        fields(&[
            ("digest", image.digest.clone()),
            ("references", image.references.join(", ")),
            ("came as", image.source_format.clone()),
            ("virtual size", human(image.virtual_size_bytes)),
            ("size", human(image.size_bytes)),
            ("own kernel", if image.has_kernel { "yes" } else { "no" }.to_owned()),
            ("cmdline", image.cmdline.clone().unwrap_or_default()),
            ("created", image.created_at.to_string()),
            ("used by", image.used_by.join(", ")),
        ])
    })
}

pub(crate) async fn remove(client: &Client, images: &[String]) -> anyhow::Result<()> {
    for image in images {
        client.remove_image(image).await?;
        say(&format!("removed {image}"));
    }
    Ok(())
}

/// The first twelve digits of a digest: enough to tell images of one host apart.
fn short(digest: &str) -> &str {
    let hex = digest.split_once(':').map_or(digest, |(_, hex)| hex);
    hex.get(..12).unwrap_or(hex)
}
