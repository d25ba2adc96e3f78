//! Snapshots of machines: memory, devices and disk at one instant.
//!
//! ```text
//!   saved/ID/memory, state      as the machine process saved them
//!   saved/ID/frozen-*           the disk of the machine at that instant: hard links to files that nobody writes any more
//!   saved/ID/boot/              kernel, ramdisk and command line that were kept with the machine, likewise
//!   saved/ID.unfinished         it is being made or removed: what is there is of no use without a record that says it is ready
//! ```
//! A machine that goes on from a snapshot has links of its own to all of this: either can be removed without the other.

mod restore;
mod take;

use std::sync::Arc;

use api_types::{ErrorCode, EventReason, Snapshot};

use crate::failure::Failure;
use crate::host::Host;
use crate::machine::Action;
use crate::registry::{About, Change, SnapshotRow};
use crate::snapshot_files;

impl Host {
    /// All snapshots, by name.
    #[expect(
        clippy::redundant_closure_for_method_calls,
        reason = "the method itself is not general in its lifetime"
    )]
    pub async fn snapshots(&self) -> Result<Vec<Snapshot>, Failure> {
        let rows = self.registry().change(|change| change.snapshots()).await?;
        self.describe_snapshots(rows).await
    }

    /// A snapshot by name or id.
    pub async fn snapshot(&self, name_or_id: &str) -> Result<Snapshot, Failure> {
        let wanted = name_or_id.to_owned();
        let row = self.registry().change(move |change| find(change, &wanted)).await?;
        self.describe_snapshots(vec![row]).await?.pop().ok_or_else(lost)
    }

    /// Removes a snapshot. Machines that went on from it, or are to, have what they need of it.
    pub async fn delete_snapshot(&self, name_or_id: &str, revision: Option<u64>) -> Result<(), Failure> {
        let (wanted, context) = (name_or_id.to_owned(), Arc::clone(&self.0.context));
        let deleted = self.registry().change(move |change| -> Result<_, Failure> {
            let row = ready(change, &wanted)?;
            let now = row.snapshot.revision;
            if revision.is_some_and(|revision| revision != now) {
                let text = format!("snapshot {} has revision {now} by now: read it again", row.name());
                return Err(Failure::new(ErrorCode::RevisionMismatch, text));
            }
            snapshot_files::mark(&context, row.id())?;
            change.delete_snapshot(row.id())?;
            let text = format!("snapshot {} was deleted", row.name());
            change.event(&About::Snapshot(row.id(), row.name()), EventReason::Deleted, &text)?;
            Ok(row.id())
        });
        let id = deleted.await?;
        let context = Arc::clone(&self.0.context);
        let removed = tokio::task::spawn_blocking(move || snapshot_files::remove(&context, id));
        removed.await.map_err(|_| lost())?;
        // An image may have had its last use.
        self.0.boot.wake.notify_one();
        Ok(())
    }

    /// Looks at their files, while the registry is free for others.
    async fn describe_snapshots(&self, rows: Vec<SnapshotRow>) -> Result<Vec<Snapshot>, Failure> {
        let context = Arc::clone(&self.0.context);
        let described = tokio::task::spawn_blocking(move || {
            let described = rows.into_iter().map(|row| Snapshot {
                usage_bytes: snapshot_files::usage_bytes(&context, row.id()),
                ..row.snapshot
            });
            described.collect()
        });
        described.await.map_err(|_| lost())
    }

    /// Lets machines go on that an earlier daemon held still for the sake of a snapshot.
    pub(crate) fn let_go_on(&self, cut_off: Vec<SnapshotRow>) {
        for row in cut_off.into_iter().filter(|row| row.ran) {
            let host = self.clone();
            tokio::spawn(async move {
                let vm = row.snapshot.vm_id.to_string();
                let Ok((_, machine)) = host.machine(&vm).await else {
                    return;
                };
                match machine.act(None, Action::Resume).await {
                    Ok(()) => tracing::info!(%vm, "a machine goes on whose snapshot was cut off"),
                    // It was not paused yet, or goes on already, or has ended.
                    Err(failure) if failure.code == ErrorCode::WrongState => {}
                    Err(failure) => {
                        tracing::error!(%vm, error = %failure, "a machine whose snapshot was cut off stands still");
                    }
                }
            });
        }
    }
}

fn find(change: &Change<'_>, name_or_id: &str) -> Result<SnapshotRow, Failure> {
    let found = change.snapshot(name_or_id)?;
    found.ok_or_else(|| {
        let text = format!("no snapshot {name_or_id:?} on this host; karat snapshot ls has all");
        Failure::new(ErrorCode::NotFound, text)
    })
}

fn ready(change: &Change<'_>, name_or_id: &str) -> Result<SnapshotRow, Failure> {
    let row = find(change, name_or_id)?;
    if row.is_ready() {
        return Ok(row);
    }
    let text = format!(
        "snapshot {} is being taken still: wait for its operation, or cancel that",
        row.name()
    );
    Err(Failure::new(ErrorCode::WrongState, text))
}

fn lost() -> Failure {
    Failure::new(ErrorCode::Internal, "the work was lost")
}
