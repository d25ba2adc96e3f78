//! Whether records, machines and volumes and what is in the stores agree.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use api_types::{ErrorCode, ImageFinding, ImageFsck};
use image_catalog::ImageState;
use images::{Examination, Finding, ImageDigest, Store};

use crate::failure::Failure;
use crate::host::{Host, PULLS_MAX};
use crate::placing::root_store;
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
        let default = self.0.context.store.name().to_string();
        let known = self.registry().change(move |change| -> Result<_, RegistryError> {
            Ok((change.referenced_digests()?, change.placements(&default)?))
        });
        let (referenced, placements) = known.await?;
        let mut stores = Vec::new();
        for store in self.0.context.stores.all() {
            if store.ask(Store::check_available).await.is_ok() {
                stores.push(store.clone());
            }
        }
        let found = self.blocking(move |_| {
            let how = Examination {
                referenced: Some(referenced),
                read_all: false,
            };
            let mut found = Vec::new();
            for store in &stores {
                for finding in store.fsck(&how, &|| false)? {
                    let is_elsewhere = matches!(&finding, Finding::Missing { digest }
                        if !is_to_be(digest, store, &stores, &placements));
                    if !is_elsewhere {
                        found.push((store.name().to_string(), finding));
                    }
                }
            }
            Ok(found)
        });
        let findings = found.await?.into_iter();
        let mut findings: Vec<_> = findings.map(|(store, finding)| shown(store, &finding)).collect();
        let uploads = self.unreadable_uploads().await?.into_iter();
        findings.extend(uploads.map(|(id, why)| ImageFinding {
            store: self.0.context.store.name().to_string(),
            code: "upload_unreadable".to_owned(),
            message: format!(
                "is an upload of which can not be read what was announced ({why}); what was sent is kept: put uploads/{id}.json in the \
                 state directory right, or remove it"
            ),
            subject: id,
        }));
        Ok(ImageFsck { findings })
    }
}

/// Whether an image has to be in a store: where a record has it there. Where none says in which of these stores it is, one that has it
/// is enough.
fn is_to_be(digest: &ImageDigest, store: &Store, stores: &[Store], placements: &Placements) -> bool {
    let placed = placements.get(digest);
    let is_placed = |store: &Store| placed.is_some_and(|placed| placed.contains(store.name().as_str()));
    if stores.iter().any(is_placed) {
        return is_placed(store);
    }
    stores.iter().all(|store| store.get(digest).is_err())
}

/// Stores in which images are by what is recorded.
type Placements = BTreeMap<ImageDigest, BTreeSet<String>>;

impl Change<'_> {
    fn placements(&self, default: &str) -> Result<Placements, RegistryError> {
        let mut placements = Placements::new();
        let mut place = |digest: Option<&str>, store: Option<&str>| {
            if let Some(Ok(digest)) = digest.map(str::parse::<ImageDigest>) {
                let stores = placements.entry(digest).or_default();
                stores.insert(store.unwrap_or(default).to_owned());
            }
        };
        for vm in self.vms()?.iter().filter(|vm| !is_alone(vm)) {
            place(vm.image_digest.as_deref(), root_store(&vm.status));
        }
        for volume in self.volumes()?.iter().filter(|volume| volume.shares_image()) {
            place(volume.image.as_deref(), volume.image_store.as_deref());
        }
        for row in self.images()? {
            let digest = row.digest.as_deref().map(str::parse);
            if let Some(Ok(digest)) = digest.filter(|_| row.state.state != ImageState::Deleting) {
                placements.entry(digest).or_default().extend(row.placement.stores);
            }
        }
        Ok(placements)
    }

    /// What records, machines and volumes refer to.
    pub(crate) fn referenced_digests(&self) -> Result<BTreeSet<ImageDigest>, RegistryError> {
        let images = self.images()?.into_iter();
        let images = images.filter(|row| row.state.state != ImageState::Deleting);
        let images = images.filter_map(|row| row.digest);
        let machines = self.vms()?.into_iter().filter(|vm| !is_alone(vm));
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

fn is_alone(vm: &api_types::Vm) -> bool {
    vm.status.root_disk.as_ref().is_some_and(|root| root.stands_alone)
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
            let text = "is not here, where it is by its record, or in no store that can be read: mount what is missing, copy it here \
                        from another store, or import it again";
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
