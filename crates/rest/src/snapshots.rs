//! `/v1/snapshots`.

use api_types::{
    ProblemBody, Snapshot, SnapshotAccepted, SnapshotList, SnapshotRestore, SnapshotRestored, SnapshotWish,
};
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::extract::{Body, IfMatch, Segment};
use crate::operations::location;
use crate::problem::Problem;
use crate::shared::Shared;

/// All snapshots, by name.
#[utoipa::path(get, path = "/v1/snapshots", tag = "snapshots", responses((status = 200, body = SnapshotList)))]
pub(crate) async fn list(State(shared): State<Shared>) -> Result<Json<SnapshotList>, Problem> {
    let items = shared.host.snapshots().await?;
    Ok(Json(SnapshotList { items }))
}

/// Begins to take a snapshot of a machine that runs or is paused: its memory, its devices and its root disk at one instant. The
/// machine stands still meanwhile, and is then as it was before.
#[utoipa::path(post, path = "/v1/snapshots", tag = "snapshots", request_body = SnapshotWish,
    responses((status = 202, body = SnapshotAccepted, headers(("Location" = String, description = "The operation"))),
        (status = 400, body = ProblemBody), (status = 404, body = ProblemBody, description = "No such machine"),
        (status = 409, body = ProblemBody, description = "The name is taken"),
        (status = 422, body = ProblemBody, description = "Refused; `errors` has every field that is wrong"),
        (status = 507, body = ProblemBody, description = "No space left")))]
pub(crate) async fn create(State(shared): State<Shared>, Body(wish): Body<SnapshotWish>) -> Result<Response, Problem> {
    let (snapshot, operation) = shared.host.create_snapshot(wish).await?;
    let location = [(header::LOCATION, location(operation))];
    let accepted = SnapshotAccepted { snapshot, operation };
    Ok((StatusCode::ACCEPTED, location, Json(accepted)).into_response())
}

/// One snapshot.
#[utoipa::path(get, path = "/v1/snapshots/{snapshot}", tag = "snapshots",
    params(("snapshot" = String, Path, description = "Name or id")),
    responses((status = 200, body = Snapshot, headers(("ETag" = String, description = "The revision"))),
        (status = 404, body = ProblemBody)))]
pub(crate) async fn show(State(shared): State<Shared>, Segment(snapshot): Segment) -> Result<Response, Problem> {
    let snapshot = shared.host.snapshot(&snapshot).await?;
    let tag = format!("\"{}\"", snapshot.revision);
    Ok(([(header::ETAG, tag)], Json(snapshot)).into_response())
}

/// Makes a machine that goes on from a snapshot, with a name, interfaces and a disk of its own, and begins to start it unless it is
/// to be left stopped. Any number of machines may be made from one snapshot.
#[utoipa::path(post, path = "/v1/snapshots/{snapshot}/restore", tag = "snapshots", request_body = SnapshotRestore,
    params(("snapshot" = String, Path, description = "Name or id")),
    responses((status = 202, body = SnapshotRestored, headers(("Location" = String, description = "The operation"))),
        (status = 201, body = SnapshotRestored, description = "It is left stopped", headers(("Location" = String, description = "The machine"))),
        (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody, description = "The name is taken, or the snapshot is not ready"),
        (status = 422, body = ProblemBody, description = "Refused; `errors` has every field that is wrong"),
        (status = 507, body = ProblemBody, description = "No space left")))]
pub(crate) async fn restore(
    State(shared): State<Shared>,
    Segment(snapshot): Segment,
    Body(wish): Body<SnapshotRestore>,
) -> Result<Response, Problem> {
    let (vm, operation) = shared.host.restore_snapshot(&snapshot, wish).await?;
    let operation = operation.map(|operation| operation.id);
    let (status, location) = match operation {
        Some(id) => (StatusCode::ACCEPTED, location(id)),
        None => (StatusCode::CREATED, format!("/v1/vms/{}", vm.spec.name)),
    };
    let restored = SnapshotRestored { vm, operation };
    Ok((status, [(header::LOCATION, location)], Json(restored)).into_response())
}

/// Removes a snapshot. Machines that were made from it stay as they are.
#[utoipa::path(delete, path = "/v1/snapshots/{snapshot}", tag = "snapshots",
    params(("snapshot" = String, Path, description = "Name or id"),
        ("If-Match" = Option<String>, Header, description = "ETag of the revision this is meant for")),
    responses((status = 204), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody, description = "It is being taken still"), (status = 412, body = ProblemBody)))]
pub(crate) async fn delete(
    State(shared): State<Shared>,
    Segment(snapshot): Segment,
    IfMatch(revision): IfMatch,
) -> Result<StatusCode, Problem> {
    shared.host.delete_snapshot(&snapshot, revision).await?;
    Ok(StatusCode::NO_CONTENT)
}
