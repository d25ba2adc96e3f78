//! Container disks: from a registry's layers to a sealed image.

use std::path::Path;
use std::sync::Arc;

use image_trust::policy::Demand;
use image_trust::{Digests, HashMethod};

use crate::ending::Parts;
use crate::import::{Job, blocking, until};
use crate::layers::{Layers, beginning_of};
use crate::manifest::{Plan, read_label, resolve};
use crate::partial::Partial;
use crate::registry::Registry;
use crate::seal::{DiskFile, Workspace};
use crate::store::{INITRD, KERNEL};
use crate::unpack::{Contents, Found};
use crate::{FileRecord, ImageDigest, ImportError, Imported, Origin, Reference};

impl Job {
    /// A container disk.
    pub(crate) async fn registry(mut self, reference: &Reference) -> Result<Imported, ImportError> {
        if *self.trust.demand_for(&self.trusted).1 == Demand::Refuse {
            self.proofs.foresee(&self.trust, &self.trusted)?;
        }
        let stop = self.stop.clone();
        let store = self.store.clone();
        let registry = store.connect(reference)?;
        let resolving = async { Ok(resolve(&registry, reference).await?) };
        let plan = until(&stop, resolving).await?;
        let led_to = plan.index_digest.as_ref().unwrap_or(&plan.digest).clone();
        self.origin = Origin::Registry { digest: led_to.clone() };
        let wants = matches!(self.trust.demand_for(&self.trusted).1, Demand::Cosign(_));
        let proving = self.proofs.of_registry(&registry, &led_to, reference.digest(), wants);
        until(&stop, proving).await?;
        self.proofs.foresee(&self.trust, &self.trusted)?;
        let name = format!("image {}", plan.digest);
        let _import = until(&stop, async { Ok(store.lock(name).await) }).await?;
        if let Some(there) = self.find_imported()? {
            return Ok(there);
        }
        let labelling = async {
            match &plan.config {
                Some(config) => Ok(read_label(&registry, config).await?),
                None => Ok(None),
            }
        };
        let label = until(&stop, labelling).await?;
        let job = Arc::new(self);
        let own = Partial::of(&store, &beginning_of(&plan)).lock_name();
        match job.taken_and_sealed(&registry, &plan, label.clone()).await {
            // Once more, from where it came to, if dropping what nobody wants made room.
            Err(ImportError::DiskFull(_) | ImportError::Quota { .. }) if store.make_way(Some(&own)) => {
                job.taken_and_sealed(&registry, &plan, label).await
            }
            result => result,
        }
    }

    async fn taken_and_sealed(
        self: &Arc<Self>,
        registry: &Registry,
        plan: &Plan,
        label: Option<String>,
    ) -> Result<Imported, ImportError> {
        let layers = Layers::begin(self, plan).await?;
        let (layers, contents) = layers.take_in(registry, self, plan).await?;
        let (job, plan) = (Arc::clone(self), plan.clone());
        blocking(move || layers.end(job.container(&plan, label, contents))).await
    }

    /// The image that came from this very manifest before, if nothing has to be proved that takes its bytes.
    fn find_imported(&self) -> Result<Option<Imported>, ImportError> {
        if !self.proofs.need_no_bytes() {
            return Ok(None);
        }
        let known = self.store.list()?;
        let Some(image) = known
            .into_iter()
            .find(|image| image.origin.as_ref() == Some(&self.origin))
        else {
            return Ok(None);
        };
        let nothing = Digests::new([]).finish();
        let verdict = self.proofs.judge(&self.trust, &self.trusted, &nothing, None)?;
        Ok(Some(Imported {
            image,
            was_there: true,
            origin: self.origin.clone(),
            verdict,
            digests: None,
        }))
    }

    /// Judges and seals what was taken out of the layers. Blocks.
    fn container(&self, plan: &Plan, label: Option<String>, contents: Contents) -> Result<Imported, ImportError> {
        let workspace = Workspace::make(&self.store)?;
        let own = Partial::of(&self.store, &beginning_of(plan));
        let (dir, room) = (workspace.0.as_path(), self.store.room_beside(Some(&own))?);
        let Contents {
            disk,
            kernel,
            initrd,
            cmdline,
        } = contents;
        let inspection = match &disk.judged {
            Some(judged) => judged.clone()?,
            None => return Err(image_formats::Refusal::Empty.into()),
        };
        let verdict = self.proofs.judge(&self.trust, &self.trusted, &disk.digests, None)?;
        let sealing = self.sealing(dir, &room);
        // A second name, so that after a crash while sealing nothing has to be fetched again.
        let path = dir.join("incoming");
        std::fs::hard_link(&disk.file, &path).map_err(ImportError::io("link", &path))?;
        let (record, disk_digest) = sealing.place_disk(DiskFile {
            sha256: sha256_of(&disk),
            path,
            inspection,
            source_path: disk.path,
        })?;
        let kernel = place(dir, kernel, KERNEL)?;
        let initrd = place(dir, initrd, INITRD)?;
        let parts = Parts {
            disk: record,
            disk_digest,
            index_digest: plan.index_digest.clone(),
            kernel,
            initrd,
            cmdline: cmdline.or(label),
        };
        self.end(&sealing, parts, verdict, disk.digests)
    }
}

fn sha256_of(found: &Found) -> Option<ImageDigest> {
    found.digests.get(HashMethod::Sha256).and_then(ImageDigest::from_bytes)
}

/// Gives a found file its place in the image.
fn place(dir: &Path, found: Option<Found>, name: &str) -> Result<Option<FileRecord>, ImportError> {
    let Some(found) = found else { return Ok(None) };
    let target = dir.join(name);
    std::fs::hard_link(&found.file, &target).map_err(ImportError::io("link", &target))?;
    Ok(Some(FileRecord {
        digest: sha256_of(&found),
        source_path: found.path,
        size_bytes: found.size,
    }))
}
