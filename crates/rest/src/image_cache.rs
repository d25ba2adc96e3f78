//! `/v1/image-cache` and `/v1/image-stores`.

use api_types::{ImageCache, ImageCacheEntry, ImageCacheState, ImageStoreList, ProblemBody};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;

use crate::extract::{Params, Segment};
use crate::problem::Problem;
use crate::shared::Shared;

/// What is taken out of the cache.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClearParams {
    /// `cached` or `queued`.
    state: ImageCacheState,
}

/// All stores of images, the default one first: whether they can be used, what they hold, and what they may.
#[utoipa::path(get, path = "/v1/image-stores", tag = "images", operation_id = "list_image_stores",
    responses((status = 200, body = ImageStoreList)))]
pub(crate) async fn stores(State(shared): State<Shared>) -> Result<Json<ImageStoreList>, Problem> {
    let items = shared.host.image_stores().await?;
    Ok(Json(ImageStoreList { items }))
}

/// Copies in the default store of images of slow stores, and those that are to come.
#[utoipa::path(get, path = "/v1/image-cache", tag = "images", operation_id = "show_image_cache",
    responses((status = 200, body = ImageCache)))]
pub(crate) async fn show(State(shared): State<Shared>) -> Result<Json<ImageCache>, Problem> {
    Ok(Json(shared.host.image_cache().await?))
}

/// Asks for the copy of an image: it is made when the queue is looked at next.
#[utoipa::path(put, path = "/v1/image-cache/{image}", tag = "images", operation_id = "cache_image",
    params(("image" = String, Path, description = "Id, name, alias, digest or reference")),
    responses((status = 200, body = ImageCacheEntry), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody, description = "It is in no slow store, or in the default store itself")))]
pub(crate) async fn put(
    State(shared): State<Shared>,
    Segment(image): Segment,
) -> Result<Json<ImageCacheEntry>, Problem> {
    Ok(Json(shared.host.queue_image(&image).await?))
}

/// Takes an image out of the cache, or out of the queue.
#[utoipa::path(delete, path = "/v1/image-cache/{image}", tag = "images", operation_id = "evict_image",
    params(("image" = String, Path, description = "Id, name, alias, digest or reference")),
    responses((status = 204), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody, description = "Machines or volumes use it, or no other store has it")))]
pub(crate) async fn evict(State(shared): State<Shared>, Segment(image): Segment) -> Result<StatusCode, Problem> {
    shared.host.evict_image(&image).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Takes everything out of the cache that nobody uses, or everything out of the queue.
#[utoipa::path(delete, path = "/v1/image-cache", tag = "images", operation_id = "clear_image_cache",
    params(("state" = ImageCacheState, Query, description = "`cached` or `queued`")), responses((status = 204)))]
pub(crate) async fn clear(
    State(shared): State<Shared>,
    Params(params): Params<ClearParams>,
) -> Result<StatusCode, Problem> {
    shared.host.clear_cache(params.state).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Removes copies until they take no more than they may, those that were not used for longest first; tells what is left.
#[utoipa::path(post, path = "/v1/image-cache/prune", tag = "images", operation_id = "prune_image_cache",
    responses((status = 200, body = ImageCache)))]
pub(crate) async fn prune(State(shared): State<Shared>) -> Result<Json<ImageCache>, Problem> {
    shared.host.prune_cache().await?;
    Ok(Json(shared.host.image_cache().await?))
}
