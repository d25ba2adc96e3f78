//! `/v1/images/{image}/uploads`: uploads that can be gone on with when they break off.
//!
//! After the IETF's draft of resumable uploads: an upload is a resource of its own, whose offset is told in `Upload-Offset`, and to
//! which what follows is appended. The offset is asked for with HEAD or GET; what is sent from elsewhere is refused.

use api_types::{ErrorCode, ProblemBody, Upload, UploadList, UploadWish};
use axum::Json;
use axum::body::Body as AnyBody;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::extract::{Body, Segment, Segments};
use crate::operations;
use crate::problem::Problem;
use crate::shared::Shared;

/// How many bytes have come.
const OFFSET: HeaderName = HeaderName::from_static("upload-offset");
/// How many there are.
const LENGTH: HeaderName = HeaderName::from_static("upload-length");
/// Whether all have come, as a boolean of structured fields (RFC 9651 §3.3.6).
const COMPLETE: HeaderName = HeaderName::from_static("upload-complete");

/// Begins an upload into a record that has no data.
#[utoipa::path(post, path = "/v1/images/{image}/uploads", tag = "images", operation_id = "begin_image_upload", request_body = UploadWish,
    params(("image" = String, Path, description = "Id or name")),
    responses((status = 201, body = Upload, headers(("Location" = String, description = "The upload"))),
        (status = 404, body = ProblemBody), (status = 409, body = ProblemBody, description = "It has data, or there are too many uploads"),
        (status = 422, body = ProblemBody), (status = 507, body = ProblemBody, description = "No space left, or more than uploads may take")))]
pub(crate) async fn begin(
    State(shared): State<Shared>,
    Segment(image): Segment,
    Body(wish): Body<UploadWish>,
) -> Result<Response, Problem> {
    let upload = shared.host.begin_upload(&image, wish).await?;
    let place = [(header::LOCATION, location(&upload))];
    Ok((StatusCode::CREATED, place, told(upload)).into_response())
}

/// Uploads for an image, oldest first.
#[utoipa::path(get, path = "/v1/images/{image}/uploads", tag = "images", operation_id = "list_image_uploads",
    params(("image" = String, Path, description = "Id or name")),
    responses((status = 200, body = UploadList), (status = 404, body = ProblemBody)))]
pub(crate) async fn list(State(shared): State<Shared>, Segment(image): Segment) -> Result<Json<UploadList>, Problem> {
    let items = shared.host.uploads(&image).await?;
    Ok(Json(UploadList { items }))
}

/// How far an upload is, in headers as in the body; also with HEAD. Whoever sends to it is stopped, so that what is told stays.
#[utoipa::path(get, path = "/v1/images/{image}/uploads/{upload}", tag = "images", operation_id = "show_image_upload",
    params(("image" = String, Path, description = "Id or name"), ("upload" = String, Path, description = "Id")),
    responses((status = 200, body = Upload, headers(("Upload-Offset" = u64, description = "How many bytes have come"))),
        (status = 404, body = ProblemBody, description = "It was imported, deleted, or too old")))]
pub(crate) async fn show(
    State(shared): State<Shared>,
    Segments([image, upload]): Segments<2>,
) -> Result<Response, Problem> {
    let upload = shared.host.upload(&image, &upload).await?;
    Ok(([(header::CACHE_CONTROL, "no-store")], told(upload)).into_response())
}

/// Receives what follows. After the last byte, the operation tells what becomes of it.
#[utoipa::path(patch, path = "/v1/images/{image}/uploads/{upload}", tag = "images", operation_id = "append_image_upload",
    request_body(content = String, content_type = "application/octet-stream", description = "Bytes from the offset on, as many as the sender likes"),
    params(("image" = String, Path, description = "Id or name"), ("upload" = String, Path, description = "Id"),
        ("Upload-Offset" = u64, Header, description = "Number of the first byte: how many have come")),
    responses((status = 200, body = Upload, description = "More is to come", headers(("Upload-Offset" = u64, description = "How many bytes have come"))),
        (status = 202, body = Upload, description = "All has come", headers(("Location" = String, description = "The operation"))),
        (status = 400, body = ProblemBody, description = "It broke off; what came is kept"), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody, description = "It goes on elsewhere, as `Upload-Offset` tells"),
        (status = 507, body = ProblemBody, description = "No space left; what came is kept")))]
pub(crate) async fn append(
    State(shared): State<Shared>,
    Segments([image, upload]): Segments<2>,
    headers: HeaderMap,
    body: AnyBody,
) -> Result<Response, Problem> {
    let offset = headers.get(&OFFSET).and_then(|value| value.to_str().ok()?.parse().ok());
    let Some(offset) = offset else {
        return Err(Problem::invalid(
            "Upload-Offset is missing or no number; it says which byte is the first, and HEAD tells which it has to be",
        ));
    };
    let received = shared
        .host
        .receive_upload(&image, &upload, offset, body.into_data_stream())
        .await;
    let upload = match received {
        Ok(upload) => upload,
        Err(failure) if failure.code == ErrorCode::UploadOffset => {
            let there = shared.host.upload(&image, &upload).await?;
            let offset = [(OFFSET, there.offset.to_string())];
            return Ok((offset, Problem::from(failure)).into_response());
        }
        Err(failure) => return Err(failure.into()),
    };
    Ok(match upload.operation {
        Some(id) => {
            let place = [(header::LOCATION, operations::location(id))];
            (StatusCode::ACCEPTED, place, told(upload)).into_response()
        }
        None => told(upload).into_response(),
    })
}

/// Gives an upload up.
#[utoipa::path(delete, path = "/v1/images/{image}/uploads/{upload}", tag = "images", operation_id = "delete_image_upload",
    params(("image" = String, Path, description = "Id or name"), ("upload" = String, Path, description = "Id")),
    responses((status = 204), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody, description = "All has come and is being imported")))]
pub(crate) async fn delete(
    State(shared): State<Shared>,
    Segments([image, upload]): Segments<2>,
) -> Result<StatusCode, Problem> {
    shared.host.delete_upload(&image, &upload).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn location(upload: &Upload) -> String {
    format!("/v1/images/{}/uploads/{}", upload.image, upload.id)
}

/// In headers as in the body.
fn told(upload: Upload) -> impl IntoResponse {
    let complete = if upload.offset == upload.length { "?1" } else { "?0" };
    (
        [
            (OFFSET, upload.offset.to_string()),
            (LENGTH, upload.length.to_string()),
            (COMPLETE, complete.to_owned()),
        ],
        Json(upload),
    )
}
