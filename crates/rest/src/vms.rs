//! `/v1/vms`.

use std::time::Duration;

use api_types::{Operation, ProblemBody, StopRequest, Vm, VmList, VmSpec};
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use host::Action;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::extract::{Body, IfMatch, OptionalBody, Params, Segment};
use crate::operations::accepted;
use crate::problem::Problem;
use crate::shared::Shared;

/// How to delete a machine.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct DeleteParams {
    /// End the machine first if it runs.
    #[serde(default)]
    force: bool,
}

/// Nothing: a body that may be an empty object.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Nothing {}

/// All machines, by name.
#[utoipa::path(get, path = "/v1/vms", tag = "vms", responses((status = 200, body = VmList)))]
pub(crate) async fn list(State(shared): State<Shared>) -> Result<Json<VmList>, Problem> {
    let items = shared.host.vms().await?;
    Ok(Json(VmList { items }))
}

/// Makes a machine: its record and its private disk. It stands still until it is started.
#[utoipa::path(post, path = "/v1/vms", tag = "vms", request_body = VmSpec,
    responses((status = 201, body = Vm, headers(("Location" = String), ("ETag" = String, description = "The revision"))),
        (status = 400, body = ProblemBody), (status = 409, body = ProblemBody, description = "The name is taken"),
        (status = 422, body = ProblemBody, description = "Refused; `errors` has every field that is wrong"),
        (status = 507, body = ProblemBody, description = "No space left")))]
pub(crate) async fn create(State(shared): State<Shared>, Body(spec): Body<VmSpec>) -> Result<Response, Problem> {
    let vm = shared.host.create_vm(spec).await?;
    let location = [(header::LOCATION, format!("/v1/vms/{}", vm.spec.name))];
    Ok((StatusCode::CREATED, location, tagged(vm)).into_response())
}

/// One machine.
#[utoipa::path(get, path = "/v1/vms/{vm}", tag = "vms",
    params(("vm" = String, Path, description = "Name or id")),
    responses((status = 200, body = Vm, headers(("ETag" = String, description = "The revision"))),
        (status = 404, body = ProblemBody)))]
pub(crate) async fn show(State(shared): State<Shared>, Segment(vm): Segment) -> Result<Response, Problem> {
    Ok(tagged(shared.host.vm(&vm).await?))
}

/// Removes a machine with its disk and its logs.
#[utoipa::path(delete, path = "/v1/vms/{vm}", tag = "vms",
    params(("vm" = String, Path, description = "Name or id"), DeleteParams,
        ("If-Match" = Option<String>, Header, description = "ETag of the revision this is meant for")),
    responses((status = 204), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody, description = "It runs"), (status = 412, body = ProblemBody)))]
pub(crate) async fn delete(
    State(shared): State<Shared>,
    Segment(vm): Segment,
    Params(params): Params<DeleteParams>,
    IfMatch(revision): IfMatch,
) -> Result<StatusCode, Problem> {
    shared.host.delete_vm(&vm, revision, params.force).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Begins to start a machine.
#[utoipa::path(post, path = "/v1/vms/{vm}/start", tag = "vms",
    params(("vm" = String, Path, description = "Name or id"),
        ("If-Match" = Option<String>, Header, description = "ETag of the revision this is meant for")),
    responses((status = 202, body = Operation, headers(("Location" = String))), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody, description = "It runs or is being started"), (status = 412, body = ProblemBody)))]
pub(crate) async fn start(
    State(shared): State<Shared>,
    Segment(vm): Segment,
    IfMatch(revision): IfMatch,
    OptionalBody(_): OptionalBody<Nothing>,
) -> Result<impl IntoResponse, Problem> {
    Ok(accepted(shared.host.start(&vm, revision).await?))
}

/// Begins to stop a machine: by its power button, or at once.
#[utoipa::path(post, path = "/v1/vms/{vm}/stop", tag = "vms", request_body = Option<StopRequest>,
    params(("vm" = String, Path, description = "Name or id"),
        ("If-Match" = Option<String>, Header, description = "ETag of the revision this is meant for")),
    responses((status = 202, body = Operation, headers(("Location" = String))), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody, description = "It does not run"), (status = 412, body = ProblemBody)))]
pub(crate) async fn stop(
    State(shared): State<Shared>,
    Segment(vm): Segment,
    IfMatch(revision): IfMatch,
    OptionalBody(body): OptionalBody<StopRequest>,
) -> Result<impl IntoResponse, Problem> {
    let timeout = body.timeout_seconds.map(|seconds| Duration::from_secs(seconds.into()));
    let record = shared.host.stop(&vm, revision, body.force, timeout).await?;
    Ok(accepted(record))
}

/// Begins to make a machine's root disk stand alone, while the machine runs or while it stands still: what the disk reads from its image
/// is copied into it, and what the machine is booted with is kept beside it. The image is not in use by the machine then.
#[utoipa::path(post, path = "/v1/vms/{vm}/flatten", tag = "vms", operation_id = "flatten_vm",
    params(("vm" = String, Path, description = "Name or id"),
        ("If-Match" = Option<String>, Header, description = "ETag of the revision this is meant for")),
    responses((status = 202, body = Operation, headers(("Location" = String))), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody, description = "It has no disk made from an image, or that stands alone"),
        (status = 412, body = ProblemBody)))]
pub(crate) async fn flatten(
    State(shared): State<Shared>,
    Segment(vm): Segment,
    IfMatch(revision): IfMatch,
    OptionalBody(_): OptionalBody<Nothing>,
) -> Result<impl IntoResponse, Problem> {
    Ok(accepted(shared.host.flatten_vm(&vm, revision).await?))
}

/// Holds a running machine still; its memory is kept.
#[utoipa::path(post, path = "/v1/vms/{vm}/pause", tag = "vms",
    params(("vm" = String, Path, description = "Name or id"),
        ("If-Match" = Option<String>, Header, description = "ETag of the revision this is meant for")),
    responses((status = 200, body = Vm), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody),
        (status = 412, body = ProblemBody)))]
pub(crate) async fn pause(
    State(shared): State<Shared>,
    Segment(vm): Segment,
    IfMatch(revision): IfMatch,
    OptionalBody(_): OptionalBody<Nothing>,
) -> Result<Response, Problem> {
    Ok(tagged(shared.host.act(&vm, revision, Action::Pause).await?))
}

/// Lets a paused machine go on.
#[utoipa::path(post, path = "/v1/vms/{vm}/resume", tag = "vms",
    params(("vm" = String, Path, description = "Name or id"),
        ("If-Match" = Option<String>, Header, description = "ETag of the revision this is meant for")),
    responses((status = 200, body = Vm), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody),
        (status = 412, body = ProblemBody)))]
pub(crate) async fn resume(
    State(shared): State<Shared>,
    Segment(vm): Segment,
    IfMatch(revision): IfMatch,
    OptionalBody(_): OptionalBody<Nothing>,
) -> Result<Response, Problem> {
    Ok(tagged(shared.host.act(&vm, revision, Action::Resume).await?))
}

/// Power-cycles a running machine.
#[utoipa::path(post, path = "/v1/vms/{vm}/reset", tag = "vms",
    params(("vm" = String, Path, description = "Name or id"),
        ("If-Match" = Option<String>, Header, description = "ETag of the revision this is meant for")),
    responses((status = 200, body = Vm), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody),
        (status = 412, body = ProblemBody)))]
pub(crate) async fn reset(
    State(shared): State<Shared>,
    Segment(vm): Segment,
    IfMatch(revision): IfMatch,
    OptionalBody(_): OptionalBody<Nothing>,
) -> Result<Response, Problem> {
    Ok(tagged(shared.host.act(&vm, revision, Action::Reset).await?))
}

/// Changes a stopped machine by a merge patch (RFC 7396) of its specification: fields that are named change, `null` takes them
/// back to their defaults, lists are replaced as a whole. Name, image and disk size stay. The next start goes by it.
#[utoipa::path(patch, path = "/v1/vms/{vm}", tag = "vms", operation_id = "edit_vm",
    request_body(content((VmSpec = "application/merge-patch+json"), (VmSpec = "application/json"))),
    params(("vm" = String, Path, description = "Name or id"),
        ("If-Match" = Option<String>, Header, description = "ETag of the revision this is meant for")),
    responses((status = 200, body = Vm, headers(("ETag" = String, description = "The revision"))), (status = 400, body = ProblemBody),
        (status = 404, body = ProblemBody), (status = 409, body = ProblemBody, description = "It runs, or another machine has a volume"),
        (status = 412, body = ProblemBody), (status = 422, body = ProblemBody)))]
pub(crate) async fn edit(
    State(shared): State<Shared>,
    Segment(vm): Segment,
    IfMatch(revision): IfMatch,
    Body(patch): Body<serde_json::Value>,
) -> Result<Response, Problem> {
    Ok(tagged(shared.host.edit_vm(&vm, revision, patch).await?))
}

pub(crate) fn tagged(vm: Vm) -> Response {
    let tag = format!("\"{}\"", vm.revision);
    ([(header::ETAG, tag)], Json(vm)).into_response()
}
