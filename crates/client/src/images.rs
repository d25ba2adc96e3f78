//! Golden images.

use api_types::{
    Image, ImageAccepted, ImageCreate, ImageFsck, ImageImport, ImageImportInfo, ImageList, ImagePatch, ImagePush,
    Operation, OperationId,
};
use http_body_util::StreamBody;
use hyper::{Method, header};
use tokio::fs::File;
use tokio::io::AsyncReadExt;

use crate::error::ClientError;
use crate::transport::{Client, segment};
use crate::volumes::chunks;

fn path(image: &str, verb: &str) -> String {
    format!("/v1/images/{}{verb}", segment(image))
}

/// An image to be sent.
#[derive(Debug)]
pub struct ImageUpload {
    /// The file, at its beginning.
    pub file: File,
    /// Its length, bytes.
    pub length: u64,
    /// A digest that it must have.
    pub digest: Option<String>,
    /// The store it shall be in.
    pub store: Option<String>,
}

impl Client {
    /// All images but hidden ones, newest first.
    pub async fn images(&self) -> Result<Vec<Image>, ClientError> {
        Ok(self.get::<ImageList>("/v1/images").await?.items)
    }

    /// All images that are hidden, newest first.
    pub async fn hidden_images(&self) -> Result<Vec<Image>, ClientError> {
        Ok(self.get::<ImageList>("/v1/images?hidden=true").await?.items)
    }

    /// Images that are hidden, or those that are not, of a visibility and an owner; newest first.
    pub async fn images_that(
        &self,
        hidden: bool,
        visibility: Option<&str>,
        owner: Option<&str>,
    ) -> Result<Vec<Image>, ClientError> {
        let mut path = format!("/v1/images?hidden={hidden}");
        for (key, value) in [("visibility", visibility), ("owner", owner)] {
            if let Some(value) = value {
                path = format!("{path}&{key}={}", segment(value));
            }
        }
        Ok(self.get::<ImageList>(&path).await?.items)
    }

    /// One image, by id, name, alias, digest, or a reference it was pulled by.
    pub async fn image(&self, image: &str) -> Result<Image, ClientError> {
        self.get(&path(image, "")).await
    }

    /// Begins to pull `reference`; follow the operation with [`Client::wait`].
    pub async fn pull_image(&self, reference: &str) -> Result<OperationId, ClientError> {
        let pull = ImageCreate {
            reference: Some(reference.to_owned()),
            ..ImageCreate::default()
        };
        let accepted = self.create_image(&pull).await?;
        accepted.operation.ok_or_else(|| ClientError::Unexpected {
            what: "/v1/images".to_owned(),
            source: None,
        })
    }

    /// Makes an image record, and begins to import into it where `create` says from where.
    pub async fn create_image(&self, create: &ImageCreate) -> Result<ImageAccepted, ClientError> {
        self.post("/v1/images", create).await
    }

    /// Begins to import into a record that has no data.
    pub async fn import_image(&self, image: &str, from: &ImageImport) -> Result<ImageAccepted, ClientError> {
        self.post(&path(image, "/import"), from).await
    }

    /// Sends the data of a record that has none; `sent` is told how many bytes have been handed over. It can not be gone on with when
    /// it breaks off.
    pub async fn upload_image(
        &self,
        image: &str,
        upload: ImageUpload,
        sent: impl Fn(u64) + Send + 'static,
    ) -> Result<ImageAccepted, ClientError> {
        let ImageUpload {
            file,
            length,
            digest,
            store,
        } = upload;
        let wanted = [("digest", digest), ("store", store)].into_iter();
        let wanted = wanted.filter_map(|(key, value)| Some(format!("{key}={}", segment(&value?))));
        let query = wanted.collect::<Vec<_>>().join("&");
        let mut path = path(image, "/data");
        if !query.is_empty() {
            path = format!("{path}?{query}");
        }
        let headers = vec![(header::CONTENT_LENGTH, length.to_string())];
        let body = StreamBody::new(Box::pin(chunks(file.take(length), 0, sent)));
        self.exchange(Method::PUT, &path, headers, body).await
    }

    /// Begins to copy an image to further stores; to all that do not have it where none is named.
    pub async fn copy_image(
        &self,
        image: &str,
        stores: Vec<String>,
        allow_failure: Option<bool>,
    ) -> Result<ImageAccepted, ClientError> {
        let copy = ImageImport::Copy {
            all_stores: stores.is_empty(),
            stores,
            allow_failure,
        };
        self.import_image(image, &copy).await
    }

    /// Takes an image out of one of several stores.
    pub async fn displace_image(&self, image: &str, store: &str) -> Result<(), ClientError> {
        self.delete(&path(image, &format!("/stores/{}", segment(store)))).await
    }

    /// Changes a record.
    pub async fn edit_image(&self, image: &str, patch: &ImagePatch) -> Result<Image, ClientError> {
        self.patch(&path(image, ""), patch).await
    }

    /// Begins to compare an image's bytes with their digests.
    pub async fn verify_image(&self, image: &str) -> Result<Operation, ClientError> {
        self.post(&path(image, "/verify"), &serde_json::json!({})).await
    }

    /// Begins to publish an image as a container disk.
    pub async fn push_image(&self, image: &str, reference: &str) -> Result<Operation, ClientError> {
        let push = ImagePush {
            reference: reference.to_owned(),
        };
        self.post(&path(image, "/push"), &push).await
    }

    /// Keeps an image from being used.
    pub async fn deactivate_image(&self, image: &str) -> Result<Image, ClientError> {
        self.post(&path(image, "/deactivate"), &serde_json::json!({})).await
    }

    /// Lets an image be used again.
    pub async fn reactivate_image(&self, image: &str) -> Result<Image, ClientError> {
        self.post(&path(image, "/reactivate"), &serde_json::json!({})).await
    }

    /// What can be imported.
    pub async fn import_info(&self) -> Result<ImageImportInfo, ClientError> {
        self.get("/v1/images/import-info").await
    }

    /// Compares records with what is in the stores.
    pub async fn fsck_images(&self) -> Result<ImageFsck, ClientError> {
        self.get("/v1/images/fsck").await
    }

    /// Removes an image nobody uses.
    pub async fn remove_image(&self, image: &str) -> Result<(), ClientError> {
        self.delete(&path(image, "")).await
    }
}
