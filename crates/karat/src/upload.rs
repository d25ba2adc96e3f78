//! `karat image upload`: what breaks off is gone on with.

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use anyhow::Context;
use api_types::{ErrorCode, ImageAccepted, ImageCreate, ImageState, Upload, UploadWish};
use client::{Client, ClientError};
use tokio::fs::File;

use crate::image_args::UploadImageArgs;
use crate::output::say;
use crate::progress::Sending;

/// How long it is tried to go on while nothing more comes through.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long to wait before it is tried again.
const TRY_EVERY: Duration = Duration::from_millis(500);

/// Makes the record where there is none, and sends its data; returns what imports it.
pub(crate) async fn send(client: &Client, args: &UploadImageArgs) -> anyhow::Result<ImageAccepted> {
    let path = &args.file;
    let opened = File::open(path).await;
    let file = opened.with_context(|| format!("{} can not be opened", path.display()))?;
    let metadata = file.metadata().await.context("its length can not be read")?;
    match client.image(&args.image).await {
        Err(ClientError::Refused(problem)) if problem.code == ErrorCode::NotFound => {
            let create = ImageCreate {
                name: Some(args.image.clone()),
                ..ImageCreate::default()
            };
            client.create_image(&create).await?;
        }
        other => drop(other?),
    }
    // The same file, unchanged: an upload of it by a command that was ended is gone on with.
    let label = format!(
        "{:x}-{:x}-{}.{:09}",
        metadata.dev(),
        metadata.ino(),
        metadata.mtime(),
        metadata.mtime_nsec()
    );
    let wish = UploadWish {
        length: metadata.len(),
        digest: args.digest.clone(),
        store: args.store.clone(),
        label: Some(label),
    };
    let known = client.uploads(&args.image).await?.into_iter();
    let mut same = known.filter(|one| one.label == wish.label && one.length == wish.length);
    let upload = match same.next().filter(|_| wish.digest.is_none() && wish.store.is_none()) {
        Some(upload) => upload,
        None => client.begin_upload(&args.image, &wish).await?,
    };
    let operation = pieces(client, &args.image, upload, &file).await?;
    Ok(ImageAccepted { operation, image: None })
}

/// Sends until all has come; what imports it, unless that is over already.
async fn pieces(
    client: &Client,
    image: &str,
    mut upload: Upload,
    file: &File,
) -> anyhow::Result<Option<api_types::OperationId>> {
    let sending = Sending::new(image, upload.offset, upload.length);
    let mut since = Instant::now();
    loop {
        let file = file.try_clone().await.context("the file can not be read")?;
        let shown = sending.clone();
        let sent = client.append_upload(image, &upload, file, move |sent| shown.show(sent));
        let error = match sent.await {
            Ok(sent) if sent.operation.is_some() => return Ok(sent.operation),
            Ok(sent) => {
                upload = sent;
                continue;
            }
            Err(error) if may_go_on(&error) => error,
            Err(error) => return Err(error.into()),
        };
        if since.elapsed() > PATIENCE {
            return Err(error).context("it broke off, and can not be gone on with now; the same command goes on later");
        }
        tokio::time::sleep(TRY_EVERY).await;
        match client.upload(image, &upload.id).await {
            Ok(known) => {
                if known.offset > upload.offset {
                    since = Instant::now();
                    say(&format!(
                        "it broke off ({error}), and goes on after {} bytes",
                        known.offset
                    ));
                }
                upload = known;
                if upload.operation.is_some() {
                    return Ok(upload.operation);
                }
            }
            Err(ClientError::Refused(problem)) if problem.code == ErrorCode::NotFound => {
                return over(client, image, *problem).await;
            }
            // The daemon may be on its way.
            Err(ClientError::Unreachable { .. } | ClientError::Broken(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The upload is gone: its last byte came, the answer did not.
async fn over(
    client: &Client,
    image: &str,
    problem: api_types::ProblemBody,
) -> anyhow::Result<Option<api_types::OperationId>> {
    let known = client.image(image).await?;
    match known.state {
        ImageState::Active => Ok(None),
        ImageState::Failed => {
            let failure = known.failure.map(|failure| failure.message);
            anyhow::bail!("{}", failure.unwrap_or_else(|| "the import failed".to_owned()))
        }
        _ => Err(ClientError::Refused(Box::new(problem)).into()),
    }
}

/// Whether the connection is to blame, or somebody who sent before.
fn may_go_on(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable { .. } | ClientError::RemoteUnreachable { .. } | ClientError::Broken(_) => true,
        ClientError::Refused(problem) => matches!(problem.code, ErrorCode::UploadOffset | ErrorCode::WrongState),
        ClientError::Unexpected { .. } | ClientError::Credentials(_) => false,
    }
}
