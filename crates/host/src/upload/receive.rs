//! A piece of an upload comes in.

use std::fmt::Display;
use std::fs::File;
use std::io::Write;
use std::time::Duration;

use api_types::{ErrorCode, ImageImport, Upload};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::files::failure;
use crate::context::Context;
use crate::failure::Failure;
use crate::host::Host;

/// Pieces of a body that wait to be written.
const PIECES_QUEUED: usize = 8;
/// After how many bytes the room that is left is looked at.
const CHECK_BYTES: usize = 64 << 20;
/// How long a sender may send nothing.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long is waited for what a sender before has on its way.
const TURN_TIMEOUT: Duration = Duration::from_secs(10);

impl Host {
    /// Receives what begins at `offset` of an upload. After the last byte an operation imports it.
    pub async fn receive_upload<S, E>(&self, wanted: &str, id: &str, offset: u64, body: S) -> Result<Upload, Failure>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: Display,
    {
        self.to_be_filled(wanted).await?;
        let (row, session) = self.known_upload(wanted, id).await?;
        let sender = self.0.uploads.take_over(&session.id);
        let turn = tokio::time::timeout(TURN_TIMEOUT, std::sync::Arc::clone(&sender.turn).lock_owned()).await;
        let Ok(turn) = turn else {
            let text = "what was sent before is still being written; try again";
            return Err(Failure::new(ErrorCode::WrongState, text));
        };
        let name = session.id.clone();
        let opened = self.blocking_failure(move |host| {
            let files = host.upload_files();
            let file = files.append(&name).map_err(|error| failure("gone on with", &error))?;
            Ok((files.offset(&name), file))
        });
        let (there, file) = opened.await?;
        if there != offset {
            let text = format!("{there} bytes have come, so that it goes on there, not at {offset}");
            return Err(Failure::new(ErrorCode::UploadOffset, text));
        }
        let (sending, pieces) = mpsc::channel(PIECES_QUEUED);
        // The turn goes where the writing is, so that nobody else writes before what was on its way is written.
        let context = self.0.context.clone();
        let writing = tokio::task::spawn_blocking(move || (write(file, pieces, &context), turn));
        let sent = send(body, sending, session.length - there, &sender.stop).await;
        let (written, turn) = writing
            .await
            .map_err(|_| Failure::new(ErrorCode::Internal, "the work was lost"))?;
        written?;
        sent?;
        let upload = self.describe_upload(session.clone(), None).await?;
        if upload.offset < session.length {
            return Ok(upload);
        }
        let from = ImageImport::Upload {
            options: session.options,
        };
        let image = row.id.to_string();
        let begun = self.registry().change(move |change| -> Result<_, Failure> {
            let mut row = change
                .find_image(&image)?
                .ok_or_else(|| crate::catalogue::no_image(&image))?;
            let operation = change.begin_import(&mut row, from, None)?;
            Ok((row, operation))
        });
        let (row, operation) = begun.await?;
        // What comes in is this one, whatever else was being sent for the image.
        let (image, name) = (row.id, session.id.clone());
        let cleared = self.blocking_failure(move |host| {
            let files = host.upload_files();
            let others = files.all().into_iter();
            let others = others.filter(|other| other.image == image && other.id != name);
            others.for_each(|other| files.remove(&other.id));
            Ok(())
        });
        if let Err(failure) = cleared.await {
            tracing::warn!(error = %failure, "what else was sent for an image remains");
        }
        drop(turn);
        self.spawn_import(row);
        Ok(Upload {
            operation: Some(operation.id),
            ..upload
        })
    }
}

/// Writes what comes until nothing more does, or no more room is left than others need; it is on the disk then.
fn write(mut file: File, mut pieces: mpsc::Receiver<Bytes>, context: &Context) -> Result<(), Failure> {
    let failed = |error: std::io::Error| failure("written; what came is kept", &error);
    let mut unchecked_bytes = 0;
    while let Some(piece) = pieces.blocking_recv() {
        file.write_all(&piece).map_err(failed)?;
        unchecked_bytes += piece.len();
        if unchecked_bytes >= CHECK_BYTES {
            unchecked_bytes = 0;
            context.check_space(0)?;
        }
    }
    file.sync_data().map_err(failed)
}

/// Hands the body on, `most` bytes of it at most.
async fn send<S, E>(
    mut body: S,
    sending: mpsc::Sender<Bytes>,
    mut most: u64,
    stop: &CancellationToken,
) -> Result<(), Failure>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: Display,
{
    let broken = |text: String| Failure::new(ErrorCode::InvalidRequest, text);
    loop {
        let next = tokio::select! {
            next = tokio::time::timeout(IDLE_TIMEOUT, body.next()) => next,
            () = stop.cancelled() => {
                let text = "somebody else goes on with this upload";
                return Err(Failure::new(ErrorCode::WrongState, text));
            }
        };
        let next = next.map_err(|_| {
            let seconds = IDLE_TIMEOUT.as_secs();
            broken(format!("nothing came for {seconds} s; what came before is kept"))
        })?;
        let bytes = match next {
            None => return Ok(()),
            Some(Ok(bytes)) => bytes,
            Some(Err(error)) => return Err(broken(format!("the sending broke off ({error}); what came is kept"))),
        };
        let length = bytes.len() as u64;
        if length > most {
            return Err(broken(format!(
                "more comes than was announced, by {} bytes or more; what was announced is kept as far as it came",
                length - most
            )));
        }
        most -= length;
        if sending.send(bytes).await.is_err() {
            // The writing says why.
            return Ok(());
        }
    }
}
