//! `/v1/operations`.

use api_types::{Operation, OperationList, ProblemBody};
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use host::OperationRecord;
use spec::OperationId;

use crate::extract::Segment;
use crate::problem::{self, Problem};
use crate::shared::Shared;

/// All operations that are remembered, newest first.
#[utoipa::path(get, path = "/v1/operations", tag = "operations", responses((status = 200, body = OperationList)))]
pub(crate) async fn list(State(shared): State<Shared>) -> Result<Json<OperationList>, Problem> {
    let records = shared.host.operations().await?;
    Ok(Json(OperationList {
        items: records.into_iter().map(convert).collect(),
    }))
}

/// One operation.
#[utoipa::path(get, path = "/v1/operations/{id}", tag = "operations",
    params(("id" = OperationId, Path, description = "Its id")),
    responses((status = 200, body = Operation), (status = 404, body = ProblemBody)))]
pub(crate) async fn show(State(shared): State<Shared>, Segment(id): Segment) -> Result<Json<Operation>, Problem> {
    Ok(Json(convert(shared.host.operation(parse(&id)?).await?)))
}

/// Asks for an operation to be given up. It ends soon, as `Cancelled` or, when that was too late, as it would have.
#[utoipa::path(delete, path = "/v1/operations/{id}", tag = "operations",
    params(("id" = OperationId, Path, description = "Its id")),
    responses((status = 202, body = Operation), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody, description = "It is over")))]
pub(crate) async fn cancel(
    State(shared): State<Shared>,
    Segment(id): Segment,
) -> Result<(StatusCode, Json<Operation>), Problem> {
    let record = shared.host.cancel(parse(&id)?).await?;
    Ok((StatusCode::ACCEPTED, Json(convert(record))))
}

fn parse(id: &str) -> Result<OperationId, Problem> {
    id.parse()
        .map_err(|error| Problem::invalid(format!("{id:?} is no id of an operation: {error}")))
}

/// An operation that was begun: where to follow it, and what it is.
pub(crate) fn accepted(record: OperationRecord) -> impl IntoResponse {
    let location = location(record.id);
    (
        StatusCode::ACCEPTED,
        [(header::LOCATION, location)],
        Json(convert(record)),
    )
}

/// Where to follow an operation.
pub(crate) fn location(id: OperationId) -> String {
    format!("/v1/operations/{id}")
}

/// As the API has it.
pub(crate) fn convert(record: OperationRecord) -> Operation {
    Operation {
        id: record.id,
        kind: record.kind,
        subject: record.subject,
        phase: record.phase,
        progress: record.progress,
        result: record.result,
        error: record.failure.map(problem::body),
        created_at: record.created_at,
        updated_at: record.updated_at,
    }
}
