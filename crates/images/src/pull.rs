//! From a reference to a sealed image.

use std::sync::Arc;

use oci_client::RegistryOperation;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::fetch::{Blob, blocking, fetch, finished_path, partial_path};
use crate::manifest::{Plan, read_label, resolve};
use crate::progress::Meter;
use crate::pull_import::Import;
use crate::registry::Registry;
use crate::unpack::LayerFile;
use crate::{ImageRecord, Phase, Progress, PullError, Reference, Store};

/// The result of a pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// The image.
    pub image: ImageRecord,
    /// True if it was in the store already and nothing was imported.
    pub was_there: bool,
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
        let registry = Registry::connect(reference, self.settings(), &self.0.clients, RegistryOperation::Pull).await?;
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

    pub(crate) async fn fetch_layers(
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
                finished_path(&self.blobs(), &blob.digest),
                partial_path(&self.blobs(), &blob.digest),
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
        let needed = needed.saturating_add(self.0.settings.reserved_bytes);
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
    pub(crate) fn drop_unused(&self) -> bool {
        match self.drop_unused_blobs() {
            Ok(freed) => freed > 0,
            Err(error) => {
                tracing::warn!("cannot drop unused layers: {error}");
                false
            }
        }
    }
}
