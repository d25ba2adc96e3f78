//! A poll of one source, and the import that follows from it.

use api_types::{ErrorCode, ImageImport, ImageSums, ImportOptions, OperationPhase};
use boot_sources::{BootSource, FailureKind, Finding, Place, STORE_DEFAULT, SourceDigest, SourceRef, Step};
use image_catalog::ImageState;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::catalogue::intake::{self, Intake, IntakeError};
use crate::catalogue::{Ended, label, plain_record};
use crate::failure::Failure;
use crate::host::Host;
use crate::registry::{Change, ImageRow, ImportJob, Known, RegistryError, SourceRow};

/// What came of work on a source: the id of the image its alias leads to.
type Worked = Result<Option<String>, Failure>;

impl Host {
    /// Polls or imports, tells those who wait for it, and has all sources looked at again.
    pub(super) async fn work_on(self, source: BootSource, step: Step, cancel: CancellationToken) {
        let name = source.name.to_string();
        let worked = match step {
            Step::Import(digest) => self.import_from(&source, digest, &cancel).await,
            _ => self.poll(&source, &cancel).await,
        };
        if let Err(failure) = &worked {
            tracing::warn!(source = name, error = %failure, "the boot source is not up to date");
        }
        self.0.boot.working().remove(&name);
        if !self.0.context.operations.closing() {
            self.answer(&name, worked).await;
        }
        self.0.boot.wake.notify_one();
    }

    async fn poll(&self, source: &BootSource, cancel: &CancellationToken) -> Worked {
        let Ok(_turn) = self.0.boot.polls.acquire().await else {
            return Ok(None);
        };
        let from = import_of(source);
        let asked = tokio::select! {
            asked = intake::probe(&self.0.context, &from) => asked,
            () = cancel.cancelled() => Err(IntakeError::cancelled()),
        };
        let digest = match asked {
            Ok(digest) => digest,
            Err(error) => return self.poll_failed(source, error).await,
        };
        let Ok(digest) = digest.parse::<SourceDigest>() else {
            return Err(Failure::new(
                ErrorCode::Internal,
                "the source gives no digest that can be kept",
            ));
        };
        let (host, known) = (self.clone(), source.clone());
        // One transaction in all: where many sources are polled at once, the disk's syncs are what takes the time.
        let polled = self.with_source(source, move |change, row| {
            let is_current = row.state.current().is_some_and(|current| current.digest == digest);
            let stored = if is_current {
                None
            } else {
                change.stored(&known, &digest)?
            };
            let finding = row.state.polled(&known, digest, stored.as_deref(), change.now());
            change.lead(&known, &finding)?;
            let current = row.state.current().map(|import| import.image.clone());
            let is_over = matches!(finding, Finding::Unchanged | Finding::AlreadyThere(_));
            let waiting = host.0.boot.waiting().get(&row.name).cloned();
            let ended = waiting.filter(|_| is_over).unwrap_or_default();
            for id in &ended {
                change.end_operation(*id, OperationPhase::Succeeded, Ok(current.as_deref()))?;
            }
            Ok((finding, current, ended))
        });
        let (finding, current, ended) = polled.await?;
        if let Some(waiting) = self.0.boot.waiting().get_mut(source.name.as_str()) {
            waiting.retain(|id| !ended.contains(id));
        }
        match finding {
            Finding::Import(digest) => self.import_from(source, digest, cancel).await,
            Finding::Refused(digest) => Err(Failure::new(
                ErrorCode::ImageRefused,
                format!(
                    "{digest} was refused before and is not fetched again; what is wrong with it is in the source's last error"
                ),
            )),
            Finding::Unchanged | Finding::AlreadyThere(_) => Ok(current),
        }
    }

    async fn poll_failed(&self, source: &BootSource, error: IntakeError) -> Worked {
        if error.is_cancelled() {
            if !self.0.context.operations.closing() {
                self.with_source(source, |_, row| {
                    row.state.import_cancelled();
                    Ok(())
                })
                .await?;
            }
            return Err(error.failure);
        }
        let (known, code, text) = (source.clone(), error.code, error.failure.detail.clone());
        self.with_source(source, move |change, row| {
            row.state.poll_failed(&known, (code, &text), change.now());
            Ok(())
        })
        .await?;
        Err(error.failure)
    }

    /// Imports what a poll found, into a record that is made for it or that a daemon before had begun to fill.
    async fn import_from(&self, source: &BootSource, digest: SourceDigest, cancel: &CancellationToken) -> Worked {
        let known = source.clone();
        let row = self.with_source(source, move |change, _| change.begin_source_import(&known, &digest));
        let row = row.await?;
        match self.run_import(&row, cancel.clone(), None).await {
            Ended::Active => Ok(Some(row.id.to_string())),
            // The record without data goes with the next look.
            Ended::Failed(error) => Err(error.failure),
            Ended::Postponed => Err(IntakeError::cancelled().failure),
        }
    }

    /// Changes what is remembered of a source.
    async fn with_source<T: Send + 'static>(
        &self,
        source: &BootSource,
        work: impl FnOnce(&Change<'_>, &mut SourceRow) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let name = source.name.to_string();
        let done = self.registry().change(move |change| -> Result<T, Failure> {
            // A source that was deleted meanwhile is kept only as far as somebody wrote it down.
            let known = change.boot_source(&name)?;
            let mut row = known.clone().unwrap_or_else(|| SourceRow::new(&name));
            let value = work(change, &mut row)?;
            if known.is_some_and(|known| known != row) {
                change.put_boot_source(&row)?;
            }
            Ok(value)
        });
        done.await
    }

    /// Ends the operations that wait for the source.
    async fn answer(&self, name: &str, worked: Worked) {
        let waiting = self.0.boot.waiting().remove(name).unwrap_or_default();
        for id in waiting {
            let worked = worked.clone();
            let ended = self.registry().change(move |change| -> Result<(), RegistryError> {
                match &worked {
                    Ok(image) => change.end_operation(id, OperationPhase::Succeeded, Ok(image.as_deref())),
                    Err(failure) => change.end_operation(id, OperationPhase::Failed, Err(failure)),
                }
            });
            if let Err(error) = ended.await {
                let error = crate::failure::chain(&error);
                tracing::warn!(error, "the end of an operation can not be noted");
            }
        }
    }
}

impl Change<'_> {
    /// Id of the image that came from a source before, into the same store and with the same proof asked for, when it called `digest`
    /// what it has. Of what came from elsewhere, the import says whether it can be had without fetching it: other things may have
    /// been proved of it, and it may be larger.
    fn stored(&self, source: &BootSource, digest: &SourceDigest) -> Result<Option<String>, RegistryError> {
        let from = import_of(source);
        let is_it = |row: &&ImageRow| {
            let is_own = row.boot_source.as_deref() == Some(source.name.as_str());
            let is_same = row.import.as_ref().is_some_and(|job| job.from == from);
            is_own && is_same && row.state.state == ImageState::Active
        };
        let rows = self.images_from(&digest.to_string())?;
        Ok(rows.iter().find(is_it).map(|row| row.id.to_string()))
    }

    /// The alias follows what a poll found to be there.
    fn lead(&self, source: &BootSource, finding: &Finding) -> Result<(), RegistryError> {
        match finding {
            Finding::AlreadyThere(import) => self.lead_alias(source.managed.as_str(), &import.image),
            _ => Ok(()),
        }
    }

    /// The end of an import into an image of a boot source, as the source remembers it; the alias follows.
    pub(crate) fn note_source_import(
        &self,
        image: &ImageRow,
        taken: Result<&Intake, &IntakeError>,
    ) -> Result<(), Failure> {
        let Some(mut row) = image
            .boot_source
            .as_deref()
            .map_or(Ok(None), |name| self.boot_source(name))?
        else {
            return Ok(());
        };
        let id = image.id.to_string();
        match taken {
            Ok(intake) => {
                let digest = intake.origin.parse::<SourceDigest>();
                let digest = digest.map_err(|error| Failure::of(ErrorCode::Internal, &error))?;
                if let Some(place) = image.import.as_ref().and_then(|job| place_of(&job.from)) {
                    row.state.imported(digest, id.clone(), place, self.now());
                }
                if let Some(source) = row.known.as_ref().and_then(Known::source) {
                    self.lead_alias(source.managed.as_str(), &id)?;
                }
            }
            Err(error) if error.is_cancelled() => row.state.import_cancelled(),
            Err(error) => {
                let kind = if error.is_refusal {
                    FailureKind::Refused
                } else {
                    FailureKind::Transient
                };
                row.state
                    .import_failed(kind, (error.code, &error.failure.detail), self.now());
            }
        }
        Ok(self.put_boot_source(&row)?)
    }

    /// The record to import into: one that is being filled already, or a new one.
    fn begin_source_import(&self, source: &BootSource, digest: &SourceDigest) -> Result<ImageRow, Failure> {
        let most = source.max_size.map(spec::ByteSize::bytes);
        let begun = self.images()?.into_iter().find(|row| {
            let is_its = row.boot_source.as_deref() == Some(source.name.as_str());
            // Of what is asked for now: what is filled from where it was before goes.
            let is_wanted = |job: &ImportJob| job.from == import_of(source) && job.max_disk_bytes == most;
            let is_from_there = row.import.as_ref().is_some_and(is_wanted);
            is_its && is_from_there && row.state.state == ImageState::Importing
        });
        if let Some(row) = begun {
            return Ok(row);
        }
        let mut row = self.source_image(source, digest)?;
        self.insert_image(&row)?;
        self.begin_import(&mut row, import_of(source), most)?;
        Ok(row)
    }

    /// A record for what a source has: called by the alias and the beginning of the digest.
    fn source_image(&self, source: &BootSource, digest: &SourceDigest) -> Result<ImageRow, Failure> {
        let text = digest.to_string();
        let hex = text.rsplit(':').next().unwrap_or_default();
        let short: String = label(hex).chars().take(12).collect();
        let stem = format!("{}-{short}", label(source.managed.as_str()));
        let name = self.free_image_name(&stem, &text)?;
        let record = name.and_then(|name| plain_record(&name, &source.description));
        let record = record.ok_or_else(|| Failure::new(ErrorCode::Internal, "no name is left for the image"))?;
        let mut row = ImageRow::queued(record, Timestamp::now());
        row.boot_source = Some(source.name.to_string());
        Ok(row)
    }
}

/// The import that brings what a source has.
pub(super) fn import_of(source: &BootSource) -> ImageImport {
    let mut options = ImportOptions {
        stores: source.store.iter().map(ToString::to_string).collect(),
        ..ImportOptions::default()
    };
    let from = match &source.source {
        SourceRef::Registry { reference } => ImageImport::registry(reference),
        SourceRef::Url {
            url,
            checksums,
            checksums_signature,
        } => {
            options.sums = checksums.as_ref().map(|sums| ImageSums {
                url: sums.clone(),
                signature_url: checksums_signature.clone(),
                name: None,
            });
            ImageImport::web(url)
        }
        SourceRef::S3 { url } => ImageImport::s3(url),
        SourceRef::File { path } => ImageImport::file(path),
    };
    from.with(options)
}

/// Where such an import comes from and goes to; the reverse of [`import_of`].
pub(super) fn place_of(import: &ImageImport) -> Option<Place> {
    let options = import.options()?;
    let from = match import {
        ImageImport::Registry { reference, .. } => SourceRef::Registry {
            reference: reference.clone(),
        },
        ImageImport::WebDownload { url, .. } => SourceRef::Url {
            url: url.clone(),
            checksums: options.sums.as_ref().map(|sums| sums.url.clone()),
            checksums_signature: options.sums.as_ref().and_then(|sums| sums.signature_url.clone()),
        },
        ImageImport::S3 { url, .. } => SourceRef::S3 { url: url.clone() },
        ImageImport::File { path, .. } => SourceRef::File { path: path.clone() },
        ImageImport::Upload { .. } | ImageImport::Snapshot { .. } | ImageImport::Copy { .. } => return None,
    };
    let store = options.stores.first().filter(|store| *store != STORE_DEFAULT).cloned();
    Some(Place { from, store })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_import_tells_its_place() {
        for (source, store) in [
            (r#"{"registry": "r/a:1"}"#, "archive"),
            (
                r#"{"url": "https://a/b", "checksums": "https://a/S", "checksums_signature": "https://a/S.gpg"}"#,
                "archive",
            ),
            (r#"{"s3": "s3://a/b"}"#, "default"),
            (r#"{"file": "/a/b"}"#, "default"),
        ] {
            let wish = boot_sources::BootSourceWish {
                name: "a".to_owned(),
                source: Some(serde_json::from_str(source).unwrap()),
                schedule: Some("@daily".to_owned()),
                managed: Some("a".to_owned()),
                store: Some(store.to_owned()),
                ..Default::default()
            };
            let source = BootSource::check(&wish, None, boot_sources::Origin::Custom).unwrap();
            assert_eq!(place_of(&import_of(&source)), Some(source.place()));
        }
    }
}
