//! `/healthz`.

use api_types::Health;
use axum::Json;

/// The daemon is there.
#[utoipa::path(get, path = "/healthz", tag = "host", operation_id = "health", responses((status = 200, body = Health)))]
pub(crate) async fn show() -> Json<Health> {
    Json(Health {
        status: "ok".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}
