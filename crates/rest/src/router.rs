//! Paths and who answers them.

use api_types::ErrorCode;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::from_fn_with_state;
use axum::routing::{delete, get, post, put};
use host::{Failure, Host};

use crate::limits::BODY_MAX;
use crate::problem::Problem;
use crate::serve::Closing;
use crate::shared::Shared;
use crate::{
    boot_sources, console, disks, events, health, image_cache, image_uploads, images, metadefs, metrics, migrations,
    once, openapi, operations, snapshots, uploads, vms, volumes,
};

/// The whole API.
pub fn router(host: Host, closing: Closing) -> Router {
    let shared = Shared { host, closing };
    Router::new()
        .route("/healthz", get(health::show))
        .route("/metrics", get(metrics::show))
        .route("/openapi.json", get(openapi::document))
        .merge(image_routes())
        .merge(migration_routes())
        .route("/v1/vms", get(vms::list).post(vms::create))
        .route("/v1/vms/{vm}", get(vms::show).patch(vms::edit).delete(vms::delete))
        .route("/v1/vms/{vm}/start", post(vms::start))
        .route("/v1/vms/{vm}/stop", post(vms::stop))
        .route("/v1/vms/{vm}/flatten", post(vms::flatten))
        .route("/v1/vms/{vm}/pause", post(vms::pause))
        .route("/v1/vms/{vm}/resume", post(vms::resume))
        .route("/v1/vms/{vm}/reset", post(vms::reset))
        .route("/v1/vms/{vm}/console", get(console::attach))
        .route("/v1/vms/{vm}/log", get(console::log))
        .route("/v1/vms/{vm}/disks", get(disks::list).post(disks::attach))
        .route("/v1/vms/{vm}/disks/{disk}", delete(disks::detach))
        .route("/v1/vms/{vm}/disks/{disk}/snapshot", post(disks::snapshot))
        .route("/v1/vms/{vm}/disks/{disk}/stream", post(disks::stream))
        .route("/v1/vms/{vm}/disks/{disk}/mirror", post(disks::mirror))
        .route("/v1/vms/{vm}/disks/{disk}/limits", post(disks::limits))
        .route("/v1/volumes", get(volumes::list).post(volumes::create))
        .route(
            "/v1/volumes/{volume}",
            get(volumes::show).patch(volumes::edit).delete(volumes::delete),
        )
        .route("/v1/volumes/{volume}/resize", post(volumes::resize))
        .route("/v1/volumes/{volume}/check", post(volumes::check))
        .route("/v1/volumes/{volume}/convert", post(volumes::convert))
        .route("/v1/volumes/{volume}/commit", post(volumes::commit))
        .route("/v1/volumes/{volume}/rebase", post(volumes::rebase))
        .route("/v1/volumes/{volume}/measure", post(volumes::measure))
        .route("/v1/volumes/{volume}/data", put(uploads::receive))
        .route("/v1/snapshots", get(snapshots::list).post(snapshots::create))
        .route(
            "/v1/snapshots/{snapshot}",
            get(snapshots::show).delete(snapshots::delete),
        )
        .route("/v1/snapshots/{snapshot}/restore", post(snapshots::restore))
        .route("/v1/operations", get(operations::list))
        .route("/v1/operations/{id}", get(operations::show).delete(operations::cancel))
        .route("/v1/events", get(events::read))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(from_fn_with_state(shared.clone(), once::keep))
        .with_state(shared)
}

/// Images, and what is about them.
fn image_routes() -> Router<Shared> {
    Router::new()
        .route("/v1/images", get(images::list).post(images::create))
        .route("/v1/images/import-info", get(images::import_info))
        .route("/v1/images/fsck", get(images::fsck))
        .route(
            "/v1/images/{image}",
            get(images::show).patch(images::edit).delete(images::delete),
        )
        .route("/v1/images/{image}/import", post(images::import))
        .route("/v1/images/{image}/data", put(images::upload))
        .route(
            "/v1/images/{image}/uploads",
            get(image_uploads::list).post(image_uploads::begin),
        )
        .route(
            "/v1/images/{image}/uploads/{upload}",
            get(image_uploads::show)
                .patch(image_uploads::append)
                .delete(image_uploads::delete),
        )
        .route("/v1/images/{image}/stores/{store}", delete(images::displace))
        .route("/v1/images/{image}/verify", post(images::verify))
        .route("/v1/images/{image}/push", post(images::push))
        .route("/v1/images/{image}/deactivate", post(images::deactivate))
        .route("/v1/images/{image}/reactivate", post(images::reactivate))
        .route("/v1/image-stores", get(image_cache::stores))
        .route("/v1/image-cache", get(image_cache::show).delete(image_cache::clear))
        .route("/v1/image-cache/prune", post(image_cache::prune))
        .route(
            "/v1/image-cache/{image}",
            put(image_cache::put).delete(image_cache::evict),
        )
        .route("/v1/boot-sources", get(boot_sources::list))
        .route(
            "/v1/boot-sources/{source}",
            get(boot_sources::show)
                .put(boot_sources::put)
                .patch(boot_sources::edit)
                .delete(boot_sources::delete),
        )
        .route("/v1/boot-sources/{source}/sync", post(boot_sources::sync))
        // No source can be called so.
        .route("/v1/boot-sources/-/sync", post(boot_sources::sync_all))
        .route("/v1/metadefs", get(metadefs::list))
        .route(
            "/v1/metadefs/{namespace}",
            get(metadefs::show).put(metadefs::put).delete(metadefs::delete),
        )
}

/// Machines that move between hosts.
fn migration_routes() -> Router<Shared> {
    Router::new()
        .route("/v1/migrations", get(migrations::list).post(migrations::begin))
        .route(
            "/v1/migrations/{id}",
            get(migrations::show).patch(migrations::tune).delete(migrations::cancel),
        )
        .route("/v1/migrations/{id}/decision", post(migrations::decide))
        .route(
            "/v1/incoming-migrations",
            get(migrations::list_incoming).post(migrations::receive),
        )
        .route(
            "/v1/incoming-migrations/{id}",
            get(migrations::show_incoming).delete(migrations::give_up),
        )
}

async fn unknown_path(uri: Uri) -> Problem {
    let text = format!("there is no {:?}; /openapi.json lists every path", uri.path());
    Failure::new(ErrorCode::UnknownPath, text).into()
}

async fn wrong_method(method: Method, uri: Uri) -> Problem {
    let text = format!(
        "{method} is not possible on {:?}; /openapi.json tells what is",
        uri.path()
    );
    Problem::invalid(text).with_status(StatusCode::METHOD_NOT_ALLOWED)
}
