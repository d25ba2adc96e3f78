//! Whether records, machines and volumes and what is in the stores agree.

use std::collections::BTreeSet;
use std::time::Duration;

use api_types::{ErrorCode, ImageFinding, ImageFsck};
use image_catalog::ImageState;
use images::{Examination, Finding, ImageDigest};

use crate::failure::Failure;
use crate::host::{Host, PULLS_MAX};
use crate::registry::{Change, RegistryError};

/// How long it is waited for imports to be over: what they have in a store looks like something left over.
const IMPORTS_TIMEOUT: Duration = Duration::from_secs(2);

impl Host {
    /// Compares what is recorded with what is in the stores; lengths, not bytes. Not while anything is imported.
    pub async fn fsck_images(&self) -> Result<ImageFsck, Failure> {
        let turns = u32::try_from(PULLS_MAX).unwrap_or(u32::MAX);
        let turns = tokio::time::timeout(IMPORTS_TIMEOUT, self.0.pulls.acquire_many(turns)).await;
        let Ok(Ok(_nobody_imports)) = turns else {
            let text = "images are being imported; look again when that is done, or call it off";
            return Err(Failure::new(ErrorCode::InUse, text));
        };
        // Nothing goes meanwhile either.
        let _images_stay = self.0.images.read().await;
        let referenced = self
            .registry()
            .change(|change| -> Result<_, RegistryError> { change.referenced_digests() });
        let referenced = referenced.await?;
        let stores = self.0.context.stores.all();
        let stores: Vec<_> = stores
            .filter(|store| store.check_available().is_ok())
            .cloned()
            .collect();
        let found = self.blocking(move |_| {
            let how = Examination {
                referenced: Some(referenced.clone()),
                read_all: false,
            };
            let mut found = Vec::new();
            for store in &stores {
                for finding in store.fsck(&how, &|| false)? {
                    // One store that has it is enough.
                    let elsewhere = matches!(&finding, Finding::Missing { digest }
                        if stores.iter().any(|store| store.get(digest).is_ok()));
                    if !elsewhere {
                        found.push((store.name().to_string(), finding));
                    }
                }
            }
            Ok(found)
        });
        let findings = found.await?.into_iter();
        Ok(ImageFsck {
            findings: findings.map(|(store, finding)| shown(store, &finding)).collect(),
        })
    }
}

impl Change<'_> {
    /// What records, machines and volumes refer to.
    pub(crate) fn referenced_digests(&self) -> Result<BTreeSet<ImageDigest>, RegistryError> {
        let images = self.images()?.into_iter();
        let images = images.filter(|row| row.state.state != ImageState::Deleting);
        let images = images.filter_map(|row| row.digest);
        let alone = |vm: &api_types::Vm| vm.status.root_disk.as_ref().is_some_and(|root| root.stands_alone);
        let machines = self.vms()?.into_iter().filter(|vm| !alone(vm));
        let machines = machines.filter_map(|vm| vm.image_digest);
        let volumes = self.volumes()?.into_iter();
        let volumes = volumes.filter(crate::registry::VolumeRecord::shares_image);
        let volumes = volumes.filter_map(|volume| volume.image);
        let snapshots = self.snapshots()?.into_iter();
        let snapshots = snapshots.filter_map(|row| row.snapshot.image_digest);
        let all = images.chain(machines).chain(volumes).chain(snapshots);
        Ok(all.filter_map(|digest| digest.parse().ok()).collect())
    }
}

fn shown(store: String, finding: &Finding) -> ImageFinding {
    let (subject, message) = match finding {
        Finding::Stray { name } => (name.clone(), "is no image; look at it, and move it away".to_owned()),
        Finding::Damaged { digest, problem } => (digest.to_string(), format!("is damaged: {problem}")),
        Finding::Extra { digest, name } => (
            digest.to_string(),
            format!("has a file beside it that is not its own: {name}"),
        ),
        Finding::Missing { digest } => {
            let text = "is referred to and in no store that can be read: mount what is missing, or import it again";
            (digest.to_string(), text.to_owned())
        }
        Finding::Unreferenced { digest } => {
            let text = "has no record; the next start of the daemon makes one";
            (digest.to_string(), text.to_owned())
        }
        Finding::Beginning { name, bytes, age_s } => (
            name.clone(),
            format!(
                "is the beginning of an image, {bytes} bytes, last gone on with {} hours ago; the next import of it goes on \
                 there, and after a week it is removed",
                age_s / 3600
            ),
        ),
        Finding::Leftover { name } => (
            name.clone(),
            "was left by an import; the next one may go on with it".to_owned(),
        ),
    };
    ImageFinding {
        store,
        code: finding.code().to_owned(),
        subject,
        message,
    }
}
