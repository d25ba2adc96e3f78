//! Kernels and ramdisks that are images of their own, as properties of other images name them.

use std::fs::File;

use image_catalog::{Abilities, ImageId, machine_hints};
use images::{BootParts, DiskFormat};
use spec::VmSpec;

use super::Usable;
use crate::failure::Failure;
use crate::host::Host;

impl Host {
    /// What the properties of a machine's image name as kernel and ramdisk. Nothing where the machine names a kernel itself. `refused` is
    /// what is told first where they can not be used.
    pub(crate) async fn named_boot(&self, spec: &VmSpec, image: &Usable, refused: &str) -> Result<BootParts, Failure> {
        if spec.boot.as_ref().is_some_and(|boot| boot.kernel.is_some()) {
            return Ok(BootParts::default());
        }
        let (hints, _) = machine_hints(image.row.record.properties(), &Abilities::x86_64());
        Ok(BootParts {
            kernel: self.named("kernel_id", hints.kernel, refused).await?,
            initrd: self.named("ramdisk_id", hints.ramdisk, refused).await?,
            cmdline: None,
        })
    }

    async fn named(&self, property: &str, id: Option<ImageId>, refused: &str) -> Result<Option<File>, Failure> {
        let Some(id) = id else { return Ok(None) };
        let wrong = |what: &str| Failure::refused_field(refused, "image", format!("{property}: image {id} {what}"));
        let found = self.usable_image(&id.to_string()).await?;
        let found = found.ok_or_else(|| wrong("is not here; import it, or name another"))?;
        if found.sealed.disk.format != DiskFormat::Raw {
            return Err(wrong("is a disk, and neither a kernel nor a ramdisk"));
        }
        let (store, digest) = (found.store, found.sealed.digest);
        let opened = self.blocking(move |_| store.open_disk(&digest));
        opened.await.map(Some)
    }
}
