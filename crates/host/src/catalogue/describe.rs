//! Images as the API shows them.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use api_types::{ErrorCode, Image, ImageCondition, ImageFailure};
use image_catalog::{Abilities, Severity, Visibility, machine_hints};
use images::{ImageDigest, StoreError};

use super::find::state_word;
use super::no_image;
use crate::failure::{Failure, store_code};
use crate::host::Host;
use crate::registry::{Change, ImageRow, RegistryError};

/// Bytes in a block of `st_blocks` (stat(2)).
const STAT_BLOCK_BYTES: u64 = 512;

/// What the registry knows of an image beside its record.
struct Ties {
    references: Vec<String>,
    aliases: Vec<String>,
    used_by: Vec<String>,
    used_by_volumes: Vec<String>,
}

/// Which images are listed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageFilter {
    /// Those that are hidden, or those that are not.
    pub hidden: bool,
    /// Those of this visibility.
    pub visibility: Option<String>,
    /// Those of this owner.
    pub owner: Option<String>,
}

impl Change<'_> {
    fn ties(&self, row: &ImageRow) -> Result<Ties, RegistryError> {
        let digest = row.digest.as_deref().unwrap_or_default();
        Ok(Ties {
            references: self.references_to(digest)?,
            aliases: self.aliases_of(row.id)?,
            used_by: self.image_users(digest)?,
            used_by_volumes: self.image_volumes(digest)?,
        })
    }
}

impl Host {
    /// All images that are hidden, or all that are not, as far as they are asked for; newest first.
    pub async fn images(&self, wanted: ImageFilter) -> Result<Vec<Image>, Failure> {
        let visibility = wanted.visibility.as_deref().map(|text| {
            Visibility::of(text).ok_or_else(|| {
                let message = format!("{text:?}; take one of {}", Visibility::TEXTS.join(", "));
                Failure::refused_field("images can not be listed so", "visibility", message)
            })
        });
        let visibility = visibility.transpose()?;
        let found = self.registry().change(move |change| -> Result<_, RegistryError> {
            let rows = change.images()?.into_iter().rev();
            let rows = rows.filter(|row| {
                let record = &row.record;
                record.hidden() == wanted.hidden
                    && visibility.is_none_or(|visibility| record.visibility() == visibility)
                    && wanted
                        .owner
                        .as_deref()
                        .is_none_or(|owner| record.owner() == Some(owner))
            });
            rows.map(|row| Ok((change.ties(&row)?, row)))
                .collect::<Result<Vec<_>, _>>()
        });
        let mut images = Vec::new();
        for (ties, row) in found.await? {
            images.push(self.describe(row, ties).await?);
        }
        Ok(images)
    }

    /// An image by id, name, alias, digest, or a reference it was pulled by.
    pub async fn image(&self, wanted: &str) -> Result<Image, Failure> {
        let name = wanted.to_owned();
        let found = self.registry().change(move |change| -> Result<_, RegistryError> {
            let row = change.find_image(&name)?;
            row.map(|row| Ok((change.ties(&row)?, row))).transpose()
        });
        let (ties, row) = found.await?.ok_or_else(|| no_image(wanted))?;
        self.describe(row, ties).await
    }

    async fn describe(&self, row: ImageRow, ties: Ties) -> Result<Image, Failure> {
        let stores = match row.digest.as_deref().map(str::parse::<ImageDigest>) {
            Some(Ok(digest)) => self.having(&digest).await?,
            _ => Vec::new(),
        };
        let stores = stores.iter().map(|store| store.name().to_string());
        let sealed = match self.sealed(&row).await {
            // What is damaged is shown as far as its record goes.
            Err(failure) if failure.code == ErrorCode::DigestMismatch => None,
            other => other?,
        };
        let size_bytes = match sealed.clone() {
            Some(sealed) => Some(self.blocking(move |host| host.occupied(&sealed)).await?),
            None => None,
        };
        let record = &row.record;
        Ok(Image {
            id: row.id.to_string(),
            name: row.name().to_owned(),
            description: record.description().to_owned(),
            state: state_word(row.state.state),
            failure: row.state.failure.clone().map(|failure| ImageFailure {
                code: failure.code,
                message: failure.message,
            }),
            operation: row.operation(),
            references: ties.references,
            stores: stores.collect(),
            importing_to_stores: row.placement.importing_to_stores.clone(),
            failed_import: row.placement.failed_import.clone(),
            source_format: sealed
                .as_ref()
                .map(|sealed| sealed.disk.source_format.name().to_owned()),
            virtual_size_bytes: sealed.as_ref().map(|sealed| sealed.disk.virtual_bytes),
            size_bytes,
            has_kernel: sealed.as_ref().is_some_and(|sealed| sealed.kernel.is_some()),
            cmdline: sealed.and_then(|sealed| sealed.cmdline),
            disk_format: record.disk_format().map(|format| format.as_str().to_owned()),
            container_format: record.container_format().map(|format| format.as_str().to_owned()),
            architecture: record
                .architecture()
                .map(|architecture| architecture.as_str().to_owned()),
            min_disk_gib: record.min_disk_gib(),
            min_ram_mib: record.min_ram_mib(),
            visibility: record.visibility().as_str().to_owned(),
            protected: record.protected(),
            hidden: record.hidden(),
            owner: record.owner().map(str::to_owned),
            tags: record.tags().clone(),
            properties: record.properties().as_map().clone(),
            conditions: conditions(&row),
            aliases: ties.aliases,
            created_at: row.created_at,
            updated_at: row.updated_at,
            used_by: ties.used_by,
            used_by_volumes: ties.used_by_volumes,
            revision: row.revision,
            digest: row.digest,
            boot_source: row.boot_source,
        })
    }

    fn occupied(&self, image: &images::ImageRecord) -> Result<u64, StoreError> {
        let store = self.0.context.store_of(&image.digest);
        let kernel = image.kernel.as_ref().map_or(0, |file| file.size_bytes);
        let initrd = image.initrd.as_ref().map_or(0, |file| file.size_bytes);
        let disk = store.open_disk(&image.digest)?;
        Ok(blocks(&disk) + kernel + initrd)
    }

    /// Runs what blocks on the image store.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Failure> {
        let host = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&host)).await;
        done.map_err(|_| Failure::new(ErrorCode::Internal, "the work was lost"))?
            .map_err(|error| Failure::of(store_code(&error), &error))
    }
}

/// What it asks of machines and they can not give.
fn conditions(row: &ImageRow) -> Vec<ImageCondition> {
    let (_, conditions) = machine_hints(row.record.properties(), &Abilities::x86_64());
    let shown = conditions.into_iter().map(|condition| ImageCondition {
        code: condition.code().to_owned(),
        refused: condition.severity == Severity::Refused,
        property: condition.property,
        message: condition.message,
    });
    shown.collect()
}

fn blocks(file: &File) -> u64 {
    file.metadata()
        .map_or(0, |metadata| metadata.blocks() * STAT_BLOCK_BYTES)
}
