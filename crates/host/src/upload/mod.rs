//! Uploads of images that can be gone on with: what has come is kept in a file, and imported when it is whole.
//!
//! ```text
//!   begun ──▶ receiving ◀──▶ broken off ──▶ aged out
//!                 │
//!                 ▼
//!               whole ──▶ import, from the file ──▶ gone
//! ```
//!
//! A daemon that was killed finds every upload again: its length is how much has come. The import of one that is whole begins
//! anew with the next daemon. A request that is not gone on with (`PUT …/data`) keeps nothing and writes nothing twice; here the
//! bytes are written once more than that, and need their space twice while they are imported.

mod files;
mod receive;

use std::time::Duration;

use api_types::{ErrorCode, ImageImport, ImportOptions, Upload, UploadWish};
use image_catalog::{ImageAction, ImageId, ImageState};
use jiff::{SignedDuration, Timestamp};
use spec::OperationId;

use crate::catalogue::{no_image, not_allowed, source};
use crate::failure::Failure;
use crate::host::Host;
use crate::registry::{ImageRow, RegistryError};
use files::Session;

/// What every upload that can not be begun is told first; the fields follow.
const REFUSED: &str = "the upload can not be begun";
/// Most uploads at a time.
const UPLOADS_MAX: usize = 64;
/// Longest label, bytes.
const LABEL_MAX: usize = 255;
/// How often uploads that nobody goes on with are looked for.
const AGE_EVERY: Duration = Duration::from_secs(300);

impl Host {
    /// Begins an upload into a record that has no data.
    pub async fn begin_upload(&self, wanted: &str, wish: UploadWish) -> Result<Upload, Failure> {
        let options = ImportOptions {
            digests: wish.digest.into_iter().collect(),
            stores: wish.store.into_iter().collect(),
            ..ImportOptions::default()
        };
        let from = ImageImport::Upload {
            options: options.clone(),
        };
        source::check(&self.0.context, &from)?;
        let most = self.0.context.config.image_max_bytes;
        if !(1..=most).contains(&wish.length) {
            let text = format!("{}; take 1 to {most} bytes", wish.length);
            return Err(Failure::refused_field(REFUSED, "length", text));
        }
        if wish
            .label
            .as_ref()
            .is_some_and(|label| label.len() > LABEL_MAX || label.chars().any(char::is_control))
        {
            let text = format!("take one line of at most {LABEL_MAX} bytes");
            return Err(Failure::refused_field(REFUSED, "label", text));
        }
        let row = self.to_be_filled(wanted).await?;
        self.drop_old_uploads().await;
        let session = Session {
            id: OperationId::random().to_string(),
            image: row.id,
            length: wish.length,
            label: wish.label,
            options,
            created_at: Timestamp::now(),
        };
        let begun = session.clone();
        self.blocking_failure(move |host| host.make_upload(&begun)).await?;
        self.describe_upload(session, None).await
    }

    /// Room is looked for, then the files are made. Blocks.
    fn make_upload(&self, session: &Session) -> Result<(), Failure> {
        // What is counted stays so until this one counts, too.
        let _alone = self.0.uploads.making();
        let files = self.upload_files();
        let known = files.all();
        if known.len() >= UPLOADS_MAX {
            let text = format!("there are {UPLOADS_MAX} uploads under way; go on with one, or delete it");
            return Err(Failure::new(ErrorCode::InUse, text));
        }
        let all_bytes = known.iter().map(|known| known.length).sum::<u64>();
        let config = &self.0.context.config.images.uploads;
        if let Some(quota) = config.quota_bytes.filter(|quota| all_bytes + session.length > *quota) {
            let text = format!(
                "uploads may take {quota} bytes (images.uploads.quota in karat.toml), of which {all_bytes} are taken: go on with others, or delete them"
            );
            return Err(Failure::new(ErrorCode::NoSpace, text));
        }
        // What others have announced and not sent yet is as good as taken.
        let sent: u64 = known.iter().map(|known| files.offset(&known.id)).sum();
        self.0
            .context
            .check_space(all_bytes.saturating_sub(sent) + session.length)?;
        files.make(session).map_err(|error| files::failure("begun", &error))
    }

    /// Uploads for an image, oldest first.
    pub async fn uploads(&self, wanted: &str) -> Result<Vec<Upload>, Failure> {
        let name = wanted.to_owned();
        let row = self.registry().change(move |change| change.find_image(&name)).await?;
        let row = row.ok_or_else(|| no_image(wanted))?;
        let id = row.id;
        let mut known = self.blocking_failure(move |host| Ok(host.upload_files().all())).await?;
        known.retain(|session| session.image == id);
        known.sort_by_key(|session| session.created_at);
        let mut uploads = Vec::new();
        for session in known {
            uploads.push(self.describe_upload(session, row.operation()).await?);
        }
        Ok(uploads)
    }

    /// One upload. Whoever sends is stopped, so that what is told stays.
    pub async fn upload(&self, wanted: &str, id: &str) -> Result<Upload, Failure> {
        let (row, session) = self.known_upload(wanted, id).await?;
        let sender = self.0.uploads.take_over(&session.id);
        let _turn = sender.turn.lock().await;
        self.describe_upload(session, row.operation()).await
    }

    /// Gives an upload up; not once all has come.
    pub async fn delete_upload(&self, wanted: &str, id: &str) -> Result<(), Failure> {
        let (row, session) = self.known_upload(wanted, id).await?;
        let sender = self.0.uploads.take_over(&session.id);
        let _turn = sender.turn.lock().await;
        if row.state.state == ImageState::Importing {
            let text = "all has come and is being imported; cancel the operation instead";
            return Err(Failure::new(ErrorCode::WrongState, text));
        }
        self.remove_uploads(vec![session.id]).await;
        Ok(())
    }

    /// The record, if data may come into it.
    async fn to_be_filled(&self, wanted: &str) -> Result<ImageRow, Failure> {
        let name = wanted.to_owned();
        let row = self.registry().change(move |change| change.find_image(&name)).await?;
        let row = row.ok_or_else(|| no_image(wanted))?;
        let allowed = row.state.state.take(ImageAction::Import);
        allowed.map_err(|error| not_allowed(row.name(), &error))?;
        Ok(row)
    }

    async fn known_upload(&self, wanted: &str, id: &str) -> Result<(ImageRow, Session), Failure> {
        let name = wanted.to_owned();
        let row = self.registry().change(move |change| change.find_image(&name)).await?;
        let row = row.ok_or_else(|| no_image(wanted))?;
        let text = id.to_owned();
        let found = self
            .blocking_failure(move |host| host.upload_files().find(&text))
            .await?;
        let session = found.filter(|session| session.image == row.id).ok_or_else(|| {
            let text = format!(
                "no upload {id:?} for image {}: it was imported, deleted, or too old",
                row.name()
            );
            Failure::new(ErrorCode::NotFound, text)
        })?;
        Ok((row, session))
    }

    async fn describe_upload(&self, session: Session, operation: Option<OperationId>) -> Result<Upload, Failure> {
        let id = session.id.clone();
        let looked = self.blocking_failure(move |host| {
            let files = host.upload_files();
            Ok((files.offset(&id), files.touched(&id).ok()))
        });
        let (offset, touched) = looked.await?;
        let kept = SignedDuration::from_hours(i64::from(self.0.context.config.images.uploads.kept_hours));
        let expires_at = touched.unwrap_or(session.created_at).checked_add(kept);
        Ok(Upload {
            id: session.id,
            image: session.image.to_string(),
            offset,
            length: session.length,
            label: session.label,
            created_at: session.created_at,
            expires_at: expires_at.unwrap_or(Timestamp::MAX),
            operation,
        })
    }

    /// Removes uploads that nobody went on with for long, and those of images that are gone; again and again until the daemon ends.
    pub(crate) async fn age_uploads(self) {
        while !self.0.context.operations.closing() {
            self.drop_old_uploads().await;
            tokio::time::sleep(AGE_EVERY).await;
        }
    }

    async fn drop_old_uploads(&self) {
        let known = self.blocking_failure(|host| {
            let files = host.upload_files();
            files.clear();
            Ok(files
                .all()
                .into_iter()
                .map(|session| (files.touched(&session.id), session))
                .collect::<Vec<_>>())
        });
        let rows = self
            .registry()
            .change(move |change| -> Result<_, RegistryError> { change.images() });
        let (Ok(known), Ok(rows)) = (known.await, rows.await) else {
            return;
        };
        let kept = SignedDuration::from_hours(i64::from(self.0.context.config.images.uploads.kept_hours));
        let is_old = |touched: &std::io::Result<Timestamp>| match touched {
            Ok(touched) => Timestamp::now().duration_since(*touched) > kept,
            // One without data can not be gone on with; any other may be read the next time.
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        };
        let goes = known.into_iter().filter(|(touched, session)| {
            let row = rows.iter().find(|row| row.id == session.image);
            row.is_none_or(|row| is_old(touched) && row.state.state != ImageState::Importing)
        });
        let ids: Vec<_> = goes.map(|(_, session)| session.id).collect();
        if !ids.is_empty() {
            tracing::info!(uploads = ids.len(), "uploads that nobody goes on with are dropped");
            self.remove_uploads(ids).await;
        }
    }

    /// What was sent for an image, if it is whole: to be imported, perhaps again.
    pub(crate) async fn whole_upload(&self, image: ImageId) -> Option<std::fs::File> {
        let found = self.blocking_failure(move |host| {
            let files = host.upload_files();
            let mut all = files.all().into_iter();
            let whole = all.find(|session| session.image == image && files.offset(&session.id) == session.length);
            Ok(whole.and_then(|session| files.open(&session.id).ok()))
        });
        found.await.ok().flatten()
    }

    /// What was sent for an image is imported, or never will be.
    pub(crate) async fn drop_whole_uploads(&self, image: ImageId) {
        let found = self.blocking_failure(move |host| {
            let files = host.upload_files();
            let mut all = files.all();
            all.retain(|session| session.image == image && files.offset(&session.id) == session.length);
            Ok(all.into_iter().map(|session| session.id).collect())
        });
        self.remove_uploads(found.await.unwrap_or_default()).await;
    }

    /// Uploads of which nobody can tell what was announced, and why.
    pub(crate) async fn unreadable_uploads(&self) -> Result<Vec<(String, String)>, Failure> {
        let found = self.blocking_failure(|host| Ok(host.upload_files().unreadable()));
        let told = found.await?.into_iter().map(|(id, error)| (id, error.to_string()));
        Ok(told.collect())
    }

    async fn blocking_failure<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let host = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&host)).await;
        done.unwrap_or_else(|_| Err(Failure::new(ErrorCode::Internal, "the work was lost")))
    }

    async fn remove_uploads(&self, ids: Vec<String>) {
        for id in &ids {
            self.0.uploads.forget(id);
        }
        let removed = self.blocking_failure(move |host| {
            ids.iter().for_each(|id| host.upload_files().remove(id));
            Ok(())
        });
        if let Err(failure) = removed.await {
            tracing::warn!(error = %failure, "uploads can not be removed; it is tried again");
        }
    }
}
