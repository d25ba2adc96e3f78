//! What is asked of volumes: made, sent, changed, removed, given to machines.
//!
//! Which machine has which volume is in the machines' records alone; the rules are in [`edits`].

mod attach;
mod change;
mod create;
mod disks;
mod edits;
mod follow;
mod job;
mod live;
mod offline;
mod upload;

use std::sync::Arc;

use api_types::{ErrorCode, Volume, VolumeAttachment};

pub(crate) use disks::name_at;
pub(crate) use edits::{check_disks, position};
pub use upload::Piece;

use crate::failure::Failure;
use crate::host::Host;
use crate::registry::VolumeRecord;
use crate::volume_store::{describe, find};

impl Host {
    /// All volumes, by name.
    #[expect(
        clippy::redundant_closure_for_method_calls,
        reason = "the method itself is not general in its lifetime"
    )]
    pub async fn volumes(&self) -> Result<Vec<Volume>, Failure> {
        let attached = self.registry().change(|change| change.attached_volumes()).await?;
        self.describe_volumes(attached).await
    }

    /// A volume by name or id.
    pub async fn volume(&self, name_or_id: &str) -> Result<Volume, Failure> {
        let wanted = name_or_id.to_owned();
        let found = self.registry().change(move |change| -> Result<_, Failure> {
            let record = find(change, &wanted)?;
            let attached_to = change.attachments(&record)?;
            Ok((record, attached_to))
        });
        let (record, attached_to) = found.await?;
        self.describe_volume(record, attached_to).await
    }

    async fn describe_volume(
        &self,
        record: VolumeRecord,
        attached_to: Vec<VolumeAttachment>,
    ) -> Result<Volume, Failure> {
        let mut described = self.describe_volumes(vec![(record, attached_to)]).await?;
        described.pop().ok_or_else(lost)
    }

    /// Looks at their files, while the registry is free for others.
    async fn describe_volumes(
        &self,
        volumes: Vec<(VolumeRecord, Vec<VolumeAttachment>)>,
    ) -> Result<Vec<Volume>, Failure> {
        let context = Arc::clone(&self.0.context);
        let described = tokio::task::spawn_blocking(move || {
            let volumes = volumes.into_iter();
            volumes
                .map(|(record, attached_to)| describe(&context, &record, attached_to))
                .collect()
        });
        described.await.map_err(|_| lost())
    }
}

fn lost() -> Failure {
    Failure::new(ErrorCode::Internal, "the work was lost")
}
