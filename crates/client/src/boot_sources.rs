//! Boot sources.

use api_types::{BootSource, BootSourceList, BootSourceWish, Operation, OperationList};

use crate::error::ClientError;
use crate::transport::{Client, segment};

fn path(source: &str, verb: &str) -> String {
    format!("/v1/boot-sources/{}{verb}", segment(source))
}

impl Client {
    /// All boot sources, and what is wrong with definitions in files.
    pub async fn boot_sources(&self) -> Result<BootSourceList, ClientError> {
        self.get("/v1/boot-sources").await
    }

    /// One boot source.
    pub async fn boot_source(&self, source: &str) -> Result<BootSource, ClientError> {
        self.get(&path(source, "")).await
    }

    /// Writes a boot source, in place of what was written of it before.
    pub async fn put_boot_source(&self, source: &str, wish: &BootSourceWish) -> Result<BootSource, ClientError> {
        self.put(&path(source, ""), wish).await
    }

    /// Changes the fields of a boot source that `wish` names.
    pub async fn edit_boot_source(&self, source: &str, wish: &BootSourceWish) -> Result<BootSource, ClientError> {
        self.patch(&path(source, ""), wish).await
    }

    /// Takes back what was written of a boot source.
    pub async fn remove_boot_source(&self, source: &str) -> Result<(), ClientError> {
        self.delete(&path(source, "")).await
    }

    /// Begins to poll all boot sources that are switched on.
    pub async fn sync_boot_sources(&self) -> Result<Vec<Operation>, ClientError> {
        let begun: OperationList = self.post("/v1/boot-sources/-/sync", &serde_json::json!({})).await?;
        Ok(begun.items)
    }

    /// Begins to poll a boot source, and to import what is new.
    pub async fn sync_boot_source(&self, source: &str) -> Result<Operation, ClientError> {
        self.post(&path(source, "/sync"), &serde_json::json!({})).await
    }
}
