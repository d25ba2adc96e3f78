//! From a reference to a sealed image.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::fetch::{Blob, blocking, fetch};
use crate::flatten::Flatten;
use crate::layer::{Compression, compression};
use crate::progress::Meter;
use crate::registry::{MANIFEST_MAX, Registry};
use crate::store::{DISK, INITRD, KERNEL, Wanted};
use crate::unpack::{Contents, Found, LayerFile, Unpacker, check_cmdline};
use crate::{
    ConvertError, DiskFormat, DiskRecord, FileRecord, ImageDigest, ImageRecord, Phase, Progress, PullError, Reference,
    Store, disk_format, durable, record,
};

/// Image label with the default kernel command line.
const CMDLINE_LABEL: &str = "io.karat.cmdline";

/// The result of a pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// The image.
    pub image: ImageRecord,
    /// True if it was in the store already and nothing was imported.
    pub was_there: bool,
}

/// An OCI image manifest or index; what of it matters here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ManifestBody {
    schema_version: u32,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

/// An image configuration; what of it matters here. Docker and OCI write the same names.
#[derive(Deserialize, Default)]
#[serde(default)]
struct ImageConfig {
    config: Option<ConfigSection>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ConfigSection {
    #[serde(rename = "Labels")]
    labels: Option<std::collections::BTreeMap<String, String>>,
}

/// A manifest judged to be usable.
struct Plan {
    digest: ImageDigest,
    index_digest: Option<ImageDigest>,
    config: Option<Blob>,
    layers: Vec<(Blob, Compression)>,
}

impl Store {
    /// Imports the image `reference` names, unless it is in the store already. `progress` is updated as the work goes on.
    ///
    /// Stops with [`PullError::Cancelled`] soon after `cancel` is triggered; dropping the future does the same. Finished and
    /// partial layers stay for the next pull, nothing else does. Two pulls of one image at once are one import.
    pub async fn pull(
        &self,
        reference: &Reference,
        progress: &watch::Sender<Progress>,
        cancel: &CancellationToken,
    ) -> Result<Pulled, PullError> {
        let stop = cancel.child_token();
        let _stop_when_dropped = stop.clone().drop_guard();
        tokio::select! {
            biased;
            () = stop.cancelled() => Err(PullError::Cancelled),
            result = self.pull_steps(reference, progress, &stop) => result,
        }
    }

    async fn pull_steps(
        &self,
        reference: &Reference,
        progress: &watch::Sender<Progress>,
        stop: &CancellationToken,
    ) -> Result<Pulled, PullError> {
        let _resolving = Meter::new(progress, Phase::Resolving, 0);
        if let Some(image) = reference.digest().and_then(|digest| self.get(digest).ok()) {
            return Ok(Pulled { image, was_there: true });
        }
        let registry = Registry::connect(reference, &self.0.settings.insecure_registries).await?;
        let plan = resolve(&registry, reference).await?;
        let _import = self.lock(format!("image {}", plan.digest)).await;
        if let Ok(image) = self.get(&plan.digest) {
            return Ok(Pulled { image, was_there: true });
        }
        let label = match &plan.config {
            Some(config) => read_label(&registry, config).await?,
            None => None,
        };
        let blobs = plan.layers.iter().map(|(blob, _)| blob.digest.clone());
        let wanted = Arc::new(self.want(blobs.collect()));
        let layers = self.fetch_layers(&registry, &plan, progress).await?;
        let import = Import {
            store: self.clone(),
            reference: reference.to_string(),
            digest: plan.digest,
            index_digest: plan.index_digest,
            label,
            layers,
            progress: progress.clone(),
            stop: stop.clone(),
            wanted: Arc::clone(&wanted),
        };
        let image = blocking(move || import.run_with_room()).await?;
        if let Some(wanted) = Arc::into_inner(wanted) {
            wanted.served();
        }
        tracing::info!(image = %image.digest, %reference, "image sealed");
        Ok(Pulled {
            image,
            was_there: false,
        })
    }

    async fn fetch_layers(
        &self,
        registry: &Registry,
        plan: &Plan,
        progress: &watch::Sender<Progress>,
    ) -> Result<Vec<LayerFile>, PullError> {
        let total = plan.layers.iter().map(|(blob, _)| blob.size).sum();
        let mut meter = Meter::new(progress, Phase::Fetching, total);
        self.make_room(plan)?;
        let mut files = Vec::new();
        for (blob, compression) in &plan.layers {
            let lock = self.lock(format!("blob {}", blob.digest)).await;
            let file = fetch(registry, &self.blobs(), blob, lock, &mut meter).await?;
            files.push(LayerFile {
                digest: blob.digest.clone(),
                compression: *compression,
                file,
            });
        }
        Ok(files)
    }

    /// Fails early when the layers cannot fit, after dropping layers nobody wants.
    fn make_room(&self, plan: &Plan) -> Result<(), PullError> {
        let root = &self.0.settings.root;
        let io = || PullError::io("measure", root);
        let here = |blob: &Blob| {
            let paths = [
                crate::fetch::finished_path(&self.blobs(), &blob.digest),
                crate::fetch::partial_path(&self.blobs(), &blob.digest),
            ];
            paths
                .iter()
                .find_map(|path| path.metadata().ok())
                .map_or(0, |metadata| metadata.len())
        };
        let needed: u64 = plan
            .layers
            .iter()
            .map(|(blob, _)| blob.size.saturating_sub(here(blob)))
            .sum();
        if self.free_bytes().map_err(io())? >= needed {
            return Ok(());
        }
        self.drop_unused();
        if self.free_bytes().map_err(io())? >= needed {
            return Ok(());
        }
        Err(PullError::DiskFull { path: root.clone() })
    }

    /// Drops what no pull wants; true if that freed anything.
    fn drop_unused(&self) -> bool {
        match self.drop_unused_blobs() {
            Ok(freed) => freed > 0,
            Err(error) => {
                tracing::warn!("cannot drop unused layers: {error}");
                false
            }
        }
    }
}

/// Follows the reference, through an index if there is one, to a manifest for this kind of machine.
async fn resolve(registry: &Registry, reference: &Reference) -> Result<Plan, PullError> {
    let (body, digest) = registry.manifest(&reference.manifest_name()).await?;
    let manifest = parse(registry, &body)?;
    let Some(entries) = manifest.manifests else {
        return plan(registry, manifest, digest, None);
    };
    let fits = |entry: &&Descriptor| {
        let platform = entry.platform.as_ref();
        platform.is_some_and(|platform| platform.os == "linux" && platform.architecture == "amd64")
    };
    let Some(entry) = entries.iter().find(fits) else {
        let name = |platform: &Platform| format!("{}/{}", platform.os, platform.architecture);
        let offered: Vec<String> = entries
            .iter()
            .filter_map(|entry| entry.platform.as_ref())
            .take(20)
            .map(name)
            .collect();
        let offered = if offered.is_empty() {
            "nothing".to_owned()
        } else {
            offered.join(", ")
        };
        return Err(registry.manifest_problem(format!("it has nothing for linux/amd64; it offers {offered}")));
    };
    let chosen = blob(registry, entry)?;
    let (body, digest_of_chosen) = registry.manifest(&chosen.digest.to_string()).await?;
    let manifest = parse(registry, &body)?;
    if manifest.manifests.is_some() {
        return Err(registry.manifest_problem("its index leads to another index"));
    }
    plan(registry, manifest, digest_of_chosen, Some(digest))
}

fn parse(registry: &Registry, body: &[u8]) -> Result<ManifestBody, PullError> {
    let manifest: ManifestBody =
        serde_json::from_slice(body).map_err(|error| registry.manifest_problem(format!("it is malformed: {error}")))?;
    if manifest.schema_version != 2 {
        let version = manifest.schema_version;
        return Err(registry.manifest_problem(format!("schema version {version} is not supported, only 2 is")));
    }
    Ok(manifest)
}

fn plan(
    registry: &Registry,
    manifest: ManifestBody,
    digest: ImageDigest,
    index_digest: Option<ImageDigest>,
) -> Result<Plan, PullError> {
    let Some(layers) = manifest.layers.filter(|layers| !layers.is_empty()) else {
        let kind = manifest.media_type.unwrap_or_default();
        return Err(registry.manifest_problem(format!("it has no layers (media type {kind:?})")));
    };
    let mut total: u64 = 0;
    let mut planned = Vec::new();
    for layer in &layers {
        let Some(compression) = compression(&layer.media_type) else {
            let kind = &layer.media_type;
            return Err(registry.manifest_problem(format!(
                "layer {} has media type {kind:?}; tar, tar+gzip and tar+zstd are supported",
                layer.digest
            )));
        };
        let blob = blob(registry, layer)?;
        total = total
            .checked_add(blob.size)
            .ok_or_else(|| registry.manifest_problem("its layers' sizes are absurd"))?;
        planned.push((blob, compression));
    }
    let config = manifest
        .config
        .as_ref()
        .map(|config| blob(registry, config))
        .transpose()?;
    Ok(Plan {
        digest,
        index_digest,
        config,
        layers: planned,
    })
}

fn blob(registry: &Registry, descriptor: &Descriptor) -> Result<Blob, PullError> {
    let digest = descriptor
        .digest
        .parse()
        .map_err(|error: crate::BadDigest| registry.manifest_problem(error.to_string()))?;
    Ok(Blob {
        digest,
        size: descriptor.size,
    })
}

/// The command line in the image's labels. A configuration that is no JSON object (artifacts may have any) has none.
async fn read_label(registry: &Registry, config: &Blob) -> Result<Option<String>, PullError> {
    use futures_util::StreamExt;
    if config.size > MANIFEST_MAX {
        return Err(registry.manifest_problem(format!("its configuration is longer than {MANIFEST_MAX} bytes")));
    }
    let mut body = registry.blob(&config.digest, 0).await?;
    let mut bytes = Vec::new();
    let mut broken = None;
    while let Some(piece) = body.stream.next().await {
        match piece {
            Ok(piece) if (bytes.len() + piece.len()) as u64 <= config.size => bytes.extend_from_slice(&piece),
            Ok(_) => {
                return Err(PullError::TooLong {
                    digest: config.digest.clone(),
                    expected_bytes: config.size,
                });
            }
            Err(error) => {
                broken = Some(error.into());
                break;
            }
        }
    }
    if (bytes.len() as u64) < config.size {
        return Err(PullError::BrokeOff {
            digest: config.digest.clone(),
            done_bytes: 0,
            total_bytes: config.size,
            source: broken,
        });
    }
    let found = ImageDigest::of(&bytes);
    if found != config.digest {
        return Err(PullError::DigestMismatch {
            subject: "image configuration".to_owned(),
            expected: config.digest.clone(),
            found,
        });
    }
    let parsed: ImageConfig = serde_json::from_slice(&bytes).unwrap_or_default();
    let label = parsed
        .config
        .and_then(|config| config.labels)
        .and_then(|mut labels| labels.remove(CMDLINE_LABEL));
    label.map(|label| check_cmdline(&label)).transpose()
}

/// The blocking half of a pull: from layers on disk to the sealed image.
struct Import {
    store: Store,
    reference: String,
    digest: ImageDigest,
    index_digest: Option<ImageDigest>,
    label: Option<String>,
    layers: Vec<LayerFile>,
    progress: watch::Sender<Progress>,
    stop: CancellationToken,
    /// Keeps the layers until this is done, also when nobody waits for it any more.
    wanted: Arc<Wanted>,
}

/// A directory under `tmp/` that goes when its import does.
struct Workspace(PathBuf);

impl Drop for Workspace {
    fn drop(&mut self) {
        if let Err(error) = durable::remove_all(&self.0) {
            tracing::warn!(path = %self.0.display(), "cannot remove what an import left: {error}");
        }
    }
}

impl Import {
    /// Runs; once more if the file system was full and dropping layers nobody wants made room.
    fn run_with_room(self) -> Result<ImageRecord, PullError> {
        let result = match self.run() {
            Err(PullError::DiskFull { .. }) if self.store.drop_unused() => self.run(),
            result => result,
        };
        drop(self.wanted);
        match result {
            // Whatever part ran into the full disk, the operator looks at the store.
            Err(PullError::DiskFull { .. }) => Err(PullError::DiskFull {
                path: self.store.0.settings.root.clone(),
            }),
            result => result,
        }
    }

    fn run(&self) -> Result<ImageRecord, PullError> {
        let workspace = Workspace(self.store.fresh_tmp("import"));
        let dir = workspace.0.as_path();
        std::fs::create_dir(dir).map_err(PullError::io("create", dir))?;
        let contents = self.unpack(dir)?;
        let disk = self.make_disk(dir, &contents.disk)?;
        self.check_stop()?;
        Meter::new(&self.progress, Phase::Sealing, 0);
        let kernel = place(dir, contents.kernel, KERNEL)?;
        let initrd = place(dir, contents.initrd, INITRD)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let image = ImageRecord {
            digest: self.digest.clone(),
            index_digest: self.index_digest.clone(),
            reference: self.reference.clone(),
            disk,
            kernel,
            initrd,
            cmdline: contents.cmdline.or_else(|| self.label.clone()),
            imported_at_s: now.as_secs(),
        };
        self.seal(dir, &image)?;
        Ok(image)
    }

    fn check_stop(&self) -> Result<(), PullError> {
        if self.stop.is_cancelled() {
            Err(PullError::Cancelled)
        } else {
            Ok(())
        }
    }

    fn unpack(&self, dir: &Path) -> Result<Contents, PullError> {
        let length = |layer: &LayerFile| layer.file.metadata().map(|metadata| metadata.len()).unwrap_or_default();
        let mut meter = Meter::new(&self.progress, Phase::Unpacking, self.layers.iter().map(length).sum());
        let mut unpacker = Unpacker::new(dir, self.store.0.settings.max_disk_bytes);
        for layer in &self.layers {
            unpacker.add(layer, &mut |bytes| {
                meter.add(bytes);
                !self.stop.is_cancelled()
            })?;
        }
        unpacker.finish()
    }

    /// Turns what the image brought into `disk.raw`.
    fn make_disk(&self, dir: &Path, found: &Found) -> Result<DiskRecord, PullError> {
        let settings = &self.store.0.settings;
        let file = File::open(&found.file).map_err(PullError::io("open", &found.file))?;
        let probed = disk_format::probe(&file, settings.max_disk_bytes).map_err(PullError::io("read", &found.file))?;
        let (source_format, size_bytes) = probed.map_err(|source| PullError::Disk {
            path: format!("/{}", found.path),
            source,
        })?;
        let target = dir.join(DISK);
        let virtual_bytes = size_bytes.next_multiple_of(512);
        match source_format {
            DiskFormat::Raw => {
                std::fs::rename(&found.file, &target).map_err(PullError::io("rename", &found.file))?;
                File::options()
                    .write(true)
                    .open(&target)
                    .and_then(|file| file.set_len(virtual_bytes))
                    .map_err(PullError::io("grow", &target))?;
            }
            DiskFormat::Qcow2 => {
                self.convert(found, &target, size_bytes)?;
                std::fs::remove_file(&found.file).map_err(PullError::io("remove", &found.file))?;
            }
        }
        Ok(DiskRecord {
            source_path: found.path.clone(),
            source_format,
            source_bytes: found.size,
            virtual_bytes,
        })
    }

    fn convert(&self, found: &Found, target: &Path, size_bytes: u64) -> Result<(), PullError> {
        let settings = &self.store.0.settings;
        let mut meter = Meter::new(&self.progress, Phase::Converting, size_bytes);
        let job = Flatten {
            program: settings.qemu_img.as_deref(),
            source: &found.file,
            target,
            size_bytes,
            limit: settings.convert_limit,
        };
        let done = job.run(&mut |done| meter.set(done), &|| self.stop.is_cancelled());
        done.map_err(|error| match error {
            ConvertError::Cancelled => PullError::Cancelled,
            ConvertError::DiskFull => PullError::DiskFull {
                path: settings.root.clone(),
            },
            ConvertError::Target(source) => PullError::io("create", target)(source),
            source => PullError::Convert {
                path: format!("/{}", found.path),
                source,
            },
        })
    }

    /// Makes every file durable and read-only, then lets the image appear in one step.
    fn seal(&self, dir: &Path, image: &ImageRecord) -> Result<(), PullError> {
        let path = dir.join(record::FILE_NAME);
        let json = image
            .to_json()
            .map_err(|error| PullError::io("write", &path)(error.into()))?;
        std::fs::write(&path, json).map_err(PullError::io("write", &path))?;
        let parts = [
            Some(record::FILE_NAME),
            Some(DISK),
            image.kernel.as_ref().map(|_| KERNEL),
            image.initrd.as_ref().map(|_| INITRD),
        ];
        for name in parts.into_iter().flatten() {
            let path = dir.join(name);
            durable::seal_file(&path).map_err(PullError::io("seal", &path))?;
        }
        for entry in std::fs::read_dir(dir).map_err(PullError::io("list", dir))? {
            let path = entry.map_err(PullError::io("list", dir))?.path();
            if path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("found-"))
            {
                std::fs::remove_file(&path).map_err(PullError::io("remove", &path))?;
            }
        }
        durable::sync_dir(dir).map_err(PullError::io("sync", dir))?;
        self.check_stop()?;
        let target = self.store.image_dir(&image.digest);
        // What may lie there is damaged, or `pull` would have used it.
        durable::remove_all(&target).map_err(PullError::io("replace", &target))?;
        std::fs::rename(dir, &target).map_err(PullError::io("rename", &target))?;
        durable::seal_dir(&target).map_err(PullError::io("seal", &target))?;
        let parent = self.store.images();
        durable::sync_dir(&parent).map_err(PullError::io("sync", &parent))
    }
}

/// Gives a found file its place in the image.
fn place(dir: &Path, found: Option<Found>, name: &str) -> Result<Option<FileRecord>, PullError> {
    let Some(found) = found else { return Ok(None) };
    let target = dir.join(name);
    std::fs::rename(&found.file, &target).map_err(PullError::io("rename", &found.file))?;
    Ok(Some(FileRecord {
        source_path: found.path,
        size_bytes: found.size,
    }))
}
