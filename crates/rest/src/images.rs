//! `/v1/images`.

use api_types::{Image, ImageList, ImagePull, ImagePulled, ProblemBody};
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;

use crate::extract::{Body, Segment};
use crate::operations::location;
use crate::problem::Problem;
use crate::shared::Shared;

/// All images, newest first.
#[utoipa::path(get, path = "/v1/images", tag = "images", responses((status = 200, body = ImageList)))]
pub(crate) async fn list(State(shared): State<Shared>) -> Result<Json<ImageList>, Problem> {
    let items = shared.host.images().await?;
    Ok(Json(ImageList { items }))
}

/// Begins to pull an image from its registry.
#[utoipa::path(post, path = "/v1/images", tag = "images", request_body = ImagePull,
    responses((status = 202, body = ImagePulled, headers(("Location" = String, description = "The operation"))),
        (status = 422, body = ProblemBody, description = "The reference can not be used")))]
pub(crate) async fn pull(
    State(shared): State<Shared>,
    Body(body): Body<ImagePull>,
) -> Result<impl IntoResponse, Problem> {
    let record = shared.host.pull_image(&body.reference).await?;
    let pulled = ImagePulled { operation: record.id };
    Ok((
        StatusCode::ACCEPTED,
        [(header::LOCATION, location(record.id))],
        Json(pulled),
    ))
}

/// One image.
#[utoipa::path(get, path = "/v1/images/{image}", tag = "images",
    params(("image" = String, Path, description = "Digest, or a reference it was pulled by, URL-encoded")),
    responses((status = 200, body = Image), (status = 404, body = ProblemBody)))]
pub(crate) async fn show(State(shared): State<Shared>, Segment(image): Segment) -> Result<Json<Image>, Problem> {
    Ok(Json(shared.host.image(&image).await?))
}

/// Removes an image no machine was made from.
#[utoipa::path(delete, path = "/v1/images/{image}", tag = "images",
    params(("image" = String, Path, description = "Digest, or a reference it was pulled by, URL-encoded")),
    responses((status = 204), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody, description = "Machines use it; the detail names them")))]
pub(crate) async fn delete(State(shared): State<Shared>, Segment(image): Segment) -> Result<StatusCode, Problem> {
    shared.host.delete_image(&image).await?;
    Ok(StatusCode::NO_CONTENT)
}
