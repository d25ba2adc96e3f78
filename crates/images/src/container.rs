//! Container disks: from a registry's layers to a sealed image.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use image_formats::{Expectations, Inspector, Wrapping};
use image_trust::policy::Demand;
use image_trust::{Digests, HashMethod};

use crate::import::{Job, blocking, until};
use crate::manifest::{Plan, read_label, resolve};
use crate::progress::Meter;
use crate::seal::{DiskFile, Workspace, now_s};
use crate::store::{INITRD, KERNEL};
use crate::unpack::{Contents, Found, LayerFile, Unpacker};
use crate::{FileRecord, ImageDigest, ImageRecord, ImportError, Imported, Origin, Phase, Reference};

impl Job {
    /// A container disk.
    pub(crate) async fn registry(mut self, reference: &Reference) -> Result<Imported, ImportError> {
        if *self.trust.demand_for(&self.trusted).1 == Demand::Refuse {
            self.proofs.foresee(&self.trust, &self.trusted)?;
        }
        let stop = self.stop.clone();
        let store = self.store.clone();
        let registry = until(&stop, store.connect(reference)).await?;
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
        let blobs = plan.layers.iter().map(|(blob, _)| blob.digest.clone());
        let wanted = Arc::new(store.want(blobs.collect()));
        let progress = self.progress.clone();
        let fetching = async { Ok(store.fetch_layers(&registry, &plan, &progress).await?) };
        let layers = until(&stop, fetching).await?;
        let kept = Arc::clone(&wanted);
        let result = blocking(move || {
            let result = self.container_with_room(&plan, label.as_deref(), &layers);
            drop(kept);
            result
        });
        let imported = result.await?;
        if let Some(wanted) = Arc::into_inner(wanted) {
            wanted.served();
        }
        Ok(imported)
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

    /// Once more if the file system was full and dropping layers nobody wants made room.
    fn container_with_room(
        &self,
        plan: &Plan,
        label: Option<&str>,
        layers: &[LayerFile],
    ) -> Result<Imported, ImportError> {
        match self.container(plan, label, layers) {
            Err(ImportError::DiskFull(_)) if self.store.drop_unused() => self.container(plan, label, layers),
            result => result,
        }
    }

    /// Takes a container disk out of its layers, judges and seals it. Blocks.
    fn container(&self, plan: &Plan, label: Option<&str>, layers: &[LayerFile]) -> Result<Imported, ImportError> {
        let workspace = Workspace::make(&self.store)?;
        let (dir, room) = (workspace.0.as_path(), self.store.room()?);
        let methods = self.proofs.methods();
        let Contents {
            disk,
            kernel,
            initrd,
            cmdline,
        } = self.unpack(dir, layers, &methods)?;
        let mut file = File::open(&disk.file).map_err(ImportError::io("open", &disk.file))?;
        let expected = Expectations {
            wrapping: Wrapping::Archive,
            ..self.expected.clone()
        };
        let inspection =
            Inspector::inspect(&mut file, expected).map_err(|error| ImportError::of_inspection(error, &disk.file))?;
        let verdict = self.proofs.judge(&self.trust, &self.trusted, &disk.digests, None)?;
        let sealing = self.sealing(dir, &room);
        let (record, alone) = sealing.place_disk(DiskFile {
            sha256: sha256_of(&disk),
            path: disk.file,
            inspection,
            source_path: disk.path,
        })?;
        let kernel = place(dir, kernel, KERNEL)?;
        let initrd = place(dir, initrd, INITRD)?;
        let cmdline = cmdline.or_else(|| label.map(str::to_owned));
        let (image, was_there) = sealing.seal(ImageRecord {
            digest: ImageRecord::name_of(&alone, kernel.as_ref(), initrd.as_ref(), cmdline.as_deref()),
            index_digest: plan.index_digest.clone(),
            reference: self.location.clone(),
            disk: record,
            kernel,
            initrd,
            cmdline,
            imported_at_s: now_s(),
            origin: Some(self.origin.clone()),
        })?;
        Ok(Imported {
            image,
            was_there,
            origin: self.origin.clone(),
            verdict,
            digests: Some(disk.digests),
        })
    }

    fn unpack(&self, dir: &Path, layers: &[LayerFile], methods: &[HashMethod]) -> Result<Contents, ImportError> {
        let length = |layer: &LayerFile| layer.file.metadata().map(|metadata| metadata.len()).unwrap_or_default();
        let mut meter = Meter::new(&self.progress, Phase::Unpacking, layers.iter().map(length).sum());
        let mut unpacker = Unpacker::new(dir, self.expected.max_bytes, methods);
        for layer in layers {
            unpacker.add(layer, &mut |bytes| {
                meter.add(bytes);
                !self.stop.is_cancelled()
            })?;
        }
        Ok(unpacker.finish()?)
    }
}

fn sha256_of(found: &Found) -> Option<ImageDigest> {
    found.digests.get(HashMethod::Sha256).and_then(ImageDigest::from_bytes)
}

/// Gives a found file its place in the image.
fn place(dir: &Path, found: Option<Found>, name: &str) -> Result<Option<FileRecord>, ImportError> {
    let Some(found) = found else { return Ok(None) };
    let target = dir.join(name);
    std::fs::rename(&found.file, &target).map_err(ImportError::io("rename", &found.file))?;
    Ok(Some(FileRecord {
        digest: sha256_of(&found),
        source_path: found.path,
        size_bytes: found.size,
    }))
}
