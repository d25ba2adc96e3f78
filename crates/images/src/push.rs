//! Publishing an image as a container disk, in the shape [the crate](crate) imports.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use disk_image::{Chain, ConvertOptions, CreateOptions, Watch};
use futures_util::stream;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::layer_writer::{self, Layer, Member, Packed};
use crate::progress::Meter;
use crate::registry::{Intent, Registry};
use crate::seal::Workspace;
use crate::{
    DiskFormat, ImageDigest, ImageRecord, ImportError, Phase, Progress, PullError, Reference, Store, StoreError,
};

/// Pieces of a layer between the thread that packs it and the network.
const PIECES_IN_FLIGHT: usize = 2;
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Why an image was not published. The tag leads to what it led to before; blobs without a manifest are the registry's to clear.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The image.
    #[error("the image cannot be read")]
    Store(#[from] StoreError),
    /// A digest names what is there already.
    #[error("{0} names an image by its digest; name the tag that is to lead to the image")]
    NoTag(String),
    /// The registry, or the way there.
    #[error("{reference} cannot be published")]
    Registry {
        /// Where to.
        reference: String,
        /// What went wrong.
        #[source]
        source: PullError,
    },
    /// A raw disk could not be made smaller.
    #[error("the disk cannot be brought into the shape it travels in")]
    Convert(#[from] disk_image::ConvertError),
    /// A file operation failed.
    #[error("cannot {action} {path} while an image is packed")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The caller asked to stop.
    #[error("publishing was cancelled")]
    Cancelled,
}

impl PushError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}

/// What was published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// Where, written in full.
    pub reference: String,
    /// Digest of the manifest, as the registry knows it.
    pub digest: ImageDigest,
    /// Length of the layer that was sent, bytes.
    pub layer_bytes: u64,
}

impl Store {
    /// Publishes an image under a tag. A raw disk is packed as qcow2, so that what is empty does not travel; a qcow2 disk is packed
    /// as it is. The layer is packed, compressed and sent in one pass. Progress counts the bytes of disk, kernel and initrd.
    ///
    /// # Errors
    /// [`PushError`]; the tag is moved by the very last request.
    pub async fn push(
        &self,
        digest: &ImageDigest,
        reference: &Reference,
        progress: &watch::Sender<Progress>,
        cancel: &CancellationToken,
    ) -> Result<Pushed, PushError> {
        let stop = cancel.child_token();
        let _stop_when_dropped = stop.clone().drop_guard();
        tokio::select! {
            biased;
            () = stop.cancelled() => Err(PushError::Cancelled),
            result = self.push_steps(digest, reference, progress, &stop) => result,
        }
    }

    async fn push_steps(
        &self,
        digest: &ImageDigest,
        reference: &Reference,
        progress: &watch::Sender<Progress>,
        stop: &CancellationToken,
    ) -> Result<Pushed, PushError> {
        if reference.digest().is_some() {
            return Err(PushError::NoTag(reference.to_string()));
        }
        let failed = |source| PushError::Registry {
            reference: reference.to_string(),
            source,
        };
        let image = self.get(digest)?;
        let registry = Registry::connect(reference, self.settings(), &self.0.agents, Intent::Push).map_err(failed)?;
        let packing = Packing {
            store: self.clone(),
            image: image.clone(),
            progress: progress.clone(),
            stop: stop.clone(),
        };
        let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(PIECES_IN_FLIGHT);
        let packer = tokio::task::spawn_blocking(move || packing.run(&sender));
        let pieces = stream::unfold(receiver, |mut receiver| async {
            let piece = receiver.recv().await?;
            Some((piece, receiver))
        });
        let sent = registry.push_stream(pieces).await;
        // What went wrong while packing broke the stream, and is the better reason.
        let packed = packer.await.map_err(|_| PushError::Cancelled)?;
        let packed = match (packed, &sent) {
            (Err(PushError::Cancelled), Err(_)) => None,
            (packed, _) => Some(packed?),
        };
        let (layer, layer_bytes) = sent.map_err(failed)?;
        let packed = packed.ok_or(PushError::Cancelled)?;
        let config = config_of(&image, &packed);
        let config_digest = ImageDigest::of(&config);
        let (config_name, config_bytes) = (config_digest.to_string(), config.len());
        registry
            .push_small(&config_digest, config.into())
            .await
            .map_err(failed)?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": { "mediaType": CONFIG_TYPE, "digest": config_name, "size": config_bytes },
            "layers": [{ "mediaType": LAYER_TYPE, "digest": layer.to_string(), "size": layer_bytes }],
        })
        .to_string();
        let digest = ImageDigest::of(manifest.as_bytes());
        let name = reference.manifest_name();
        registry.push_manifest(&name, manifest.into()).await.map_err(failed)?;
        tracing::info!(image = %image.digest, %reference, manifest = %digest, "image published");
        Ok(Pushed {
            reference: reference.to_string(),
            digest,
            layer_bytes,
        })
    }
}

/// The image configuration (OCI image specification 1.1, "config").
fn config_of(image: &ImageRecord, packed: &Packed) -> Vec<u8> {
    let labels = image
        .cmdline
        .iter()
        .map(|cmdline| (crate::manifest::CMDLINE_LABEL, cmdline));
    let labels: std::collections::BTreeMap<_, _> = labels.collect();
    json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Labels": labels },
        "rootfs": { "type": "layers", "diff_ids": [packed.tar_digest.to_string()] },
    })
    .to_string()
    .into_bytes()
}

/// What the thread that packs needs.
struct Packing {
    store: Store,
    image: ImageRecord,
    progress: watch::Sender<Progress>,
    stop: CancellationToken,
}

impl Packing {
    /// Packs and sends all pieces; an error goes both ways, so that the stream does not look complete.
    fn run(self, sender: &mpsc::Sender<io::Result<Bytes>>) -> Result<Packed, PushError> {
        let result = self.pack(sender.clone());
        if result.is_err() {
            let _ = sender.blocking_send(Err(io::ErrorKind::Interrupted.into()));
        }
        result
    }

    fn pack(&self, sender: mpsc::Sender<io::Result<Bytes>>) -> Result<Packed, PushError> {
        let workspace = Workspace::make(&self.store).map_err(of_import)?;
        let digest = &self.image.digest;
        let disk = self.store.open_disk(digest)?;
        let file = match self.image.disk.format {
            DiskFormat::Qcow2 => disk,
            DiskFormat::Raw => self.shrink(disk, &workspace.0)?,
        };
        let name = "disk/disk.qcow2";
        let mut members = vec![Member { name, file }];
        if self.image.kernel.is_some() {
            members.push(Member {
                name: "boot/vmlinuz",
                file: self.store.open_kernel(digest)?,
            });
        }
        if self.image.initrd.is_some() {
            members.push(Member {
                name: "boot/initrd.img",
                file: self.store.open_initrd(digest)?,
            });
        }
        let total = members
            .iter()
            .map(|member| member.file.metadata().map_or(0, |metadata| metadata.len()))
            .sum();
        let mut meter = Meter::new(&self.progress, Phase::Publishing, total);
        let layer = Layer::new(sender);
        let written = layer_writer::write(layer, members, &mut |bytes| {
            meter.add(bytes);
            !self.stop.is_cancelled()
        });
        written.map_err(|error| match error.kind() {
            // The other side is gone: it knows why.
            io::ErrorKind::BrokenPipe => PushError::Cancelled,
            _ => PushError::io("pack", &self.store.disk_path(digest))(error),
        })
    }

    /// A raw disk as qcow2.
    fn shrink(&self, disk: File, dir: &Path) -> Result<File, PushError> {
        let path = dir.join("disk.qcow2");
        let target = File::options().read(true).write(true).create_new(true).open(&path);
        let target = target.map_err(PushError::io("create", &path))?;
        let source = Chain::of_file("the sealed disk", disk, spec::DiskFormat::Raw, false);
        let options = ConvertOptions {
            // The registry has the layer already when the same image goes out once more.
            in_order: true,
            ..ConvertOptions::to(CreateOptions::qcow2(self.image.disk.virtual_bytes))
        };
        let result = disk_image::convert(&source, &target, &options, self);
        if self.stop.is_cancelled() {
            return Err(PushError::Cancelled);
        }
        result?;
        Ok(target)
    }
}

impl Watch for Packing {
    fn progress(&self, done_bytes: u64, total_bytes: u64) {
        let phase = Phase::Converting;
        self.progress.send_replace(Progress {
            phase,
            done_bytes,
            total_bytes,
        });
    }

    fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }
}

/// Making a workspace fails for one reason.
fn of_import(error: ImportError) -> PushError {
    match error {
        ImportError::Io { action, path, source } => PushError::Io { action, path, source },
        other => PushError::Io {
            action: "prepare",
            path: PathBuf::from("the store"),
            source: io::Error::other(other),
        },
    }
}
