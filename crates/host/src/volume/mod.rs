//! What is asked of volumes: made, sent, changed, removed, given to machines.
//!
//! Which machine has which volume is in the machines' records alone; the rules are in [`edits`].

mod attach;
mod change;
mod create;
mod disks;
mod edits;
mod follow;
mod job;
mod live;
mod upload;

use std::sync::Arc;

use api_types::Volume;

pub(crate) use edits::check_disks;
pub use upload::Piece;

use crate::failure::Failure;
use crate::host::Host;
use crate::registry::RegistryError;
use crate::volume_store::{describe, find};

impl Host {
    /// All volumes, by name.
    pub async fn volumes(&self) -> Result<Vec<Volume>, Failure> {
        let context = Arc::clone(&self.0.context);
        let described = self.registry().change(move |change| -> Result<_, RegistryError> {
            let records = change.volumes()?.into_iter();
            records.map(|record| describe(&context, change, &record)).collect()
        });
        Ok(described.await?)
    }

    /// A volume by name or id.
    pub async fn volume(&self, name_or_id: &str) -> Result<Volume, Failure> {
        let (context, wanted) = (Arc::clone(&self.0.context), name_or_id.to_owned());
        let described = self.registry().change(move |change| -> Result<_, Failure> {
            let record = find(change, &wanted)?;
            Ok(describe(&context, change, &record)?)
        });
        described.await
    }
}
