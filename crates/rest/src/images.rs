//! `/v1/images`.

use api_types::{
    Image, ImageAccepted, ImageCreate, ImageFsck, ImageImport, ImageImportInfo, ImageList, ImagePatch, ImagePush,
    ImportOptions, Operation, OperationId, ProblemBody,
};
use axum::Json;
use axum::body::Body as AnyBody;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use host::ImageFilter;
use serde::Deserialize;
use serde_json::Value;

use crate::extract::{Body, IfMatch, Params, Segment, Segments};
use crate::operations::{self, location};
use crate::problem::Problem;
use crate::shared::Shared;

/// What is listed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListParams {
    /// Those that are hidden, and no others.
    #[serde(default)]
    hidden: bool,
    /// Those that are so, and no others.
    visibility: Option<String>,
    /// Those that are somebody's.
    owner: Option<String>,
}

/// What is asked of an upload.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct UploadParams {
    /// A digest that the bytes must have.
    digest: Option<String>,
    /// The store it shall be in.
    store: Option<String>,
}

/// All images but hidden ones, newest first; or all that are hidden.
#[utoipa::path(get, path = "/v1/images", tag = "images",
    params(("hidden" = Option<bool>, Query, description = "List those that are hidden instead"),
        ("visibility" = Option<String>, Query, description = "`private`, `shared`, `community` or `public`: list those that are so"),
        ("owner" = Option<String>, Query, description = "List those that are somebody's")),
    responses((status = 200, body = ImageList), (status = 422, body = ProblemBody, description = "No such visibility")))]
pub(crate) async fn list(
    State(shared): State<Shared>,
    Params(params): Params<ListParams>,
) -> Result<Json<ImageList>, Problem> {
    let wanted = ImageFilter {
        hidden: params.hidden,
        visibility: params.visibility,
        owner: params.owner,
    };
    let items = shared.host.images(wanted).await?;
    Ok(Json(ImageList { items }))
}

/// Makes an image record, and begins to import into it where `import` says from where; or, with `reference` alone, begins to pull a
/// container disk, whose record is made when it is there.
#[utoipa::path(post, path = "/v1/images", tag = "images", request_body = ImageCreate,
    responses((status = 202, body = ImageAccepted, description = "Data comes in", headers(("Location" = String, description = "The operation"))),
        (status = 201, body = ImageAccepted, description = "The record waits for an import", headers(("Location" = String, description = "The image"))),
        (status = 409, body = ProblemBody, description = "The name is taken"),
        (status = 422, body = ProblemBody, description = "Refused; `errors` has every field that is wrong")))]
pub(crate) async fn create(State(shared): State<Shared>, Body(body): Body<ImageCreate>) -> Result<Response, Problem> {
    let begun = shared.host.create_image(body).await?;
    Ok(accepted(begun.image, begun.operation))
}

/// What can be imported on this host.
#[utoipa::path(get, path = "/v1/images/import-info", tag = "images", responses((status = 200, body = ImageImportInfo)))]
pub(crate) async fn import_info(State(shared): State<Shared>) -> Result<Json<ImageImportInfo>, Problem> {
    Ok(Json(shared.host.import_info().await?))
}

/// Compares records, machines and volumes with what is in the stores, as far as that can be told without reading images; `verify` reads
/// them. Not while anything is imported.
#[utoipa::path(get, path = "/v1/images/fsck", tag = "images", operation_id = "fsck_images",
    responses((status = 200, body = ImageFsck), (status = 409, body = ProblemBody, description = "Images are being imported")))]
pub(crate) async fn fsck(State(shared): State<Shared>) -> Result<Json<ImageFsck>, Problem> {
    Ok(Json(shared.host.fsck_images().await?))
}

/// One image.
#[utoipa::path(get, path = "/v1/images/{image}", tag = "images",
    params(("image" = String, Path, description = "Id, name, alias, digest, or a reference it was pulled by, URL-encoded")),
    responses((status = 200, body = Image, headers(("ETag" = String, description = "The revision"))),
        (status = 404, body = ProblemBody)))]
pub(crate) async fn show(State(shared): State<Shared>, Segment(image): Segment) -> Result<Response, Problem> {
    Ok(tagged(shared.host.image(&image).await?))
}

/// Changes what is recorded of an image.
#[utoipa::path(patch, path = "/v1/images/{image}", tag = "images", operation_id = "edit_image",
    request_body(content((ImagePatch = "application/merge-patch+json"), (ImagePatch = "application/json"))),
    params(("image" = String, Path, description = "As above"),
        ("If-Match" = Option<String>, Header, description = "ETag of the revision this is meant for")),
    responses((status = 200, body = Image), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody),
        (status = 412, body = ProblemBody), (status = 422, body = ProblemBody)))]
pub(crate) async fn edit(
    State(shared): State<Shared>,
    Segment(image): Segment,
    IfMatch(revision): IfMatch,
    Body(patch): Body<Value>,
) -> Result<Response, Problem> {
    Ok(tagged(shared.host.edit_image(&image, revision, patch).await?))
}

/// Begins to import into a record that has no data: one that is queued, or whose last import failed. With the method `copy`, begins
/// to copy the data of one that has some to further stores.
#[utoipa::path(post, path = "/v1/images/{image}/import", tag = "images", request_body = ImageImport,
    params(("image" = String, Path, description = "Id or name")),
    responses((status = 202, body = ImageAccepted, headers(("Location" = String, description = "The operation"))),
        (status = 404, body = ProblemBody), (status = 409, body = ProblemBody, description = "It has data, or is being imported"),
        (status = 422, body = ProblemBody, description = "The method is not enabled, or what it names can not be used")))]
pub(crate) async fn import(
    State(shared): State<Shared>,
    Segment(image): Segment,
    Body(body): Body<ImageImport>,
) -> Result<Response, Problem> {
    let operation = shared.host.import_image(&image, body).await?;
    let image = shared.host.image(&image).await?;
    Ok(accepted(Some(image), Some(operation.id)))
}

/// Receives the data of a record that has none, and imports it as it comes: any format, also packed with gzip, xz, zstd or bzip2. It
/// can not be gone on with when it breaks off. When all has come, the operation tells what became of it.
#[utoipa::path(put, path = "/v1/images/{image}/data", tag = "images", operation_id = "upload_image",
    request_body(content = String, content_type = "application/octet-stream", description = "Bytes of the image"),
    params(("image" = String, Path, description = "Id or name"),
        ("digest" = Option<String>, Query, description = "A digest that the bytes must have, `sha256:…` or `sha512:…`"),
        ("store" = Option<String>, Query, description = "The store it shall be in; default: the default store")),
    responses((status = 202, body = ImageAccepted, description = "All has come", headers(("Location" = String, description = "The operation"))),
        (status = 400, body = ProblemBody, description = "It broke off; nothing was kept"), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody, description = "It has data, or is being imported"),
        (status = 422, body = ProblemBody, description = "What comes is not taken, or not by this way"),
        (status = 507, body = ProblemBody, description = "No space left")))]
pub(crate) async fn upload(
    State(shared): State<Shared>,
    Segment(image): Segment,
    Params(params): Params<UploadParams>,
    body: AnyBody,
) -> Result<Response, Problem> {
    let options = ImportOptions {
        digests: params.digest.into_iter().collect(),
        sums: None,
        stores: params.store.into_iter().collect(),
        all_stores: false,
        allow_failure: None,
    };
    let body = body.into_data_stream();
    let (image, operation) = shared.host.receive_image(&image, options, body).await?;
    Ok(accepted(Some(image), Some(operation.id)))
}

/// Takes an image out of one of several stores; out of the default one only if no machine and no volume was made from it.
#[utoipa::path(delete, path = "/v1/images/{image}/stores/{store}", tag = "images", operation_id = "displace_image",
    params(("image" = String, Path, description = "Id, name, alias, digest or reference"), ("store" = String, Path, description = "Name")),
    responses((status = 204), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody, description = "It is in no other store, or in use there")))]
pub(crate) async fn displace(
    State(shared): State<Shared>,
    Segments([image, store]): Segments<2>,
) -> Result<StatusCode, Problem> {
    shared.host.displace_image(&image, &store).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Begins to read an image's bytes and to compare them with their digests. One that is damaged is deactivated.
#[utoipa::path(post, path = "/v1/images/{image}/verify", tag = "images", operation_id = "verify_image",
    params(("image" = String, Path, description = "Id, name, alias, digest or reference")),
    responses((status = 202, body = Operation, headers(("Location" = String, description = "The operation"))),
        (status = 404, body = ProblemBody), (status = 409, body = ProblemBody, description = "It has no data")))]
pub(crate) async fn verify(
    State(shared): State<Shared>,
    Segment(image): Segment,
) -> Result<impl IntoResponse, Problem> {
    Ok(operations::accepted(shared.host.verify_image(&image).await?))
}

/// Begins to publish an image as a container disk: one layer with the disk as qcow2, and kernel, initrd and command line where the
/// image has them. The operation's result is the manifest's digest.
#[utoipa::path(post, path = "/v1/images/{image}/push", tag = "images", operation_id = "push_image", request_body = ImagePush,
    params(("image" = String, Path, description = "Id, name, alias, digest or reference")),
    responses((status = 202, body = Operation, headers(("Location" = String, description = "The operation"))),
        (status = 404, body = ProblemBody), (status = 409, body = ProblemBody, description = "It has no data"),
        (status = 422, body = ProblemBody, description = "The reference is none, or names a digest")))]
pub(crate) async fn push(
    State(shared): State<Shared>,
    Segment(image): Segment,
    Body(push): Body<ImagePush>,
) -> Result<impl IntoResponse, Problem> {
    Ok(operations::accepted(
        shared.host.push_image(&image, &push.reference).await?,
    ))
}

/// Keeps an image from being used. Its bytes stay, and machines that were made from it go on.
#[utoipa::path(post, path = "/v1/images/{image}/deactivate", tag = "images",
    params(("image" = String, Path, description = "Id, name, alias, digest or reference"),
        ("If-Match" = Option<String>, Header, description = "ETag of the revision this is meant for")),
    responses((status = 200, body = Image), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody, description = "It is not active"), (status = 412, body = ProblemBody)))]
pub(crate) async fn deactivate(
    State(shared): State<Shared>,
    Segment(image): Segment,
    IfMatch(revision): IfMatch,
) -> Result<Response, Problem> {
    Ok(tagged(shared.host.switch_image(&image, revision, false).await?))
}

/// Lets an image be used again.
#[utoipa::path(post, path = "/v1/images/{image}/reactivate", tag = "images",
    params(("image" = String, Path, description = "Id, name, alias, digest or reference"),
        ("If-Match" = Option<String>, Header, description = "ETag of the revision this is meant for")),
    responses((status = 200, body = Image), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody, description = "It is not deactivated"), (status = 412, body = ProblemBody)))]
pub(crate) async fn reactivate(
    State(shared): State<Shared>,
    Segment(image): Segment,
    IfMatch(revision): IfMatch,
) -> Result<Response, Problem> {
    Ok(tagged(shared.host.switch_image(&image, revision, true).await?))
}

/// Removes an image no machine was made from. An import under way is called off. The bytes go with the last record that has them.
#[utoipa::path(delete, path = "/v1/images/{image}", tag = "images",
    params(("image" = String, Path, description = "Id, name, alias, digest, or a reference it was pulled by, URL-encoded"),
        ("If-Match" = Option<String>, Header, description = "ETag of the revision this is meant for")),
    responses((status = 204), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody, description = "It is protected, or machines use it; the detail names them"),
        (status = 412, body = ProblemBody)))]
pub(crate) async fn delete(
    State(shared): State<Shared>,
    Segment(image): Segment,
    IfMatch(revision): IfMatch,
) -> Result<StatusCode, Problem> {
    shared.host.delete_image(&image, revision).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn tagged(image: Image) -> Response {
    let tag = format!("\"{}\"", image.revision);
    ([(header::ETAG, tag)], Json(image)).into_response()
}

fn accepted(image: Option<Image>, operation: Option<OperationId>) -> Response {
    let (status, place) = match (&image, operation) {
        (_, Some(id)) => (StatusCode::ACCEPTED, location(id)),
        (Some(image), None) => (StatusCode::CREATED, format!("/v1/images/{}", image.id)),
        (None, None) => (StatusCode::CREATED, "/v1/images".to_owned()),
    };
    let image = image.map(Box::new);
    let body = ImageAccepted { operation, image };
    (status, [(header::LOCATION, place)], Json(body)).into_response()
}
