//! Asking for a new volume.

use api_types::{ErrorCode, EventReason, Volume, VolumeConvert, VolumeSource, VolumeState, VolumeWish};
use jiff::Timestamp;
use spec::{DiskFormat, OperationId, Problems, VolumeId};

use crate::failure::Failure;
use crate::host::Host;
use crate::registry::{About, Change, Job, Task, VolumeRecord};
use crate::volume_store::{check_wish, find, idle, not_running, ready};

/// What every refused volume is told first; the fields follow.
const REFUSED: &str = "the volume can not be made as it is written";

/// What a volume is made from, as far as it is outside the registry.
struct Origin {
    image: Option<(String, u64)>,
    /// Where that is, if not in the default store.
    store: Option<String>,
}

impl Host {
    /// Begins to make a volume. One that is to be uploaded waits for that; all others have an operation.
    pub async fn create_volume(&self, wish: VolumeWish) -> Result<(Volume, Option<OperationId>), Failure> {
        let mut problems = Problems::new();
        check_wish(&wish, &mut problems);
        problems
            .into_result(())
            .map_err(|problems| Failure::refused(REFUSED, &problems))?;
        // No image is removed between here and the record that needs it.
        let _image_stays = match &wish.source {
            VolumeSource::Image { image, .. } => self.hold_image(image).await?,
            _ => self.0.images.read().await,
        };
        let origin = self.origin(&wish).await?;
        self.check_space(taken_at_once(&wish)).await?;
        let inserted = self.registry().change(move |change| -> Result<_, Failure> {
            let record = draft(change, wish, origin)?;
            change.insert_volume(&record).map_err(|error| {
                if error.is_conflict() {
                    name_taken(record.name())
                } else {
                    error.into()
                }
            })?;
            let about = About::Volume(record.id, record.name());
            let from = record.image_store.as_ref();
            let from = from.map(|store| format!(" from an image in store {store}"));
            let text = format!("volume {} was created{}", record.name(), from.unwrap_or_default());
            change.event(&about, EventReason::Created, &text)?;
            if let Some(job) = record.job {
                change.begin_operation(job.operation, job.task.kind(), record.name())?;
            }
            let attached_to = change.attachments(&record)?;
            Ok((record, attached_to))
        });
        let (record, attached_to) = inserted.await?;
        if let Some(job) = record.job {
            self.spawn_job(record.clone(), job);
        }
        let volume = self.describe_volume(record, attached_to).await?;
        let operation = volume.operation;
        Ok((volume, operation))
    }

    /// Begins to copy a volume into a new one of another form.
    pub async fn convert_volume(
        &self,
        name_or_id: &str,
        wanted: VolumeConvert,
    ) -> Result<(Volume, Option<OperationId>), Failure> {
        let source = self.volume(name_or_id).await?;
        let wish = VolumeWish {
            name: wanted.name,
            source: VolumeSource::Volume { volume: source.name },
            size: None,
            format: Some(wanted.format),
            preallocation: wanted.preallocation,
            cluster_size: wanted.cluster_size,
            compressed: wanted.compressed,
        };
        self.create_volume(wish).await
    }

    async fn origin(&self, wish: &VolumeWish) -> Result<Origin, Failure> {
        let VolumeSource::Image { image, .. } = &wish.source else {
            return Ok(Origin {
                image: None,
                store: None,
            });
        };
        let found = self.usable_image(image).await?;
        let found = found.ok_or_else(|| {
            let text = format!("no image {image:?} in the store; pull it first, or look at the list of images");
            Failure::refused_field(REFUSED, "source.image", text)
        })?;
        Ok(Origin {
            image: Some((found.sealed.digest.to_string(), found.sealed.disk.virtual_bytes)),
            store: self.0.context.recorded(&found.store),
        })
    }
}

/// What is taken of the file system at once, bytes.
fn taken_at_once(wish: &VolumeWish) -> u64 {
    use api_types::Preallocation::{Falloc, Full};
    match (wish.preallocation, wish.size) {
        (Falloc | Full, Some(size)) => size.bytes(),
        _ => 0,
    }
}

/// The record of a new volume, after everything was checked that depends on others.
fn draft(change: &Change<'_>, mut wish: VolumeWish, origin: Origin) -> Result<VolumeRecord, Failure> {
    let (mut needed, mut format) = (None, wish.format);
    let mut copied_from = None;
    match &mut wish.source {
        VolumeSource::Blank {} => format = format.or(Some(DiskFormat::Raw)),
        VolumeSource::Image { .. } => {
            format = format.or(Some(DiskFormat::Qcow2));
            needed = origin.image.as_ref().map(|(_, size)| *size);
        }
        VolumeSource::Volume { volume } => {
            let source = find(change, volume).map_err(|failure| match failure.code {
                ErrorCode::NotFound => Failure::refused_field(REFUSED, "source.volume", failure.detail),
                _ => failure,
            })?;
            ready(&source)?;
            idle(&source)?;
            not_running(change, &source, false)?;
            source.name().clone_into(volume);
            copied_from = Some(source.id);
            format = format.or(source.format);
            needed = source.size_bytes;
        }
        VolumeSource::Upload { .. } => {}
    }
    let wished = wish.size.map(spec::ByteSize::bytes);
    if let (Some(wished), Some(needed)) = (wished, needed)
        && wished < needed
    {
        let text = format!("{wished} bytes; its source has {needed}, and volumes do not shrink");
        return Err(Failure::refused_field(REFUSED, "size", text));
    }
    let upload = matches!(wish.source, VolumeSource::Upload { .. });
    let now = change.now();
    Ok(VolumeRecord {
        id: VolumeId::random(),
        format,
        size_bytes: wished.or(needed),
        image: origin.image.map(|(digest, _)| digest),
        image_store: origin.store,
        copied_from,
        state: VolumeState::Creating,
        reason: Some(if upload { "AwaitingUpload" } else { "Creating" }.to_owned()),
        message: None,
        sent_bytes: None,
        changed_at: now,
        job: (!upload).then(|| Job::new(OperationId::random(), Task::Create)),
        last_check: None,
        layers: Vec::new(),
        dropped: Vec::new(),
        last_file: 0,
        created_at: Timestamp::now(),
        revision: 1,
        wish,
    })
}

pub(super) fn name_taken(name: &str) -> Failure {
    Failure::new(
        ErrorCode::NameTaken,
        format!("there is a volume {name:?} already; choose another name, or delete that one"),
    )
}
