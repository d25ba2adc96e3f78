//! Receiving what a volume is filled with.
//!
//! Bytes go to a file beside the volumes as they come. When the sending breaks off, what has come stays, and its length is where
//! the sender goes on. When all is there, the volume gets a job that looks at it.

use std::fmt::Display;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::Duration;

use api_types::{ErrorCode, Volume};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use spec::{OperationId, VolumeId};
use tokio::sync::mpsc;

use crate::context::Context;
use crate::failure::Failure;
use crate::host::Host;
use crate::registry::{Job, Task, VolumeRecord};
use crate::volume_store::{Files, failure, find};

/// Pieces of a body that wait to be written.
const PIECES_QUEUED: usize = 8;
/// How long a sender waits for its turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a sender may send nothing; it keeps others from their turn.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Free space is looked at whenever so many bytes were written.
const LOOK_EVERY: u64 = 16 << 20;

/// Which part of an upload a request brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// All of it; what came before is dropped.
    Whole,
    /// These bytes of it.
    Part {
        /// Number of the first byte: where the last piece ended.
        first: u64,
        /// How many bytes.
        length: u64,
        /// Length of the whole, once the sender knows. The piece that ends there is the last.
        total: Option<u64>,
    },
}

/// An upload that only this request writes to.
struct Claim {
    host: Host,
    id: VolumeId,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.host.0.volumes.uploads().remove(&self.id);
    }
}

impl Host {
    /// Receives a piece of an upload. After the last one the volume has an operation.
    pub async fn receive_volume<S, E>(
        &self,
        name_or_id: &str,
        piece: Piece,
        body: S,
    ) -> Result<(Volume, Option<OperationId>), Failure>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: Display,
    {
        let wanted = name_or_id.to_owned();
        let record = self.registry().change(move |change| find(change, &wanted)).await?;
        awaits(&record)?;
        let limit = self.0.context.config.image_max_bytes;
        let length = match piece {
            Piece::Whole => None,
            Piece::Part { first, length, .. } if first.saturating_add(length) > limit => return Err(too_large(limit)),
            Piece::Part { length, .. } => Some(length),
        };
        let claim = self.claim(&record)?;
        // Looked at again now that nobody else may send: the sender before may have sent the last piece.
        let id = record.id;
        self.registry()
            .change(move |change| awaits(&find(change, &id.to_string())?))
            .await?;
        let turn = tokio::time::timeout(TURN_TIMEOUT, self.0.volumes.senders.acquire()).await;
        let Ok(Ok(_turn)) = turn else {
            let text = "too many volumes are being sent; send this one when others are done";
            return Err(Failure::new(ErrorCode::WrongState, text));
        };
        let (sender, pieces) = mpsc::channel(PIECES_QUEUED);
        let context = Arc::clone(&self.0.context);
        // The claim goes where the writing is, so that nobody else writes before what was on its way is written.
        let writing = tokio::task::spawn_blocking(move || (write(&context, id, piece, pieces), claim));
        let sent = send(body, sender, length, limit).await;
        // Kept until it is written down that all has come.
        let (end, _claim) = writing
            .await
            .map_err(|_| Failure::new(ErrorCode::Internal, "the work was lost"))?;
        let end = end?;
        sent?;
        let complete = match piece {
            Piece::Whole => true,
            Piece::Part { total, .. } => total == Some(end),
        };
        if complete {
            self.take_upload(record.id, end).await
        } else {
            let volume = self.volume(&record.id.to_string()).await?;
            Ok((volume, None))
        }
    }

    fn claim(&self, record: &VolumeRecord) -> Result<Claim, Failure> {
        if !self.0.volumes.uploads().insert(record.id) {
            let text = format!("somebody else is sending volume {}; wait for that", record.name());
            return Err(Failure::new(ErrorCode::WrongState, text));
        }
        let (host, id) = (self.clone(), record.id);
        Ok(Claim { host, id })
    }

    /// All has come.
    async fn take_upload(&self, id: VolumeId, sent_bytes: u64) -> Result<(Volume, Option<OperationId>), Failure> {
        let operation = OperationId::random();
        let job = Job::new(operation, Task::Finish);
        let begun = self.registry().change(move |change| -> Result<_, Failure> {
            let mut record = find(change, &id.to_string())?;
            awaits(&record)?;
            record.job = Some(job);
            record.reason = Some("TakingOver".to_owned());
            record.message = None;
            record.sent_bytes = Some(sent_bytes);
            change.update_volume(&record)?;
            record.revision += 1;
            change.begin_operation(operation, job.task.kind(), record.name())?;
            let attached_to = change.attachments(&record)?;
            Ok((record, attached_to))
        });
        let (record, attached_to) = begun.await?;
        self.spawn_job(record.clone(), job);
        Ok((self.describe_volume(record, attached_to).await?, Some(operation)))
    }
}

fn awaits(record: &VolumeRecord) -> Result<(), Failure> {
    if record.awaits_upload() {
        return Ok(());
    }
    let text = format!(
        "volume {} does not wait for an upload; create one with: karat volume upload NAME FILE",
        record.name()
    );
    Err(Failure::new(ErrorCode::WrongState, text))
}

/// Hands the body on to the thread that writes it.
async fn send<S, E>(mut body: S, sender: mpsc::Sender<Bytes>, length: Option<u64>, limit: u64) -> Result<(), Failure>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: Display,
{
    let mut sent = 0;
    loop {
        let next = tokio::time::timeout(IDLE_TIMEOUT, body.next()).await;
        let Some(piece) = next.map_err(|_| idle())? else { break };
        let piece = piece.map_err(|error| {
            let text = format!("the sending broke off ({error}); what came is kept, go on from there");
            Failure::new(ErrorCode::InvalidRequest, text)
        })?;
        sent += piece.len() as u64;
        if length.is_some_and(|length| sent > length) {
            let text = "the body is longer than Content-Range says; what came up to there is kept";
            return Err(Failure::new(ErrorCode::InvalidRequest, text));
        }
        if sent > limit {
            return Err(too_large(limit));
        }
        if sender.send(piece).await.is_err() {
            // The writer failed and says why.
            return Ok(());
        }
    }
    if length.is_some_and(|length| sent < length) {
        let text = "the body is shorter than Content-Range says; what came is kept, go on from there";
        return Err(Failure::new(ErrorCode::InvalidRequest, text));
    }
    Ok(())
}

fn idle() -> Failure {
    let seconds = IDLE_TIMEOUT.as_secs();
    let text = format!("nothing came for {seconds} s; what came is kept, go on from there");
    Failure::new(ErrorCode::InvalidRequest, text)
}

fn too_large(limit: u64) -> Failure {
    let text = format!("more than {limit} bytes, the most of an image (image_max)");
    Failure::new(ErrorCode::DiskRefused, text)
}

fn elsewhere(end: u64, first: u64) -> Failure {
    let text = format!("{end} bytes are stored, so the next piece begins with byte {end}, not {first}");
    Failure::new(ErrorCode::UploadOffset, text)
}

/// Writes what comes; returns the length of what is stored then.
fn write(context: &Context, id: VolumeId, piece: Piece, mut pieces: mpsc::Receiver<Bytes>) -> Result<u64, Failure> {
    let path = Files::of(context, id).upload();
    let failed = |error: std::io::Error| failure("be written", &path, &error);
    let begins = matches!(piece, Piece::Whole | Piece::Part { first: 0, .. });
    let opened = File::options()
        .write(true)
        .create(begins)
        .truncate(false)
        .mode(0o600)
        .open(&path);
    let mut file = match (opened, piece) {
        (Err(error), Piece::Part { first, .. }) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(elsewhere(0, first));
        }
        (opened, _) => opened.map_err(failed)?,
    };
    let mut end = file.metadata().map_err(failed)?.len();
    match piece {
        Piece::Whole => {
            file.set_len(0).map_err(failed)?;
            end = 0;
        }
        Piece::Part { first, .. } if first != end => {
            return Err(elsewhere(end, first));
        }
        Piece::Part { .. } => {}
    }
    file.seek(SeekFrom::Start(end)).map_err(failed)?;
    let mut looked_at = end;
    context.check_space(0)?;
    while let Some(piece) = pieces.blocking_recv() {
        if end - looked_at >= LOOK_EVERY {
            context.check_space(0)?;
            looked_at = end;
        }
        if let Err(error) = file.write_all(&piece) {
            // What was written of this piece is not counted by anybody.
            file.set_len(end).map_err(failed)?;
            return Err(failed(error));
        }
        end += piece.len() as u64;
    }
    Ok(end)
}
