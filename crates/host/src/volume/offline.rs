//! Asking for changes of a volume's files while no machine runs with it.

use std::sync::Arc;

use api_types::{ErrorCode, Volume, VolumeMeasure, VolumeMeasureRequest, VolumeSource, VolumeWish};
use spec::{OperationId, Problems};

use crate::failure::Failure;
use crate::host::Host;
use crate::registry::Task;
use crate::volume_store::{self, check_wish, find, idle, not_running, ready};

impl Host {
    /// Begins to make a volume stand alone: it shares no blocks with an image any more, and is one file.
    pub async fn rebase_volume(
        &self,
        name_or_id: &str,
        revision: Option<u64>,
    ) -> Result<(Volume, OperationId), Failure> {
        self.check_space(0).await?;
        self.begin(name_or_id, revision, |change, record| {
            not_running(change, record, true)?;
            if record.files().len() < 2 && !record.shares_image() {
                let text = format!("volume {} stands alone already", record.name());
                return Err(Failure::new(ErrorCode::WrongState, text));
            }
            Ok(Task::Rebase)
        })
        .await
    }

    /// Begins to write the newest file of a volume into the one below it.
    pub async fn commit_volume(
        &self,
        name_or_id: &str,
        revision: Option<u64>,
    ) -> Result<(Volume, OperationId), Failure> {
        self.check_space(0).await?;
        self.begin(name_or_id, revision, |change, record| {
            not_running(change, record, true)?;
            if record.files().len() < 2 {
                let text = format!(
                    "volume {} is one file: there is none of its own below to write to",
                    record.name()
                );
                return Err(Failure::new(ErrorCode::WrongState, text));
            }
            Ok(Task::Commit)
        })
        .await
    }

    /// How large the file of a copy of a volume would be.
    pub async fn measure_volume(
        &self,
        name_or_id: &str,
        wanted: VolumeMeasureRequest,
    ) -> Result<VolumeMeasure, Failure> {
        let mut problems = Problems::new();
        check_wish(&copy_of(name_or_id, &wanted), &mut problems);
        problems
            .into_result(())
            .map_err(|problems| Failure::refused("there can be no such copy", &problems))?;
        let name = name_or_id.to_owned();
        let found = self.registry().change(move |change| -> Result<_, Failure> {
            let record = find(change, &name)?;
            ready(&record)?;
            idle(&record)?;
            not_running(change, &record, false)?;
            Ok(record)
        });
        let record = found.await?;
        let context = Arc::clone(&self.0.context);
        let measured = tokio::task::spawn_blocking(move || volume_store::measure(&context, &record, &wanted));
        measured
            .await
            .unwrap_or_else(|_| Err(Failure::new(ErrorCode::Internal, "the work was lost")))
    }
}

/// The copy that is measured, as one would ask for it.
fn copy_of(volume: &str, wanted: &VolumeMeasureRequest) -> VolumeWish {
    VolumeWish {
        name: "copy".to_owned(),
        source: VolumeSource::Volume {
            volume: volume.to_owned(),
        },
        size: None,
        format: Some(wanted.format),
        preallocation: wanted.preallocation,
        cluster_size: wanted.cluster_size,
        compressed: false,
    }
}
