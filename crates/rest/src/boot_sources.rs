//! `/v1/boot-sources`.

use api_types::{BootSource, BootSourceList, BootSourceWish, Operation, OperationList, ProblemBody};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use crate::extract::{Body, Segment};
use crate::operations::{accepted, convert};
use crate::problem::Problem;
use crate::shared::Shared;

/// All boot sources, by name, and what is wrong with definitions in files.
#[utoipa::path(get, path = "/v1/boot-sources", tag = "boot-sources", operation_id = "list_boot_sources",
    responses((status = 200, body = BootSourceList)))]
pub(crate) async fn list(State(shared): State<Shared>) -> Result<Json<BootSourceList>, Problem> {
    Ok(Json(shared.host.boot_sources().await?))
}

/// One boot source.
#[utoipa::path(get, path = "/v1/boot-sources/{source}", tag = "boot-sources", operation_id = "show_boot_source",
    params(("source" = String, Path, description = "Name")),
    responses((status = 200, body = BootSource), (status = 404, body = ProblemBody)))]
pub(crate) async fn show(State(shared): State<Shared>, Segment(source): Segment) -> Result<Json<BootSource>, Problem> {
    Ok(Json(shared.host.boot_source(&source).await?))
}

/// Writes a boot source, in place of what was written of it over the API before. On top of one that a file defines, it changes what
/// it names and leaves the rest.
#[utoipa::path(put, path = "/v1/boot-sources/{source}", tag = "boot-sources", operation_id = "put_boot_source",
    request_body = BootSourceWish, params(("source" = String, Path, description = "Name")),
    responses((status = 200, body = BootSource), (status = 201, body = BootSource, description = "It is new"),
        (status = 400, body = ProblemBody),
        (status = 422, body = ProblemBody, description = "Refused; `errors` has every field that is wrong")))]
pub(crate) async fn put(
    State(shared): State<Shared>,
    Segment(source): Segment,
    Body(wish): Body<BootSourceWish>,
) -> Result<Response, Problem> {
    let (source, is_new) = shared.host.put_boot_source(&source, &wish).await?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(source)).into_response())
}

/// Changes what was written of a boot source over the API: `{"enabled": false}` switches one off, whoever defined it. A field that is
/// `null` is the file's again, or the default.
#[utoipa::path(patch, path = "/v1/boot-sources/{source}", tag = "boot-sources", operation_id = "edit_boot_source",
    request_body(content((BootSourceWish = "application/merge-patch+json"), (BootSourceWish = "application/json"))),
    params(("source" = String, Path, description = "Name")),
    responses((status = 200, body = BootSource), (status = 400, body = ProblemBody), (status = 404, body = ProblemBody),
        (status = 422, body = ProblemBody)))]
pub(crate) async fn edit(
    State(shared): State<Shared>,
    Segment(source): Segment,
    Body(patch): Body<Value>,
) -> Result<Json<BootSource>, Problem> {
    Ok(Json(shared.host.edit_boot_source(&source, patch).await?))
}

/// Takes back what was written of a boot source over the API. One that a file defines stays as the file says.
#[utoipa::path(delete, path = "/v1/boot-sources/{source}", tag = "boot-sources", operation_id = "delete_boot_source",
    params(("source" = String, Path, description = "Name")),
    responses((status = 204), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody, description = "Only a file defines it; the detail names the file")))]
pub(crate) async fn delete(State(shared): State<Shared>, Segment(source): Segment) -> Result<StatusCode, Problem> {
    shared.host.delete_boot_source(&source).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Begins to poll all boot sources that are switched on, each with an operation of its own.
#[utoipa::path(post, path = "/v1/boot-sources/-/sync", tag = "boot-sources", operation_id = "sync_boot_sources",
    responses((status = 202, body = OperationList, description = "One for each source, by name")))]
pub(crate) async fn sync_all(State(shared): State<Shared>) -> Result<impl IntoResponse, Problem> {
    let begun = shared.host.sync_boot_sources().await?.into_iter();
    let items = begun.map(convert).collect();
    Ok((StatusCode::ACCEPTED, Json(OperationList { items })))
}

/// Begins to poll a boot source now, and to import what is new; what was refused before is tried again.
#[utoipa::path(post, path = "/v1/boot-sources/{source}/sync", tag = "boot-sources", operation_id = "sync_boot_source",
    params(("source" = String, Path, description = "Name")),
    responses((status = 202, body = Operation, headers(("Location" = String, description = "The operation"))),
        (status = 404, body = ProblemBody), (status = 409, body = ProblemBody, description = "It is switched off")))]
pub(crate) async fn sync(State(shared): State<Shared>, Segment(source): Segment) -> Result<impl IntoResponse, Problem> {
    Ok(accepted(shared.host.sync_boot_source(&source).await?))
}
