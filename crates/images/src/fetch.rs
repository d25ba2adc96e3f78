//! Blobs from a registry into the download cache: verified, bounded, continued where they broke off.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use sha2::Digest as _;
use tokio::sync::{OwnedMutexGuard, mpsc};

use crate::error::Cause;
use crate::progress::Meter;
use crate::registry::Registry;
use crate::{ImageDigest, PullError, durable};

/// Pieces between network and disk; a piece is what the HTTP stack read at once, up to some 100 KiB.
const PIECES_IN_FLIGHT: usize = 16;
/// Tries of one blob within one pull, as long as each brings the blob further.
const TRIES_MAX: u32 = 5;
/// Pause before another try.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(300);

/// A blob as a manifest describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blob {
    pub(crate) digest: ImageDigest,
    /// Length, bytes.
    pub(crate) size: u64,
}

/// Where a finished blob lies.
pub(crate) fn finished_path(blobs: &Path, digest: &ImageDigest) -> PathBuf {
    blobs.join(digest.hex())
}

/// Where the beginning of a blob lies.
pub(crate) fn partial_path(blobs: &Path, digest: &ImageDigest) -> PathBuf {
    blobs.join(format!("{}.partial", digest.hex()))
}

/// Puts `blob` into `blobs` unless it is there, and returns its path. `lock` is the blob's own: it is held until the last byte
/// is written, also when this future is dropped before.
pub(crate) async fn fetch(
    registry: &Registry,
    blobs: &Path,
    blob: &Blob,
    lock: OwnedMutexGuard<()>,
    meter: &mut Meter<'_>,
) -> Result<PathBuf, PullError> {
    let path = finished_path(blobs, &blob.digest);
    if std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() == blob.size) {
        meter.add(blob.size);
        return Ok(path);
    }
    let mut download = Download::begin(blobs, blob, lock).await?;
    meter.add(download.written);
    let mut tries = 1;
    while download.written < blob.size {
        let before = download.written;
        let (returned, result) = attempt(registry, blob, download, meter).await?;
        download = returned;
        match result {
            Ok(()) => {}
            Err(error) if error.is_transient() && download.written > before && tries < TRIES_MAX => {
                tracing::debug!(blob = %blob.digest, written = download.written, "trying again: {error}");
                tokio::time::sleep(TRY_AGAIN_AFTER).await;
                tries += 1;
            }
            Err(error) => return Err(error),
        }
    }
    let (blob, blobs) = (blob.clone(), blobs.to_path_buf());
    blocking(move || download.finish(&blobs, &blob)).await?;
    Ok(path)
}

/// Runs `work` where blocking is allowed.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PullError> + Send + 'static,
) -> Result<T, PullError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // The runtime is shutting down, or the work panicked and said so.
        Err(_) => Err(PullError::Cancelled),
    }
}

/// A blob file being written, and the digest so far.
struct Download {
    file: File,
    path: PathBuf,
    hasher: sha2::Sha256,
    written: u64,
    _lock: OwnedMutexGuard<()>,
}

impl Download {
    /// Opens the partial file and takes in what is there.
    async fn begin(blobs: &Path, blob: &Blob, lock: OwnedMutexGuard<()>) -> Result<Self, PullError> {
        let path = partial_path(blobs, &blob.digest);
        let size = blob.size;
        blocking(move || {
            let open = || -> io::Result<(File, sha2::Sha256, u64)> {
                let mut file = OpenOptions::new().read(true).append(true).create(true).open(&path)?;
                if file.metadata()?.len() > size {
                    file.set_len(0)?;
                }
                let mut hasher = sha2::Sha256::new();
                let mut buffer = vec![0; 256 << 10];
                let mut written = 0;
                loop {
                    let count = file.read(&mut buffer)?;
                    if count == 0 {
                        return Ok((file, hasher, written));
                    }
                    hasher.update(buffer.get(..count).unwrap_or_default());
                    written += count as u64;
                }
            };
            let (file, hasher, written) = open().map_err(PullError::io("open", &path))?;
            Ok(Self {
                file,
                path,
                hasher,
                written,
                _lock: lock,
            })
        })
        .await
    }

    fn start_over(&mut self) -> Result<(), PullError> {
        self.file.set_len(0).map_err(PullError::io("truncate", &self.path))?;
        self.hasher = sha2::Sha256::new();
        self.written = 0;
        Ok(())
    }

    fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        self.file.write_all(piece)?;
        self.hasher.update(piece);
        self.written += piece.len() as u64;
        Ok(())
    }

    /// Checks the digest, makes the file durable and gives it its final name.
    fn finish(self, blobs: &Path, blob: &Blob) -> Result<(), PullError> {
        let found = ImageDigest::finish(self.hasher);
        if found != blob.digest {
            std::fs::remove_file(&self.path).map_err(PullError::io("remove", &self.path))?;
            return Err(PullError::DigestMismatch {
                subject: "blob".to_owned(),
                expected: blob.digest.clone(),
                found,
            });
        }
        self.file.sync_all().map_err(PullError::io("sync", &self.path))?;
        let target = finished_path(blobs, &blob.digest);
        std::fs::rename(&self.path, &target).map_err(PullError::io("rename", &self.path))?;
        durable::sync_dir(blobs).map_err(PullError::io("sync", blobs))
    }
}

/// One request, and as much of its answer as comes. The download is given back even when the attempt failed; the outer error is
/// for what makes it useless.
async fn attempt(
    registry: &Registry,
    blob: &Blob,
    mut download: Download,
    meter: &mut Meter<'_>,
) -> Result<(Download, Result<(), PullError>), PullError> {
    let mut body = match registry.blob(&blob.digest, download.written).await {
        Ok(body) => body,
        Err(error) => return Ok((download, Err(error))),
    };
    if !body.continued {
        meter.take_back(download.written);
        download = blocking(move || download.start_over().map(|()| download)).await?;
    }
    let mut left = blob.size - download.written;
    let (sender, receiver) = mpsc::channel::<Bytes>(PIECES_IN_FLIGHT);
    let writer = tokio::task::spawn_blocking(move || write(download, receiver));
    let mut broken: Option<Cause> = None;
    let mut too_long = false;
    while let Some(piece) = body.stream.next().await {
        match piece {
            Ok(piece) if piece.len() as u64 > left => {
                too_long = true;
                break;
            }
            Ok(piece) => {
                let length = piece.len() as u64;
                if sender.send(piece).await.is_err() {
                    break; // The writer failed and says why below.
                }
                left -= length;
                meter.add(length);
            }
            // With everything received, this is the stream's own digest check: `Download::finish` reports that better.
            Err(error) => {
                broken = (left > 0).then(|| error.into());
                break;
            }
        }
    }
    drop(sender);
    let (download, written) = writer.await.map_err(|_| PullError::Cancelled)?;
    written.map_err(PullError::io("write", &download.path))?;
    if too_long {
        std::fs::remove_file(&download.path).map_err(PullError::io("remove", &download.path))?;
        return Err(PullError::TooLong {
            digest: blob.digest.clone(),
            expected_bytes: blob.size,
        });
    }
    let result = if download.written == blob.size {
        Ok(())
    } else {
        Err(PullError::BrokeOff {
            digest: blob.digest.clone(),
            done_bytes: download.written,
            total_bytes: blob.size,
            source: broken,
        })
    };
    Ok((download, result))
}

fn write(mut download: Download, mut pieces: mpsc::Receiver<Bytes>) -> (Download, io::Result<()>) {
    while let Some(piece) = pieces.blocking_recv() {
        if let Err(error) = download.write(&piece) {
            return (download, Err(error));
        }
    }
    (download, Ok(()))
}
