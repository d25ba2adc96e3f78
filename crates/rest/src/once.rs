//! `Idempotency-Key`: a request that changes something is carried out once, however often it is sent
//! (draft-ietf-httpapi-idempotency-key-header).

use api_types::ErrorCode;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use host::{Failure, FirstTime, KeptAnswer, Once};

use crate::limits::BODY_MAX;
use crate::problem::Problem;
use crate::shared::Shared;

/// Its header.
const KEY: &str = "idempotency-key";
/// Headers of an answer that are given again with it.
const KEPT: [HeaderName; 3] = [header::CONTENT_TYPE, header::LOCATION, header::ETAG];
/// Tells that an answer was given before.
const REPLAYED: &str = "idempotency-replayed";

/// Wraps every handler. Requests without the header, and those that change nothing or may be repeated anyway, pass.
pub(crate) async fn keep(State(shared): State<Shared>, request: Request, next: Next) -> Result<Response, Problem> {
    let wanted = matches!(*request.method(), Method::POST | Method::PATCH);
    let Some(key) = request.headers().get(KEY).filter(|_| wanted) else {
        return Ok(next.run(request).await);
    };
    let key = key.to_str().unwrap_or_default().to_owned();
    let (head, body) = request.into_parts();
    let body = to_bytes(body, BODY_MAX).await.map_err(|error| {
        Problem::invalid(format!(
            "the body can not be read, or has more than {BODY_MAX} bytes: {error}"
        ))
    })?;
    let mut told = format!("{} {}\n", head.method, head.uri).into_bytes();
    told.extend_from_slice(&body);
    let first = match shared.host.once(&key, &told).await? {
        Once::First(first) => first,
        Once::Again(answer) => return Ok(again(answer)),
    };
    let request = Request::from_parts(head, Body::from(body));
    // On its own, so that it is carried out, and noted, when the sender goes away meanwhile.
    let carried_out = tokio::spawn(async move { note(first, next.run(request).await).await });
    carried_out
        .await
        .unwrap_or_else(|_| Err(Failure::new(ErrorCode::Internal, "the work was lost").into()))
}

/// Keeps the answer where something was changed, and passes it on.
async fn note(first: FirstTime, response: Response) -> Result<Response, Problem> {
    let status = response.status();
    if !status.is_success() {
        // Where room or means are missing nothing was done, and the sender is told to try again.
        let lacks = matches!(
            status,
            StatusCode::INSUFFICIENT_STORAGE | StatusCode::SERVICE_UNAVAILABLE
        );
        if lacks || !status.is_server_error() {
            first.refused().await?;
        }
        return Ok(response);
    }
    let (head, body) = response.into_parts();
    let body = to_bytes(body, usize::MAX)
        .await
        .map_err(|error| Failure::new(ErrorCode::Internal, format!("the answer can not be kept: {error}")))?;
    let text = |name: HeaderName| {
        let value = head.headers.get(&name)?.to_str().ok()?.to_owned();
        Some((name.as_str().to_owned(), value))
    };
    let answer = KeptAnswer {
        status: status.as_u16(),
        headers: KEPT.into_iter().filter_map(text).collect(),
        body: String::from_utf8_lossy(&body).into_owned(),
    };
    first.done(answer).await?;
    Ok(Response::from_parts(head, Body::from(body)))
}

fn again(answer: KeptAnswer) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    let mut response = (status, answer.body).into_response();
    for (name, value) in answer.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            response.headers_mut().insert(name, value);
        }
    }
    response
        .headers_mut()
        .insert(REPLAYED, HeaderValue::from_static("true"));
    response
}
