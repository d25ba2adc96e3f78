//! Uploads of images that can be gone on with.

use std::io::SeekFrom;

use api_types::{Upload, UploadList, UploadWish};
use http_body_util::StreamBody;
use hyper::header::HeaderName;
use hyper::{Method, header};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::error::ClientError;
use crate::transport::{Client, segment};
use crate::volumes::chunks;

/// Number of the first byte that is sent.
const OFFSET: HeaderName = HeaderName::from_static("upload-offset");

fn path(image: &str, upload: &str) -> String {
    format!("/v1/images/{}/uploads{upload}", segment(image))
}

impl Client {
    /// Begins an upload into a record that has no data.
    pub async fn begin_upload(&self, image: &str, wish: &UploadWish) -> Result<Upload, ClientError> {
        self.post(&path(image, ""), wish).await
    }

    /// Uploads for an image, oldest first.
    pub async fn uploads(&self, image: &str) -> Result<Vec<Upload>, ClientError> {
        Ok(self.get::<UploadList>(&path(image, "")).await?.items)
    }

    /// How far an upload is; whoever sends to it is stopped.
    pub async fn upload(&self, image: &str, id: &str) -> Result<Upload, ClientError> {
        self.get(&path(image, &format!("/{}", segment(id)))).await
    }

    /// Gives an upload up.
    pub async fn remove_upload(&self, image: &str, id: &str) -> Result<(), ClientError> {
        self.delete(&path(image, &format!("/{}", segment(id)))).await
    }

    /// Sends what is missing of `file` to an upload; `sent` is told how many bytes of the whole have been handed over. When it breaks
    /// off, [`Client::upload`] tells where to go on.
    pub async fn append_upload(
        &self,
        image: &str,
        upload: &Upload,
        mut file: File,
        sent: impl Fn(u64) + Send + 'static,
    ) -> Result<Upload, ClientError> {
        let broken = |error: std::io::Error| ClientError::Broken(error.into());
        file.seek(SeekFrom::Start(upload.offset)).await.map_err(broken)?;
        let left = upload.length.saturating_sub(upload.offset);
        let headers = vec![
            (header::CONTENT_LENGTH, left.to_string()),
            (OFFSET, upload.offset.to_string()),
        ];
        let body = StreamBody::new(Box::pin(chunks(file.take(left), upload.offset, sent)));
        let path = path(image, &format!("/{}", segment(&upload.id)));
        self.exchange(Method::PATCH, &path, headers, body).await
    }
}
