//! Metadata definitions.

use api_types::{Metadef, MetadefList};

use crate::error::ClientError;
use crate::transport::{Client, segment};

impl Client {
    /// All namespaces, or those that apply to a kind of resource; and what is wrong with files.
    pub async fn metadefs(&self, resource_type: Option<&str>) -> Result<MetadefList, ClientError> {
        let query = resource_type.map(|name| format!("?resource_type={}", segment(name)));
        self.get(&format!("/v1/metadefs{}", query.unwrap_or_default())).await
    }

    /// One namespace.
    pub async fn metadef(&self, name: &str) -> Result<Metadef, ClientError> {
        self.get(&format!("/v1/metadefs/{}", segment(name))).await
    }
}
