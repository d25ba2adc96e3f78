//! Connections: accepted, checked, served, drained.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use api_types::ErrorCode;
use axum::extract::Request;
use axum::http::Method;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use host::Failure;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::limits::{CONNECTIONS_MAX, HEADER_TIMEOUT};
use crate::problem::Problem;

/// How long to wait when no connection can be accepted, as when the daemon is out of descriptors.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who connected, as the kernel tells (`SO_PEERCRED`, unix(7)).
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Process id, if it can be seen from here.
    pub pid: Option<i32>,
}

/// The daemon is ending: long answers and consoles come to their end. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Closing(CancellationToken);

impl Closing {
    /// Nothing ends yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on it does.
    pub fn begin(&self) {
        self.0.cancel();
    }

    /// Waits until it does.
    pub async fn begun(&self) {
        self.0.cancelled().await;
    }
}

/// Serves `router` on `listener` until `closing` begins, then waits for the requests under way. Peers that `may` refuses are
/// hung up on.
pub async fn serve(
    listener: UnixListener,
    router: Router,
    closing: Closing,
    may: impl Fn(Peer) -> bool + Send + Sync + 'static,
) {
    let tracker = TaskTracker::new();
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &room) => accepted,
            () = closing.begun() => break,
        };
        let Some((stream, seat)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let peer = match peer(&stream) {
            Some(peer) if may(peer) => peer,
            peer => {
                tracing::warn!(?peer, "connection refused: only root and the group of the socket may");
                continue;
            }
        };
        let router = router.clone().layer(Extension(peer));
        let connection = connection(stream, router, closing.clone(), tracker.clone());
        tracker.spawn(async move {
            connection.await;
            drop(seat);
        });
    }
    tracker.close();
    tracker.wait().await;
}

async fn accept(
    listener: &UnixListener,
    room: &Arc<Semaphore>,
) -> Option<(UnixStream, tokio::sync::OwnedSemaphorePermit)> {
    let seat = Arc::clone(room).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, seat)),
        Err(error) => {
            tracing::error!(%error, "connection can not be accepted");
            None
        }
    }
}

fn peer(stream: &UnixStream) -> Option<Peer> {
    let credentials = stream.peer_cred().ok()?;
    Some(Peer {
        uid: credentials.uid(),
        gid: credentials.gid(),
        pid: credentials.pid(),
    })
}

/// Answers what comes over `stream` until that ends.
pub(crate) async fn connection<S>(stream: S, router: Router, closing: Closing, tracker: TaskTracker)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        // What changes something is carried out on its own, so that it is not left half done when the sender goes away; it is
        // begun right here, since hyper may drop what this returns before it is ever polled.
        let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
        let answering = answer(router.clone(), request.map(axum::body::Body::new));
        let answering = if changes {
            Answering::Apart(tracker.spawn(answering))
        } else {
            Answering::Here(Box::pin(answering))
        };
        async move { Ok::<_, Infallible>(answering.response().await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = closing.begun() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

/// How a request is being answered.
enum Answering {
    /// With the connection: it ends when that does.
    Here(Pin<Box<dyn Future<Output = Response> + Send>>),
    /// Whether or not there is still a connection.
    Apart(JoinHandle<Response>),
}

impl Answering {
    async fn response(self) -> Response {
        match self {
            Self::Here(answering) => answering.await,
            Self::Apart(task) => task.await.unwrap_or_else(|_| {
                let lost = Failure::new(ErrorCode::Internal, "the work was lost");
                Problem::from(lost).into_response()
            }),
        }
    }
}

async fn answer(router: Router, request: Request) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = match router.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    tracing::debug!(%method, path, status = response.status().as_u16(), "request");
    response
}
