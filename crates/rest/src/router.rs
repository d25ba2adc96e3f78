//! Paths and who answers them.

use api_types::{ErrorCode, Health};
use axum::extract::DefaultBodyLimit;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use host::{Failure, Host};

use crate::limits::BODY_MAX;
use crate::problem::Problem;
use crate::serve::Closing;
use crate::{console, events, images, openapi, operations, vms};

/// What every handler has.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) host: Host,
    pub(crate) closing: Closing,
}

/// The whole API.
pub fn router(host: Host, closing: Closing) -> Router {
    Router::new()
        .route("/healthz", get(health))
        .route("/openapi.json", get(document))
        .route("/v1/images", get(images::list).post(images::pull))
        .route("/v1/images/{image}", get(images::show).delete(images::delete))
        .route("/v1/vms", get(vms::list).post(vms::create))
        .route("/v1/vms/{vm}", get(vms::show).delete(vms::delete))
        .route("/v1/vms/{vm}/start", post(vms::start))
        .route("/v1/vms/{vm}/stop", post(vms::stop))
        .route("/v1/vms/{vm}/pause", post(vms::pause))
        .route("/v1/vms/{vm}/resume", post(vms::resume))
        .route("/v1/vms/{vm}/reset", post(vms::reset))
        .route("/v1/vms/{vm}/console", get(console::attach))
        .route("/v1/vms/{vm}/log", get(console::log))
        .route("/v1/operations", get(operations::list))
        .route("/v1/operations/{id}", get(operations::show).delete(operations::cancel))
        .route("/v1/events", get(events::read))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(Shared { host, closing })
}

/// The daemon is there.
#[utoipa::path(get, path = "/healthz", tag = "host", responses((status = 200, body = Health)))]
pub(crate) async fn health() -> Json<Health> {
    Json(Health {
        status: "ok".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "host", responses((status = 200, description = "OpenAPI 3.1")))]
pub(crate) async fn document() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], openapi::openapi_json())
}

async fn unknown_path(uri: Uri) -> Problem {
    let text = format!("there is no {:?}; /openapi.json lists every path", uri.path());
    Failure::new(ErrorCode::UnknownPath, text).into()
}

async fn wrong_method(method: Method, uri: Uri) -> Problem {
    let text = format!(
        "{method} is not possible on {:?}; /openapi.json tells what is",
        uri.path()
    );
    Problem::invalid(text).with_status(StatusCode::METHOD_NOT_ALLOWED)
}
