//! Golden images.

use api_types::{
    Image, ImageAccepted, ImageCreate, ImageImport, ImageImportInfo, ImageList, ImagePatch, Operation, OperationId,
};

use crate::error::ClientError;
use crate::transport::{Client, segment};

fn path(image: &str, verb: &str) -> String {
    format!("/v1/images/{}{verb}", segment(image))
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

    /// Changes a record.
    pub async fn edit_image(&self, image: &str, patch: &ImagePatch) -> Result<Image, ClientError> {
        self.patch(&path(image, ""), patch).await
    }

    /// Begins to compare an image's bytes with their digests.
    pub async fn verify_image(&self, image: &str) -> Result<Operation, ClientError> {
        self.post(&path(image, "/verify"), &serde_json::json!({})).await
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

    /// Removes an image nobody uses.
    pub async fn remove_image(&self, image: &str) -> Result<(), ClientError> {
        self.delete(&path(image, "")).await
    }
}
