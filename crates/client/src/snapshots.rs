//! Snapshots of machines.

use api_types::{Snapshot, SnapshotAccepted, SnapshotList, SnapshotRestore, SnapshotRestored, SnapshotWish};

use crate::error::ClientError;
use crate::transport::{Client, segment};

fn path(snapshot: &str, verb: &str) -> String {
    format!("/v1/snapshots/{}{verb}", segment(snapshot))
}

impl Client {
    /// All snapshots, by name.
    pub async fn snapshots(&self) -> Result<Vec<Snapshot>, ClientError> {
        Ok(self.get::<SnapshotList>("/v1/snapshots").await?.items)
    }

    /// One snapshot, by name or id.
    pub async fn snapshot(&self, snapshot: &str) -> Result<Snapshot, ClientError> {
        self.get(&path(snapshot, "")).await
    }

    /// Begins to take a snapshot of a machine.
    pub async fn create_snapshot(&self, wish: &SnapshotWish) -> Result<SnapshotAccepted, ClientError> {
        self.post("/v1/snapshots", wish).await
    }

    /// Makes a machine that goes on from a snapshot.
    pub async fn restore_snapshot(
        &self,
        snapshot: &str,
        wish: &SnapshotRestore,
    ) -> Result<SnapshotRestored, ClientError> {
        self.post(&path(snapshot, "/restore"), wish).await
    }

    /// Removes a snapshot.
    pub async fn remove_snapshot(&self, snapshot: &str) -> Result<(), ClientError> {
        self.delete(&path(snapshot, "")).await
    }
}
