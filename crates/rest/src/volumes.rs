//! `/v1/volumes`.

use api_types::{
    OperationId, ProblemBody, Volume, VolumeAccepted, VolumeCheckRequest, VolumeConvert, VolumeList, VolumeMeasure,
    VolumeMeasureRequest, VolumeResize, VolumeWish,
};
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::extract::{Body, IfMatch, OptionalBody, Segment};
use crate::operations::location;
use crate::problem::Problem;
use crate::shared::Shared;

/// All volumes, by name.
#[utoipa::path(get, path = "/v1/volumes", tag = "volumes", responses((status = 200, body = VolumeList)))]
pub(crate) async fn list(State(shared): State<Shared>) -> Result<Json<VolumeList>, Problem> {
    let items = shared.host.volumes().await?;
    Ok(Json(VolumeList { items }))
}

/// Begins to make a volume. One that is to be uploaded waits for that and has no operation yet; all others are filled by one.
#[utoipa::path(post, path = "/v1/volumes", tag = "volumes", request_body = VolumeWish,
    responses((status = 202, body = VolumeAccepted, headers(("Location" = String, description = "The operation"))),
        (status = 201, body = VolumeAccepted, description = "It waits for its upload", headers(("Location" = String, description = "The volume"))),
        (status = 400, body = ProblemBody), (status = 409, body = ProblemBody, description = "The name is taken, or the source is in use"),
        (status = 422, body = ProblemBody, description = "Refused; `errors` has every field that is wrong"),
        (status = 507, body = ProblemBody, description = "No space left")))]
pub(crate) async fn create(State(shared): State<Shared>, Body(wish): Body<VolumeWish>) -> Result<Response, Problem> {
    let (volume, operation) = shared.host.create_volume(wish).await?;
    Ok(accepted(volume, operation, StatusCode::CREATED))
}

/// One volume.
#[utoipa::path(get, path = "/v1/volumes/{volume}", tag = "volumes",
    params(("volume" = String, Path, description = "Name or id")),
    responses((status = 200, body = Volume, headers(("ETag" = String, description = "The revision"))),
        (status = 404, body = ProblemBody)))]
pub(crate) async fn show(State(shared): State<Shared>, Segment(volume): Segment) -> Result<Response, Problem> {
    let volume = shared.host.volume(&volume).await?;
    let tag = format!("\"{}\"", volume.revision);
    Ok(([(header::ETAG, tag)], Json(volume)).into_response())
}

/// Begins to make a volume larger. The guest's partitions and file systems stay as they are.
#[utoipa::path(post, path = "/v1/volumes/{volume}/resize", tag = "volumes", request_body = VolumeResize,
    params(("volume" = String, Path, description = "Name or id"),
        ("If-Match" = Option<String>, Header, description = "ETag of the revision this is meant for")),
    responses((status = 202, body = VolumeAccepted, headers(("Location" = String, description = "The operation"))),
        (status = 404, body = ProblemBody), (status = 409, body = ProblemBody), (status = 412, body = ProblemBody),
        (status = 422, body = ProblemBody, description = "Smaller than it is, or no size of a disk")))]
pub(crate) async fn resize(
    State(shared): State<Shared>,
    Segment(volume): Segment,
    IfMatch(revision): IfMatch,
    Body(body): Body<VolumeResize>,
) -> Result<Response, Problem> {
    let (volume, operation) = shared.host.resize_volume(&volume, revision, body.size).await?;
    Ok(accepted(volume, Some(operation), StatusCode::ACCEPTED))
}

/// The same as resize: the size is what can be edited of a volume.
#[utoipa::path(patch, path = "/v1/volumes/{volume}", tag = "volumes",
    request_body(content((VolumeResize = "application/merge-patch+json"), (VolumeResize = "application/json"))),
    params(("volume" = String, Path, description = "Name or id"),
        ("If-Match" = Option<String>, Header, description = "ETag of the revision this is meant for")),
    responses((status = 202, body = VolumeAccepted, headers(("Location" = String, description = "The operation"))),
        (status = 404, body = ProblemBody), (status = 409, body = ProblemBody), (status = 412, body = ProblemBody),
        (status = 422, body = ProblemBody)))]
pub(crate) async fn edit(
    State(shared): State<Shared>,
    Segment(volume): Segment,
    IfMatch(revision): IfMatch,
    Body(body): Body<VolumeResize>,
) -> Result<Response, Problem> {
    let (volume, operation) = shared.host.resize_volume(&volume, revision, body.size).await?;
    Ok(accepted(volume, Some(operation), StatusCode::ACCEPTED))
}

/// Begins to check a volume, and to repair it where that is asked for. What was found is in the volume's `last_check`.
#[utoipa::path(post, path = "/v1/volumes/{volume}/check", tag = "volumes", request_body = VolumeCheckRequest,
    params(("volume" = String, Path, description = "Name or id"),
        ("If-Match" = Option<String>, Header, description = "ETag of the revision this is meant for")),
    responses((status = 202, body = VolumeAccepted, headers(("Location" = String, description = "The operation"))),
        (status = 404, body = ProblemBody), (status = 409, body = ProblemBody, description = "A machine runs with it"),
        (status = 412, body = ProblemBody)))]
pub(crate) async fn check(
    State(shared): State<Shared>,
    Segment(volume): Segment,
    IfMatch(revision): IfMatch,
    OptionalBody(body): OptionalBody<VolumeCheckRequest>,
) -> Result<Response, Problem> {
    let (volume, operation) = shared.host.check_volume(&volume, revision, body.repair).await?;
    Ok(accepted(volume, Some(operation), StatusCode::ACCEPTED))
}

/// Begins to copy a volume into a new one of another form, which stands on its own.
#[utoipa::path(post, path = "/v1/volumes/{volume}/convert", tag = "volumes", request_body = VolumeConvert,
    params(("volume" = String, Path, description = "Name or id")),
    responses((status = 202, body = VolumeAccepted, description = "The new volume", headers(("Location" = String, description = "The operation"))),
        (status = 404, body = ProblemBody), (status = 409, body = ProblemBody), (status = 422, body = ProblemBody)))]
pub(crate) async fn convert(
    State(shared): State<Shared>,
    Segment(volume): Segment,
    Body(body): Body<VolumeConvert>,
) -> Result<Response, Problem> {
    let (volume, operation) = shared.host.convert_volume(&volume, body).await?;
    Ok(accepted(volume, operation, StatusCode::ACCEPTED))
}

/// Begins to write the newest file of a volume, as a snapshot made it, into the file below it, and to remove it.
#[utoipa::path(post, path = "/v1/volumes/{volume}/commit", tag = "volumes",
    params(("volume" = String, Path, description = "Name or id"),
        ("If-Match" = Option<String>, Header, description = "ETag of the revision this is meant for")),
    responses((status = 202, body = VolumeAccepted, headers(("Location" = String, description = "The operation"))),
        (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody, description = "A machine runs with it, or it is one file"),
        (status = 412, body = ProblemBody)))]
pub(crate) async fn commit(
    State(shared): State<Shared>,
    Segment(volume): Segment,
    IfMatch(revision): IfMatch,
) -> Result<Response, Problem> {
    let (volume, operation) = shared.host.commit_volume(&volume, revision).await?;
    Ok(accepted(volume, Some(operation), StatusCode::ACCEPTED))
}

/// Begins to make a volume stand alone: one file, which shares blocks with no image.
#[utoipa::path(post, path = "/v1/volumes/{volume}/rebase", tag = "volumes",
    params(("volume" = String, Path, description = "Name or id"),
        ("If-Match" = Option<String>, Header, description = "ETag of the revision this is meant for")),
    responses((status = 202, body = VolumeAccepted, headers(("Location" = String, description = "The operation"))),
        (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody, description = "A machine runs with it, or it stands alone already"),
        (status = 412, body = ProblemBody), (status = 507, body = ProblemBody)))]
pub(crate) async fn rebase(
    State(shared): State<Shared>,
    Segment(volume): Segment,
    IfMatch(revision): IfMatch,
) -> Result<Response, Problem> {
    let (volume, operation) = shared.host.rebase_volume(&volume, revision).await?;
    Ok(accepted(volume, Some(operation), StatusCode::ACCEPTED))
}

/// How large the file of a copy of a volume would be.
#[utoipa::path(post, path = "/v1/volumes/{volume}/measure", tag = "volumes", request_body = VolumeMeasureRequest,
    params(("volume" = String, Path, description = "Name or id")),
    responses((status = 200, body = VolumeMeasure), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody, description = "A machine runs with it"), (status = 422, body = ProblemBody)))]
pub(crate) async fn measure(
    State(shared): State<Shared>,
    Segment(volume): Segment,
    Body(body): Body<VolumeMeasureRequest>,
) -> Result<Json<VolumeMeasure>, Problem> {
    Ok(Json(shared.host.measure_volume(&volume, body).await?))
}

/// Removes a volume no machine has.
#[utoipa::path(delete, path = "/v1/volumes/{volume}", tag = "volumes",
    params(("volume" = String, Path, description = "Name or id"),
        ("If-Match" = Option<String>, Header, description = "ETag of the revision this is meant for")),
    responses((status = 204), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody, description = "A machine has it, or it is being copied; the detail names who"),
        (status = 412, body = ProblemBody)))]
pub(crate) async fn delete(
    State(shared): State<Shared>,
    Segment(volume): Segment,
    IfMatch(revision): IfMatch,
) -> Result<StatusCode, Problem> {
    shared.host.delete_volume(&volume, revision).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A volume and the operation that works on it; `idle` is the status where there is none.
pub(crate) fn accepted(volume: Volume, operation: Option<OperationId>, idle: StatusCode) -> Response {
    let (status, location) = match operation {
        Some(id) => (StatusCode::ACCEPTED, location(id)),
        None => (idle, format!("/v1/volumes/{}", volume.name)),
    };
    let tag = format!("\"{}\"", volume.revision);
    let headers = [(header::LOCATION, location), (header::ETAG, tag)];
    (status, headers, Json(VolumeAccepted { volume, operation })).into_response()
}
