//! Images that clients send: the body of a request is imported as it comes, and is nowhere kept before.

use std::fmt::Display;
use std::time::Duration;

use api_types::{ErrorCode, Image, ImageImport, ImportOptions};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::body::{Piece, Received};
use super::import::Ended;
use super::{no_image, source};
use crate::failure::Failure;
use crate::host::Host;
use crate::registry::OperationRecord;

/// Pieces of a body that wait to be imported.
const PIECES_QUEUED: usize = 8;
/// How long a sender may send nothing; it keeps others from their turn.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// How the sending ended.
enum Sent {
    /// All is on its way.
    Whole,
    /// The import ended before; it says why.
    ImportEnded,
}

impl Host {
    /// Receives the data of a record that has none. Returns when all has come; the operation tells what became of it.
    pub async fn receive_image<S, E>(
        &self,
        wanted: &str,
        options: ImportOptions,
        body: S,
    ) -> Result<(Image, OperationRecord), Failure>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: Display,
    {
        let from = ImageImport::Upload { options };
        source::check(&self.0.context, &from)?;
        let name = wanted.to_owned();
        let begun = self.registry().change(move |change| -> Result<_, Failure> {
            let mut row = change.find_image(&name)?.ok_or_else(|| no_image(&name))?;
            let operation = change.begin_import(&mut row, from, None)?;
            Ok((row, operation))
        });
        let (row, operation) = begun.await?;
        let id = row.id.to_string();
        let (sender, pieces) = mpsc::channel(PIECES_QUEUED);
        let received = Received::new(pieces);
        let cancel = CancellationToken::new();
        let (host, stop) = (self.clone(), cancel.clone());
        let import = tokio::spawn(async move { host.run_import(&row, stop, Some(received)).await });
        match send(body, sender, &cancel).await {
            Ok(Sent::Whole) => Ok((self.image(&id).await?, operation)),
            Ok(Sent::ImportEnded) => match import.await {
                Ok(Ended::Failed(error)) => Err(error.failure),
                Ok(Ended::Active) => Ok((self.image(&id).await?, operation)),
                Ok(Ended::Postponed) | Err(_) => Err(Failure::new(
                    ErrorCode::Cancelled,
                    "the import was called off; send it again",
                )),
            },
            Err(failure) => {
                // Whoever asks again finds that it has failed.
                let _ = import.await;
                Err(failure)
            }
        }
    }
}

/// Hands the body on to the import.
async fn send<S, E>(mut body: S, sender: mpsc::Sender<Piece>, cancel: &CancellationToken) -> Result<Sent, Failure>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: Display,
{
    let broken = |text: String| Failure::new(ErrorCode::InvalidRequest, text);
    loop {
        let next = tokio::select! {
            next = tokio::time::timeout(IDLE_TIMEOUT, body.next()) => next,
            () = cancel.cancelled() => return Ok(Sent::ImportEnded),
        };
        let next = next.map_err(|_| {
            let seconds = IDLE_TIMEOUT.as_secs();
            broken(format!(
                "nothing came for {seconds} s, so nothing was kept; send it again"
            ))
        })?;
        let piece = match next {
            Some(Ok(bytes)) => Piece::Bytes(bytes),
            Some(Err(error)) => {
                let text = format!("the sending broke off ({error}), so nothing was kept; send it again");
                return Err(broken(text));
            }
            None => Piece::End,
        };
        let is_last = matches!(piece, Piece::End);
        let sent = tokio::select! {
            sent = sender.send(piece) => sent.is_ok(),
            () = cancel.cancelled() => false,
        };
        match (sent, is_last) {
            (false, _) => return Ok(Sent::ImportEnded),
            (true, true) => return Ok(Sent::Whole),
            (true, false) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_that_breaks_off_is_told_apart_from_one_that_ends() {
        let cancel = CancellationToken::new();
        let (sender, mut pieces) = mpsc::channel(8);
        let body = futures_util::stream::iter([Ok(Bytes::from_static(b"x")), Err("reset")]);
        let failure = send(body, sender, &cancel).await.err().unwrap();
        assert_eq!(failure.code, ErrorCode::InvalidRequest);
        assert!(matches!(pieces.recv().await, Some(Piece::Bytes(_))));
        assert!(pieces.recv().await.is_none());
        let (sender, mut pieces) = mpsc::channel(8);
        let body = futures_util::stream::iter([Ok::<_, String>(Bytes::from_static(b"x"))]);
        assert!(matches!(send(body, sender, &cancel).await, Ok(Sent::Whole)));
        assert!(matches!(pieces.recv().await, Some(Piece::Bytes(_))));
        assert!(matches!(pieces.recv().await, Some(Piece::End)));
    }
}
