//! `/v1/migrations` and `/v1/incoming-migrations`.

use api_types::{
    DecisionRequest, ErrorCode, IncomingMigration, IncomingMigrationList, IncomingMigrationWish, Migration,
    MigrationDecision, MigrationId, MigrationList, MigrationPatch, MigrationWish, ProblemBody,
};
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use host::{ArrivalRecord, Failure, MigrationRecord};

use crate::extract::{Body, Caller, Segment};
use crate::problem::{self, Problem};
use crate::shared::Shared;

/// Moves of machines away from this host: those under way, and the last five of each machine. Newest first.
#[utoipa::path(get, path = "/v1/migrations", tag = "migrations", operation_id = "list_migrations",
    responses((status = 200, body = MigrationList)))]
pub(crate) async fn list(State(shared): State<Shared>) -> Result<Json<MigrationList>, Problem> {
    let items = shared.host.migrations().await?.into_iter().map(convert).collect();
    Ok(Json(MigrationList { items }))
}

/// Begins to move a running or paused machine to another host.
#[utoipa::path(post, path = "/v1/migrations", tag = "migrations", operation_id = "begin_migration", request_body = MigrationWish,
    responses((status = 202, body = Migration, headers(("Location" = String))), (status = 400, body = ProblemBody),
        (status = 403, body = ProblemBody, description = "Only administrators may"), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody, description = "It does not run, can not be moved, or is being moved"),
        (status = 422, body = ProblemBody)))]
pub(crate) async fn begin(
    State(shared): State<Shared>,
    caller: Caller,
    Body(wish): Body<MigrationWish>,
) -> Result<Response, Problem> {
    check(caller)?;
    let migration = convert(shared.host.begin_migration(wish).await?);
    let location = [(header::LOCATION, format!("/v1/migrations/{}", migration.id))];
    Ok((StatusCode::ACCEPTED, location, Json(migration)).into_response())
}

/// One move.
#[utoipa::path(get, path = "/v1/migrations/{id}", tag = "migrations", operation_id = "show_migration",
    params(("id" = MigrationId, Path, description = "Its id")),
    responses((status = 200, body = Migration), (status = 404, body = ProblemBody)))]
pub(crate) async fn show(State(shared): State<Shared>, Segment(id): Segment) -> Result<Json<Migration>, Problem> {
    Ok(Json(convert(shared.host.migration(parse(&id)?).await?)))
}

/// Gives a move that is under way another bandwidth.
#[utoipa::path(patch, path = "/v1/migrations/{id}", tag = "migrations", operation_id = "tune_migration", request_body = MigrationPatch,
    params(("id" = MigrationId, Path, description = "Its id")),
    responses((status = 200, body = Migration), (status = 403, body = ProblemBody), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody, description = "Memory does not move")))]
pub(crate) async fn tune(
    State(shared): State<Shared>,
    caller: Caller,
    Segment(id): Segment,
    Body(patch): Body<MigrationPatch>,
) -> Result<Json<Migration>, Problem> {
    check(caller)?;
    Ok(Json(convert(shared.host.tune_migration(parse(&id)?, patch).await?)))
}

/// Asks for a move to be given up: the machine stays. One that is over is forgotten.
#[utoipa::path(delete, path = "/v1/migrations/{id}", tag = "migrations", operation_id = "cancel_migration",
    params(("id" = MigrationId, Path, description = "Its id")),
    responses((status = 202, body = Migration), (status = 204, description = "It was over, and is forgotten"),
        (status = 403, body = ProblemBody), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody, description = "The machine has left")))]
pub(crate) async fn cancel(
    State(shared): State<Shared>,
    caller: Caller,
    Segment(id): Segment,
) -> Result<Response, Problem> {
    check(caller)?;
    Ok(match shared.host.cancel_migration(parse(&id)?).await? {
        Some(record) => (StatusCode::ACCEPTED, Json(convert(record))).into_response(),
        None => StatusCode::NO_CONTENT.into_response(),
    })
}

/// Asks the source of a move what it decided. Only the target's daemon asks this: asking decides that the machine stays, unless it has
/// departed.
#[utoipa::path(post, path = "/v1/migrations/{id}/decision", tag = "migrations", operation_id = "decide_migration",
    request_body = DecisionRequest, params(("id" = MigrationId, Path, description = "Its id")),
    responses((status = 200, body = MigrationDecision), (status = 403, body = ProblemBody)))]
pub(crate) async fn decide(
    State(shared): State<Shared>,
    caller: Caller,
    Segment(id): Segment,
    Body(request): Body<DecisionRequest>,
) -> Result<Json<MigrationDecision>, Problem> {
    check(caller)?;
    let departed = shared.host.decide_migration(parse(&id)?, request.token).await?;
    Ok(Json(MigrationDecision { departed }))
}

/// Machines that come, or came, from other hosts. Newest first.
#[utoipa::path(get, path = "/v1/incoming-migrations", tag = "migrations", operation_id = "list_incoming_migrations",
    responses((status = 200, body = IncomingMigrationList)))]
pub(crate) async fn list_incoming(State(shared): State<Shared>) -> Result<Json<IncomingMigrationList>, Problem> {
    let items = shared
        .host
        .arrivals()
        .await?
        .into_iter()
        .map(convert_incoming)
        .collect();
    Ok(Json(IncomingMigrationList { items }))
}

/// One of them.
#[utoipa::path(get, path = "/v1/incoming-migrations/{id}", tag = "migrations", operation_id = "show_incoming_migration",
    params(("id" = MigrationId, Path, description = "Its id, the same as at the source")),
    responses((status = 200, body = IncomingMigration), (status = 404, body = ProblemBody)))]
pub(crate) async fn show_incoming(
    State(shared): State<Shared>,
    Segment(id): Segment,
) -> Result<Json<IncomingMigration>, Problem> {
    Ok(Json(convert_incoming(shared.host.arrival(parse(&id)?).await?)))
}

/// Looks whether a machine of another host can come, and makes everything ready for it. Only the source's daemon asks this.
#[utoipa::path(post, path = "/v1/incoming-migrations", tag = "migrations", operation_id = "receive_migration",
    request_body = IncomingMigrationWish,
    responses((status = 201, body = IncomingMigration, headers(("Location" = String))), (status = 403, body = ProblemBody),
        (status = 409, body = ProblemBody, description = "It can not come; `errors` has every reason"),
        (status = 503, body = ProblemBody, description = "Too many moves are under way; ask again")))]
pub(crate) async fn receive(
    State(shared): State<Shared>,
    caller: Caller,
    Body(wish): Body<IncomingMigrationWish>,
) -> Result<Response, Problem> {
    check(caller)?;
    let incoming = convert_incoming(shared.host.receive_migration(wish).await?);
    let location = [(header::LOCATION, format!("/v1/incoming-migrations/{}", incoming.id))];
    Ok((StatusCode::CREATED, location, Json(incoming)).into_response())
}

/// Asks for a machine that is on its way to be given up; the source is asked whether it stayed.
#[utoipa::path(delete, path = "/v1/incoming-migrations/{id}", tag = "migrations", operation_id = "give_up_incoming_migration",
    params(("id" = MigrationId, Path, description = "Its id")),
    responses((status = 202), (status = 403, body = ProblemBody), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody, description = "It is over")))]
pub(crate) async fn give_up(
    State(shared): State<Shared>,
    caller: Caller,
    Segment(id): Segment,
) -> Result<StatusCode, Problem> {
    check(caller)?;
    shared.host.give_up_arrival(parse(&id)?).await?;
    Ok(StatusCode::ACCEPTED)
}

fn check(caller: Caller) -> Result<(), Problem> {
    if caller.is_admin() {
        return Ok(());
    }
    let text = "only administrators move machines between hosts: ask as root, or with a certificate over TLS";
    Err(Failure::new(ErrorCode::Forbidden, text).into())
}

fn parse(id: &str) -> Result<MigrationId, Problem> {
    id.parse()
        .map_err(|error| Problem::invalid(format!("{id:?} is no id of a migration: {error}")))
}

fn convert(record: MigrationRecord) -> Migration {
    Migration {
        id: record.key.id,
        vm: record.vm_name,
        vm_id: record.vm,
        target: record.target,
        phase: record.phase,
        method: record.method,
        completed: record.phase.is_final(),
        options: record.options,
        target_address: record.target_address,
        target_vm_detected: record.target_vm_detected,
        progress: record.progress,
        error: record.failure.map(problem::body),
        created_at: record.created_at,
        started_at: record.started_at,
        ended_at: record.ended_at,
    }
}

fn convert_incoming(record: ArrivalRecord) -> IncomingMigration {
    IncomingMigration {
        id: record.key.id,
        vm: record.vm_name,
        vm_id: record.vm,
        source_url: record.source_url,
        phase: record.phase,
        address: record.address,
        port: record.port,
        certificate: record.certificate,
        error: record.failure.map(problem::body),
        created_at: record.created_at,
        ended_at: record.ended_at,
    }
}
