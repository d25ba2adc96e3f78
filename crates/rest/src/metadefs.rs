//! `/v1/metadefs`.

use api_types::{Metadef, MetadefList, ProblemBody};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use crate::extract::{Body, Caller, Params, Segment};
use crate::problem::Problem;
use crate::shared::Shared;

/// What is listed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListParams {
    /// Those that apply to this kind of resource.
    resource_type: Option<String>,
}

/// All namespaces of metadata definitions, by name, and what is wrong with files of them.
#[utoipa::path(get, path = "/v1/metadefs", tag = "metadefs", operation_id = "list_metadefs",
    params(("resource_type" = Option<String>, Query, description = "`image`, `volume` or `vm`: those that apply to it")),
    responses((status = 200, body = MetadefList)))]
pub(crate) async fn list(
    State(shared): State<Shared>,
    Params(params): Params<ListParams>,
) -> Result<Json<MetadefList>, Problem> {
    Ok(Json(shared.host.metadefs(params.resource_type).await?))
}

/// One namespace.
#[utoipa::path(get, path = "/v1/metadefs/{namespace}", tag = "metadefs", operation_id = "show_metadef",
    params(("namespace" = String, Path, description = "Name")),
    responses((status = 200, body = Metadef), (status = 404, body = ProblemBody)))]
pub(crate) async fn show(State(shared): State<Shared>, Segment(name): Segment) -> Result<Json<Metadef>, Problem> {
    Ok(Json(shared.host.metadef(&name).await?))
}

/// Writes a namespace, in place of the one of that name. For root, and under the policy `open` for everybody who may use the API.
/// Those that files define can not be changed; another protected one first has to be written without its protection alone.
#[utoipa::path(put, path = "/v1/metadefs/{namespace}", tag = "metadefs", operation_id = "put_metadef", request_body = Metadef,
    params(("namespace" = String, Path, description = "Name")),
    responses((status = 200, body = Metadef), (status = 201, body = Metadef, description = "It is new"), (status = 400, body = ProblemBody),
        (status = 403, body = ProblemBody, description = "It is for administrators"),
        (status = 409, body = ProblemBody, description = "It is protected"), (status = 422, body = ProblemBody)))]
pub(crate) async fn put(
    State(shared): State<Shared>,
    Segment(name): Segment,
    caller: Caller,
    Body(space): Body<Metadef>,
) -> Result<Response, Problem> {
    let (space, is_new) = shared.host.put_metadef(caller.is_admin(), &name, space).await?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(space)).into_response())
}

/// Removes a namespace. For whom, as with PUT.
#[utoipa::path(delete, path = "/v1/metadefs/{namespace}", tag = "metadefs", operation_id = "delete_metadef",
    params(("namespace" = String, Path, description = "Name")),
    responses((status = 204), (status = 403, body = ProblemBody, description = "It is for administrators"),
        (status = 404, body = ProblemBody), (status = 409, body = ProblemBody, description = "It is protected")))]
pub(crate) async fn delete(
    State(shared): State<Shared>,
    Segment(name): Segment,
    caller: Caller,
) -> Result<StatusCode, Problem> {
    shared.host.delete_metadef(caller.is_admin(), &name).await?;
    Ok(StatusCode::NO_CONTENT)
}
