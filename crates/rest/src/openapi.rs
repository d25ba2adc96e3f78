//! The API's description, derived from the handlers.

use axum::http::header;
use axum::response::IntoResponse;
use utoipa::OpenApi;

use crate::{
    boot_sources, console, disks, events, health, image_cache, image_uploads, images, metadefs, metrics, migrations,
    operations, snapshots, uploads, vms, volumes,
};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Karat",
        version = "1.0.0",
        description = "Golden images, volumes, and the machines made from them, on one host. Served on a UNIX socket. Every answer that is no success is `application/problem+json` (RFC 9457) with a stable `code`. POST and PATCH take an `Idempotency-Key`: what was carried out under a key is not carried out again, and the first answer is given once more.",
        license(name = "Apache-2.0")
    ),
    paths(
        health::show,
        document,
        metrics::show,
        images::list,
        images::create,
        images::import_info,
        images::fsck,
        images::show,
        images::edit,
        images::import,
        images::upload,
        image_uploads::begin,
        image_uploads::list,
        image_uploads::show,
        image_uploads::append,
        image_uploads::delete,
        images::displace,
        images::verify,
        images::push,
        images::deactivate,
        images::reactivate,
        images::delete,
        image_cache::stores,
        image_cache::show,
        image_cache::put,
        image_cache::evict,
        image_cache::clear,
        image_cache::prune,
        boot_sources::list,
        boot_sources::show,
        boot_sources::put,
        boot_sources::edit,
        boot_sources::delete,
        boot_sources::sync,
        boot_sources::sync_all,
        metadefs::list,
        metadefs::show,
        metadefs::put,
        metadefs::delete,
        vms::list,
        vms::create,
        vms::show,
        vms::edit,
        vms::delete,
        vms::start,
        vms::stop,
        vms::flatten,
        vms::pause,
        vms::resume,
        vms::reset,
        disks::list,
        disks::attach,
        disks::detach,
        disks::snapshot,
        disks::stream,
        disks::mirror,
        disks::limits,
        migrations::list,
        migrations::begin,
        migrations::show,
        migrations::tune,
        migrations::cancel,
        migrations::decide,
        migrations::list_incoming,
        migrations::show_incoming,
        migrations::receive,
        migrations::give_up,
        console::attach,
        console::log,
        volumes::list,
        volumes::create,
        volumes::show,
        volumes::resize,
        volumes::edit,
        volumes::check,
        volumes::convert,
        volumes::commit,
        volumes::rebase,
        volumes::measure,
        volumes::delete,
        uploads::receive,
        snapshots::list,
        snapshots::create,
        snapshots::show,
        snapshots::restore,
        snapshots::delete,
        operations::list,
        operations::show,
        operations::cancel,
        events::read
    )
)]
struct Document;

/// The OpenAPI document, pretty-printed, with a line feed at its end.
pub fn openapi_json() -> String {
    let mut text = Document::openapi().to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "host", responses((status = 200, description = "OpenAPI 3.1")))]
pub(crate) async fn document() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], openapi_json())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the document is committed.
    const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../api/openapi.json");

    #[test]
    fn the_committed_document_is_fresh() {
        let committed = std::fs::read_to_string(COMMITTED).unwrap_or_default();
        assert!(
            committed == openapi_json(),
            "api/openapi.json is stale: write it anew with cargo run -p karatd -- --print-openapi > api/openapi.json"
        );
    }
}
