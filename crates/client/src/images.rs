//! Golden images.

use api_types::{Image, ImageList, ImagePull, ImagePulled, OperationId};

use crate::error::ClientError;
use crate::transport::{Client, segment};

impl Client {
    /// All images, newest first.
    pub async fn images(&self) -> Result<Vec<Image>, ClientError> {
        Ok(self.get::<ImageList>("/v1/images").await?.items)
    }

    /// One image, by digest or by a reference it was pulled by.
    pub async fn image(&self, image: &str) -> Result<Image, ClientError> {
        self.get(&format!("/v1/images/{}", segment(image))).await
    }

    /// Begins to pull `reference`; follow the operation with [`Client::wait`].
    pub async fn pull_image(&self, reference: &str) -> Result<OperationId, ClientError> {
        let pull = ImagePull {
            reference: reference.to_owned(),
        };
        Ok(self.post::<_, ImagePulled>("/v1/images", &pull).await?.operation)
    }

    /// Removes an image nobody uses.
    pub async fn remove_image(&self, image: &str) -> Result<(), ClientError> {
        self.delete(&format!("/v1/images/{}", segment(image))).await
    }
}
