//! `/v1/vms/{vm}/console` and `/v1/vms/{vm}/log`.

use api_types::ProblemBody;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use host::{Console, LogTail};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use utoipa::IntoParams;

use crate::extract::{Params, Segment};
use crate::limits::LOG_TAIL_DEFAULT;
use crate::problem::Problem;
use crate::shared::Shared;

/// Bytes read from a console at a time.
const READ_BYTES: usize = 8 << 10;
/// Longest reason in a close frame, bytes (RFC 6455 §5.5: a control frame has 125, two are the code).
const REASON_MAX: usize = 123;
/// Largest message taken from a client, bytes: what somebody pastes at once.
const MESSAGE_MAX: usize = 1 << 20;

/// How much of a log.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct TailParams {
    /// The last so many bytes. Default 65536, at most 16 MiB.
    #[serde(default)]
    tail_bytes: Option<u64>,
}

/// The serial console as a WebSocket: binary messages both ways. First comes what was printed before, then what is printed.
/// When the machine has no process, the end of its log comes and the connection is closed with a reason.
#[utoipa::path(get, path = "/v1/vms/{vm}/console", tag = "vms",
    params(("vm" = String, Path, description = "Name or id")),
    responses((status = 101, description = "The WebSocket"), (status = 400, body = ProblemBody, description = "No WebSocket was asked for"),
        (status = 404, body = ProblemBody)))]
pub(crate) async fn attach(
    State(shared): State<Shared>,
    Segment(vm): Segment,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let console = shared.host.console(&vm, LOG_TAIL_DEFAULT).await?;
    let upgrade = upgrade.map_err(|error| {
        let text = format!(
            "the console is a WebSocket (RFC 6455): {}; for plain text take /log",
            error.body_text()
        );
        Problem::invalid(text)
    })?;
    Ok(upgrade
        .max_message_size(MESSAGE_MAX)
        .on_upgrade(move |socket| converse(shared, vm, socket, console)))
}

/// The end of the console log, as the guest printed it.
#[utoipa::path(get, path = "/v1/vms/{vm}/log", tag = "vms",
    params(("vm" = String, Path, description = "Name or id"), TailParams),
    responses((status = 200, body = String, content_type = "text/plain"), (status = 404, body = ProblemBody)))]
pub(crate) async fn log(
    State(shared): State<Shared>,
    Segment(vm): Segment,
    Params(params): Params<TailParams>,
) -> Result<impl IntoResponse, Problem> {
    let tail = shared
        .host
        .log(&vm, params.tail_bytes.unwrap_or(LOG_TAIL_DEFAULT))
        .await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], tail.bytes))
}

async fn converse(shared: Shared, vm: String, socket: WebSocket, console: Console) {
    let (mut sink, stream) = socket.split();
    let reason = match console {
        Console::Live(guest) => {
            let told = proxy(&shared, &mut sink, stream, guest).await;
            match told {
                Some(reason) => reason,
                None => state(&shared, &vm).await,
            }
        }
        Console::Ended(LogTail { bytes, state }) => {
            if !bytes.is_empty() && sink.send(Message::binary(bytes)).await.is_err() {
                return;
            }
            state
        }
    };
    let close = CloseFrame {
        code: close_code::NORMAL,
        reason: shorten(&reason).into(),
    };
    let _ = sink.send(Message::Close(Some(close))).await; // The client may have gone.
}

/// Carries bytes both ways until one side ends; returns why, if it is known.
async fn proxy(
    shared: &Shared,
    sink: &mut SplitSink<WebSocket, Message>,
    stream: SplitStream<WebSocket>,
    guest: UnixStream,
) -> Option<String> {
    let (printed, typed) = guest.into_split();
    tokio::select! {
        () = print(printed, sink) => None,
        () = r#type(stream, typed) => Some("detached".to_owned()),
        () = shared.closing.begun() => Some("the daemon is being restarted; attach again".to_owned()),
    }
}

async fn print(mut printed: OwnedReadHalf, sink: &mut SplitSink<WebSocket, Message>) {
    let mut bytes = vec![0; READ_BYTES];
    while let Ok(length) = printed.read(&mut bytes).await {
        let Some(piece) = bytes.get(..length).filter(|piece| !piece.is_empty()) else {
            return;
        };
        if sink.send(Message::binary(piece.to_vec())).await.is_err() {
            return;
        }
    }
}

async fn r#type(mut stream: SplitStream<WebSocket>, mut typed: OwnedWriteHalf) {
    while let Some(Ok(message)) = stream.next().await {
        let bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => text.into(),
            Message::Ping(_) | Message::Pong(_) => continue,
            Message::Close(_) => return,
        };
        if typed.write_all(&bytes).await.is_err() {
            // The guest is gone; what it printed last is still on its way.
            std::future::pending::<()>().await;
        }
    }
}

/// Why a console ended: the machine's new phase, once its end was noted.
async fn state(shared: &Shared, vm: &str) -> String {
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    match shared.host.log(vm, 0).await {
        Ok(tail) => tail.state,
        Err(_) => "the machine was deleted".to_owned(),
    }
}

fn shorten(reason: &str) -> &str {
    let end = reason
        .char_indices()
        .map(|(at, c)| at + c.len_utf8())
        .take_while(|end| *end <= REASON_MAX)
        .last();
    reason.get(..end.unwrap_or(0)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_fit_a_close_frame_and_stay_text() {
        assert_eq!(shorten("short"), "short");
        let long = "ä".repeat(100);
        assert_eq!(shorten(&long), "ä".repeat(61));
    }
}
