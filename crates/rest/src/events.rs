//! `/v1/events`: a list, or a stream.

use std::convert::Infallible;

use api_types::{Event, EventList, ProblemBody};
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, stream};
use serde::Deserialize;
use tokio::sync::watch;
use utoipa::IntoParams;

use crate::extract::Params;
use crate::limits::KEEP_ALIVE;
use crate::problem::Problem;
use crate::shared::Shared;

/// Where to begin.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct EventParams {
    /// Number of the last event that is known. Default: 0 for the list, the newest for the stream.
    #[serde(default)]
    after: Option<u64>,
}

/// What happened, oldest first, at most a thousand events. With `Accept: text/event-stream` a stream that goes on with what
/// happens; `Last-Event-ID` replays what was missed.
#[utoipa::path(get, path = "/v1/events", tag = "events",
    params(EventParams, ("Last-Event-ID" = Option<u64>, Header, description = "Goes before `after`, in streams")),
    responses((status = 200, content((EventList = "application/json"), (Event = "text/event-stream"))),
        (status = 400, body = ProblemBody)))]
pub(crate) async fn read(
    State(shared): State<Shared>,
    Params(params): Params<EventParams>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    if !accept.is_some_and(|text| text.contains("text/event-stream")) {
        let items = shared.host.events_after(params.after.unwrap_or(0)).await?;
        return Ok(Json(EventList { items }).into_response());
    }
    let after = match headers.get("last-event-id") {
        Some(value) => Some(parse(value.to_str().unwrap_or_default())?),
        None => params.after,
    };
    let newest = shared.host.newest_event();
    let after = after.unwrap_or_else(|| *newest.borrow());
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    Ok(Sse::new(follow(shared, newest, after))
        .keep_alive(keep_alive)
        .into_response())
}

fn parse(text: &str) -> Result<u64, Problem> {
    text.parse()
        .map_err(|_| Problem::invalid(format!("Last-Event-ID: {text:?} is no number of an event")))
}

struct Following {
    shared: Shared,
    newest: watch::Receiver<u64>,
    after: u64,
    pending: std::vec::IntoIter<Event>,
}

fn follow(
    shared: Shared,
    newest: watch::Receiver<u64>,
    after: u64,
) -> impl Stream<Item = Result<sse::Event, Infallible>> {
    let following = Following {
        shared,
        newest,
        after,
        pending: Vec::new().into_iter(),
    };
    stream::unfold(following, |mut following| async move {
        let event = following.next().await?;
        let message = sse::Event::default().id(event.id.to_string()).json_data(&event).ok()?;
        Some((Ok(message), following))
    })
}

impl Following {
    /// The next event; `None` when the daemon ends.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.pending.next() {
                self.after = event.id;
                return Some(event);
            }
            self.newest.borrow_and_update();
            let events = self.shared.host.events_after(self.after).await.ok()?;
            if events.is_empty() {
                tokio::select! {
                    changed = self.newest.changed() => changed.ok()?,
                    () = self.shared.closing.begun() => return None,
                }
            }
            self.pending = events.into_iter();
        }
    }
}
