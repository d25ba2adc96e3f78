//! Volumes.

use std::io::SeekFrom;

use api_types::{
    Volume, VolumeAccepted, VolumeCheckRequest, VolumeConvert, VolumeList, VolumeMeasure, VolumeMeasureRequest,
    VolumeResize, VolumeWish,
};
use futures_util::{Stream, stream};
use http_body_util::StreamBody;
use hyper::body::{Bytes, Frame};
use hyper::{Method, header};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, Take};

use crate::error::ClientError;
use crate::transport::{Client, segment};

/// Bytes of a file that are sent at a time.
const CHUNK_BYTES: usize = 256 << 10;

fn path(volume: &str, verb: &str) -> String {
    format!("/v1/volumes/{}{verb}", segment(volume))
}

/// A file that is sent as the contents of a volume.
#[derive(Debug)]
pub struct Upload {
    /// The file.
    pub file: File,
    /// Its length, bytes.
    pub length: u64,
    /// Where to begin: what the volume has received already.
    pub first: u64,
}

impl Client {
    /// All volumes, by name.
    pub async fn volumes(&self) -> Result<Vec<Volume>, ClientError> {
        Ok(self.get::<VolumeList>("/v1/volumes").await?.items)
    }

    /// One volume, by name or id.
    pub async fn volume(&self, volume: &str) -> Result<Volume, ClientError> {
        self.get(&path(volume, "")).await
    }

    /// Begins to make a volume; one that is to be uploaded has no operation yet.
    pub async fn create_volume(&self, wish: &VolumeWish) -> Result<VolumeAccepted, ClientError> {
        self.post("/v1/volumes", wish).await
    }

    /// Removes a volume no machine has.
    pub async fn remove_volume(&self, volume: &str) -> Result<(), ClientError> {
        self.delete(&path(volume, "")).await
    }

    /// Begins to make a volume larger.
    pub async fn resize_volume(&self, volume: &str, resize: &VolumeResize) -> Result<VolumeAccepted, ClientError> {
        self.post(&path(volume, "/resize"), resize).await
    }

    /// Begins to check a volume; what was found is in the volume afterwards.
    pub async fn check_volume(&self, volume: &str, check: &VolumeCheckRequest) -> Result<VolumeAccepted, ClientError> {
        self.post(&path(volume, "/check"), check).await
    }

    /// Begins to copy a volume into a new one of another form.
    pub async fn convert_volume(&self, volume: &str, convert: &VolumeConvert) -> Result<VolumeAccepted, ClientError> {
        self.post(&path(volume, "/convert"), convert).await
    }

    /// Begins to write the newest file of a volume into the one below it.
    pub async fn commit_volume(&self, volume: &str) -> Result<VolumeAccepted, ClientError> {
        self.post(&path(volume, "/commit"), &()).await
    }

    /// Begins to make a volume stand alone.
    pub async fn rebase_volume(&self, volume: &str) -> Result<VolumeAccepted, ClientError> {
        self.post(&path(volume, "/rebase"), &()).await
    }

    /// How large the file of a copy of a volume would be.
    pub async fn measure_volume(
        &self,
        volume: &str,
        wanted: &VolumeMeasureRequest,
    ) -> Result<VolumeMeasure, ClientError> {
        self.post(&path(volume, "/measure"), wanted).await
    }

    /// Sends what a volume is filled with; `sent` is told how many bytes of the whole have been handed over. When it breaks off,
    /// [`Volume::upload`] tells where to go on.
    pub async fn upload_volume(
        &self,
        volume: &str,
        upload: Upload,
        sent: impl Fn(u64) + Send + 'static,
    ) -> Result<VolumeAccepted, ClientError> {
        let Upload {
            mut file,
            length,
            first,
        } = upload;
        let broken = |error: std::io::Error| ClientError::Broken(error.into());
        file.seek(SeekFrom::Start(first)).await.map_err(broken)?;
        let left = length.saturating_sub(first);
        let mut headers = vec![(header::CONTENT_LENGTH, left.to_string())];
        match left {
            0 => headers.push((header::CONTENT_RANGE, format!("bytes */{length}"))),
            _ if first == 0 => {}
            _ => headers.push((header::CONTENT_RANGE, format!("bytes {first}-{}/{length}", length - 1))),
        }
        let body = StreamBody::new(Box::pin(chunks(file.take(left), first, sent)));
        let path = path(volume, "/data");
        self.exchange(Method::PUT, &path, headers, body).await
    }
}

/// The file as frames of a body.
pub(crate) fn chunks(
    file: Take<File>,
    first: u64,
    sent: impl Fn(u64) + Send + 'static,
) -> impl Stream<Item = Result<Frame<Bytes>, std::io::Error>> {
    stream::try_unfold((file, first, sent), |(mut file, done, sent)| async move {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        (&mut file).take(CHUNK_BYTES as u64).read_to_end(&mut chunk).await?;
        if chunk.is_empty() {
            return Ok(None);
        }
        let done = done + chunk.len() as u64;
        sent(done);
        Ok(Some((Frame::data(Bytes::from(chunk)), (file, done, sent))))
    })
}
