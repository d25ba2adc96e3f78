//! A machine's serial console over a WebSocket: first what was printed before, then what is printed now.

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::error::ClientError;
use crate::transport::{Client, Stream, segment};

type Socket = WebSocketStream<Box<dyn Stream>>;

/// An attached console; dropping it detaches and does nothing to the machine.
pub struct Console {
    /// What is typed.
    pub input: ConsoleInput,
    /// What is printed.
    pub output: ConsoleOutput,
}

/// The guest's keyboard.
pub struct ConsoleInput(SplitSink<Socket, Message>);

/// The guest's screen.
pub struct ConsoleOutput(SplitStream<Socket>);

/// Why nothing more is printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsoleEnd {
    /// What the daemon gave as the reason; empty if it gave none.
    pub reason: String,
}

impl Client {
    /// Attaches to a machine's console. Any number may be attached at once.
    pub async fn console(&self, vm: &str) -> Result<Console, ClientError> {
        // The plain request tells first, in words, what is wrong with the machine's name.
        self.vm(vm).await?;
        let stream = self.connect().await?;
        let url = format!("ws://karat/v1/vms/{}/console", segment(vm));
        match tokio_tungstenite::client_async(url, stream).await {
            Ok((socket, _)) => {
                let (input, output) = socket.split();
                Ok(Console {
                    input: ConsoleInput(input),
                    output: ConsoleOutput(output),
                })
            }
            Err(Error::Http(response)) => Err(refused(response.body().as_deref())),
            Err(error) => Err(ClientError::Broken(error.into())),
        }
    }
}

fn refused(body: Option<&[u8]>) -> ClientError {
    match serde_json::from_slice(body.unwrap_or_default()) {
        Ok(problem) => ClientError::Refused(problem),
        Err(error) => ClientError::Unexpected {
            what: "the console".to_owned(),
            source: Some(error.into()),
        },
    }
}

impl ConsoleInput {
    /// Types `bytes`.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        self.0
            .send(Message::binary(bytes.to_vec()))
            .await
            .map_err(|error| ClientError::Broken(error.into()))
    }

    /// Detaches.
    pub async fn close(&mut self) -> Result<(), ClientError> {
        self.0.close().await.map_err(|error| ClientError::Broken(error.into()))
    }
}

impl ConsoleOutput {
    /// The next bytes that were printed, or the end.
    pub async fn next(&mut self) -> Result<Result<Vec<u8>, ConsoleEnd>, ClientError> {
        loop {
            let reason = match self.0.next().await {
                Some(Ok(Message::Binary(bytes))) => return Ok(Ok(bytes.into())),
                Some(Ok(Message::Text(text))) => return Ok(Ok(text.as_bytes().to_vec())),
                Some(Ok(Message::Close(frame))) => frame.map(|frame| frame.reason.to_string()).unwrap_or_default(),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
                Some(Err(Error::ConnectionClosed | Error::AlreadyClosed)) | None => String::new(),
                Some(Err(error)) => return Err(ClientError::Broken(error.into())),
            };
            return Ok(Err(ConsoleEnd { reason }));
        }
    }
}
