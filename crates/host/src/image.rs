//! Golden images: pulled, listed, removed.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use api_types::{ErrorCode, EventReason, Image, OperationKind, OperationPhase};
use images::{DiskFormat, ImageDigest, ImageRecord, PullError, Pulled, Reference, StoreError};
use jiff::Timestamp;
use spec::OperationId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::begun;
use crate::failure::Failure;
use crate::host::Host;
use crate::operations::Worker;
use crate::registry::{About, OperationRecord, RegistryError};

/// Bytes in a block of `st_blocks` (stat(2)).
const STAT_BLOCK_BYTES: u64 = 512;
/// How long to wait before the end of a pull that could not be written down is written again.
const NOTE_AGAIN: Duration = Duration::from_secs(1);
/// How long the removal of an image waits for those who make something from one.
const CLONES_TIMEOUT: Duration = Duration::from_secs(2);

/// What a pull came to.
#[derive(Clone)]
struct Sealed {
    /// The reference, written in full.
    normal: String,
    digest: String,
    was_there: bool,
}

impl Host {
    /// All images, newest first.
    pub async fn images(&self) -> Result<Vec<Image>, Failure> {
        let records = self.blocking(|host| host.0.context.store.list()).await?;
        let mut images = Vec::with_capacity(records.len());
        for record in records.into_iter().rev() {
            images.push(self.describe(record).await?);
        }
        Ok(images)
    }

    /// An image by digest, or by a reference it was pulled by.
    pub async fn image(&self, wanted: &str) -> Result<Image, Failure> {
        let record = self.find_image(wanted).await?.ok_or_else(|| no_image(wanted))?;
        self.describe(record).await
    }

    /// Begins to pull an image.
    pub async fn pull_image(&self, reference: &str) -> Result<OperationRecord, Failure> {
        let parsed: Reference = reference.parse().map_err(|error: images::BadReference| {
            Failure::refused_field("the reference can not be used", "reference", error.to_string())
        })?;
        let id = OperationId::random();
        let subject = reference.to_owned();
        let record = self
            .registry()
            .change(move |change| change.begin_operation(id, OperationKind::ImagePull, &subject))
            .await?;
        self.spawn_pull(id, reference.to_owned(), parsed);
        Ok(record)
    }

    /// Takes up pulls where the daemon before left them.
    pub(crate) fn resume_pulls(&self, pulls: Vec<(OperationRecord, u32)>) {
        for (pull, begun) in pulls {
            match pull.subject.parse::<Reference>() {
                Ok(reference) if !begun::too_often(begun) => {
                    tracing::info!(image = pull.subject, "a pull goes on");
                    self.spawn_pull(pull.id, pull.subject, reference);
                }
                refused => {
                    tracing::error!(image = pull.subject, "a pull does not go on");
                    let failure = match refused {
                        Ok(_) => begun::failure(),
                        // It was parsed when it was asked for, by an older daemon.
                        Err(error) => Failure::of(ErrorCode::ImageUnknown, &error),
                    };
                    let host = self.clone();
                    tokio::spawn(async move { host.end_pull(pull.id, &pull.subject, Err(failure)).await });
                }
            }
        }
    }

    fn spawn_pull(&self, id: OperationId, written: String, reference: Reference) {
        let (progress, watched) = watch::channel(images::Progress::default());
        let cancel = CancellationToken::new();
        let operations = &self.0.context.operations;
        operations.begin(id, Worker::Pull(watched, cancel.clone()));
        let host = self.clone();
        tokio::spawn(async move {
            let turn = tokio::select! {
                turn = host.0.pulls.acquire() => turn.ok(),
                () = cancel.cancelled() => None,
            };
            let result = match &turn {
                Some(_) => host.0.context.store.pull(&reference, &progress, &cancel).await,
                None => Err(PullError::Cancelled),
            };
            drop(turn);
            let operations = &host.0.context.operations;
            if matches!(result, Err(PullError::Cancelled)) && operations.closing() {
                tracing::info!(image = written, "a pull stops; the next daemon goes on with it");
            } else {
                host.pulled(id, &written, &reference, result).await;
            }
            host.0.context.operations.end(id);
        });
    }

    async fn pulled(&self, id: OperationId, written: &str, reference: &Reference, result: Result<Pulled, PullError>) {
        let ended = result.map_err(|error| match error {
            PullError::Cancelled => Failure::of(ErrorCode::Cancelled, &PullError::Cancelled),
            error => {
                let failure = Failure::of(pull_code(&error), &error);
                tracing::warn!(image = written, error = %failure, "pull failed");
                failure
            }
        });
        let ended = ended.map(|pulled| Sealed {
            normal: reference.to_string(),
            digest: pulled.image.digest.to_string(),
            was_there: pulled.was_there,
        });
        self.end_pull(id, written, ended).await;
    }

    /// Writes down how a pull ended.
    async fn end_pull(&self, id: OperationId, written: &str, ended: Result<Sealed, Failure>) {
        // Again and again until that works: a disk that a pull has filled is full at this very moment.
        loop {
            let (written, ended) = (written.to_owned(), ended.clone());
            let noted = self.registry().change(move |change| -> Result<(), RegistryError> {
                match ended {
                    Ok(sealed) => {
                        let digest = sealed.digest;
                        change.point_reference(&sealed.normal, &digest)?;
                        if !sealed.was_there {
                            let text = format!("image {written} was sealed as {digest}");
                            change.event(&About::Image(&digest, Some(&written)), EventReason::Created, &text)?;
                        }
                        change.end_operation(id, OperationPhase::Succeeded, Ok(Some(&digest)))
                    }
                    Err(failure) => {
                        let phase = match failure.code {
                            ErrorCode::Cancelled => OperationPhase::Cancelled,
                            _ => OperationPhase::Failed,
                        };
                        change.end_operation(id, phase, Err(&failure))
                    }
                }
            });
            let Err(error) = noted.await else { return };
            let error = crate::failure::chain(&error);
            tracing::error!(error, "end of a pull can not be noted; it is tried again");
            if self.0.context.operations.closing() {
                return;
            }
            tokio::time::sleep(NOTE_AGAIN).await;
        }
    }

    /// Removes an image no machine was made from.
    pub async fn delete_image(&self, wanted: &str) -> Result<(), Failure> {
        // All who want to make machines and volumes wait behind it.
        let nobody_clones = tokio::time::timeout(CLONES_TIMEOUT, self.0.images.write()).await;
        let Ok(_nobody_clones) = nobody_clones else {
            let text = "a machine or volume is being made from an image; remove this one when that is done";
            return Err(Failure::new(ErrorCode::InUse, text));
        };
        let Some(digest) = self.find_digest(wanted).await? else {
            return Err(no_image(wanted));
        };
        let text = digest.to_string();
        let users = self.registry().change(move |change| -> Result<_, RegistryError> {
            Ok((change.image_users(&text)?, change.image_volumes(&text)?))
        });
        let (machines, volumes) = users.await?;
        if !machines.is_empty() || !volumes.is_empty() {
            return Err(in_use(&digest, &machines, &volumes));
        }
        let removed = digest.clone();
        self.blocking(move |host| {
            host.0.context.store.remove(&removed)?;
            host.0.context.drop_blobs();
            Ok(())
        })
        .await?;
        let text = digest.to_string();
        let noted = self.registry().change(move |change| -> Result<(), RegistryError> {
            let name = change.references_to(&text)?.into_iter().next();
            change.forget_references_to(&text)?;
            let message = format!("image {text} was deleted");
            change.event(&About::Image(&text, name.as_deref()), EventReason::Deleted, &message)
        });
        Ok(noted.await?)
    }

    /// An image that is in the store.
    pub(crate) async fn find_image(&self, wanted: &str) -> Result<Option<ImageRecord>, Failure> {
        let Some(digest) = self.find_digest(wanted).await? else {
            return Ok(None);
        };
        let found = self.blocking(move |host| match host.0.context.store.get(&digest) {
            Ok(image) => Ok(Some(image)),
            Err(StoreError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        });
        found.await
    }

    async fn find_digest(&self, wanted: &str) -> Result<Option<ImageDigest>, Failure> {
        if let Ok(digest) = wanted.parse() {
            return Ok(Some(digest));
        }
        let Ok(reference) = wanted.parse::<Reference>() else {
            return Ok(None);
        };
        let normal = reference.to_string();
        let known = self.registry().change(move |change| change.referenced(&normal)).await?;
        Ok(match known {
            Some(text) => text.parse().ok(),
            // `name@digest` names the same image under any name.
            None => reference.digest().cloned(),
        })
    }

    async fn describe(&self, record: ImageRecord) -> Result<Image, Failure> {
        let digest = record.digest.to_string();
        let text = digest.clone();
        let names = self.registry().change(move |change| -> Result<_, RegistryError> {
            Ok((
                change.references_to(&text)?,
                change.image_users(&text)?,
                change.image_volumes(&text)?,
            ))
        });
        let (references, used_by, used_by_volumes) = names.await?;
        let sealed = record.clone();
        let size_bytes = self.blocking(move |host| host.occupied(&sealed)).await?;
        let sealed_at = i64::try_from(record.imported_at_s).unwrap_or(i64::MAX);
        Ok(Image {
            digest,
            references,
            source_format: match record.disk.source_format {
                DiskFormat::Raw => "raw".to_owned(),
                DiskFormat::Qcow2 => "qcow2".to_owned(),
            },
            virtual_size_bytes: record.disk.virtual_bytes,
            size_bytes,
            has_kernel: record.kernel.is_some(),
            cmdline: record.cmdline,
            created_at: Timestamp::from_second(sealed_at).unwrap_or(Timestamp::UNIX_EPOCH),
            used_by,
            used_by_volumes,
        })
    }

    fn occupied(&self, image: &ImageRecord) -> Result<u64, StoreError> {
        let store = &self.0.context.store;
        let kernel = image.kernel.as_ref().map_or(0, |file| file.size_bytes);
        let initrd = image.initrd.as_ref().map_or(0, |file| file.size_bytes);
        let disk = store.open_disk(&image.digest)?;
        Ok(blocks(&disk) + kernel + initrd)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Failure> {
        let host = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&host)).await;
        done.map_err(|_| Failure::new(ErrorCode::Internal, "the work was lost"))?
            .map_err(|error| Failure::of(store_code(&error), &error))
    }
}

fn blocks(file: &File) -> u64 {
    file.metadata()
        .map_or(0, |metadata| metadata.blocks() * STAT_BLOCK_BYTES)
}

fn in_use(digest: &ImageDigest, machines: &[String], volumes: &[String]) -> Failure {
    let machines =
        (!machines.is_empty()).then(|| format!("used by {}; delete these machines first", machines.join(", ")));
    let volumes = (!volumes.is_empty()).then(|| {
        format!(
            "shared by {}; delete these volumes first, or convert them into ones that stand on their own",
            volumes.join(", ")
        )
    });
    let users: Vec<_> = machines.into_iter().chain(volumes).collect();
    Failure::new(ErrorCode::InUse, format!("image {digest} is {}", users.join(", and ")))
}

fn no_image(wanted: &str) -> Failure {
    Failure::new(
        ErrorCode::NotFound,
        format!("no image {wanted:?} in the store; pull it first, or look at the list of images"),
    )
}

const fn store_code(error: &StoreError) -> ErrorCode {
    match error {
        StoreError::NotFound(_) | StoreError::NoSuchPart { .. } => ErrorCode::NotFound,
        StoreError::Damaged { .. } => ErrorCode::DigestMismatch,
        StoreError::Io { .. } => ErrorCode::Internal,
    }
}

const fn pull_code(error: &PullError) -> ErrorCode {
    match error {
        PullError::NotFound(_) | PullError::Unauthorized(_) => ErrorCode::ImageUnknown,
        PullError::Unreachable { .. } | PullError::Status { .. } | PullError::BrokeOff { .. } => {
            ErrorCode::RegistryUnavailable
        }
        PullError::Insecure { .. } => ErrorCode::InsecureRegistry,
        PullError::DigestMismatch { .. } | PullError::TooLong { .. } => ErrorCode::DigestMismatch,
        PullError::DiskFull { .. } => ErrorCode::NoSpace,
        PullError::Cancelled => ErrorCode::Cancelled,
        PullError::Io { .. } => ErrorCode::Internal,
        PullError::Manifest { .. }
        | PullError::Layer { .. }
        | PullError::NoDisk { .. }
        | PullError::Ambiguous { .. }
        | PullError::Disk { .. }
        | PullError::Cmdline(_)
        | PullError::Convert { .. } => ErrorCode::ImageRefused,
    }
}
