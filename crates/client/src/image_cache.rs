//! Stores of images, and the cache of those that are slow.

use api_types::{ImageCache, ImageCacheEntry, ImageCacheState, ImageStore, ImageStoreList};

use crate::error::ClientError;
use crate::transport::{Client, segment};

fn path(image: &str) -> String {
    format!("/v1/image-cache/{}", segment(image))
}

impl Client {
    /// All stores of images, the default one first.
    pub async fn image_stores(&self) -> Result<Vec<ImageStore>, ClientError> {
        Ok(self.get::<ImageStoreList>("/v1/image-stores").await?.items)
    }

    /// What is in the image cache, and what is to come.
    pub async fn image_cache(&self) -> Result<ImageCache, ClientError> {
        self.get("/v1/image-cache").await
    }

    /// Asks for the copy of an image.
    pub async fn cache_image(&self, image: &str) -> Result<ImageCacheEntry, ClientError> {
        self.put(&path(image), &serde_json::json!({})).await
    }

    /// Takes an image out of the cache, or out of the queue.
    pub async fn evict_image(&self, image: &str) -> Result<(), ClientError> {
        self.delete(&path(image)).await
    }

    /// Takes all out of the cache that nobody uses, or all out of the queue.
    pub async fn clear_image_cache(&self, state: ImageCacheState) -> Result<(), ClientError> {
        let state = match state {
            ImageCacheState::Queued => "queued",
            ImageCacheState::Fetching => "fetching",
            ImageCacheState::Cached => "cached",
        };
        self.delete(&format!("/v1/image-cache?state={state}")).await
    }

    /// Removes copies until they take no more than they may; tells what is left.
    pub async fn prune_image_cache(&self) -> Result<ImageCache, ClientError> {
        self.post("/v1/image-cache/prune", &serde_json::json!({})).await
    }
}
