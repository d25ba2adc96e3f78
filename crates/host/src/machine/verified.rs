//! Images that are compared with their digests before each start of a machine that was made from them.

use std::sync::Arc;

use api_types::{ErrorCode, Vm};
use images::{ImageDigest, StoreError};
use tokio_util::sync::CancellationToken;

use super::disks::stands_alone;
use crate::context::Context;
use crate::failure::store_code;
use crate::failure::{Failure, chain};
use crate::placing::root_store;

/// Property of images that are compared.
const VERIFY: &str = "verify_on_boot";

/// Fails where the machine's image asks to be compared and is not what it was; nobody makes machines from it then.
pub(super) async fn verified(context: &Arc<Context>, vm: &Vm, give_up: &CancellationToken) -> Result<(), Failure> {
    let Some(text) = vm.image_digest.clone().filter(|_| !stands_alone(vm)) else {
        return Ok(());
    };
    let digest: ImageDigest = text
        .parse()
        .map_err(|error: images::BadDigest| Failure::of(ErrorCode::Internal, &error))?;
    let named = text.clone();
    let rows = context.registry.change(move |change| change.images_of(&named)).await?;
    let asks = |row: &crate::registry::ImageRow| row.record.properties().get(VERIFY) == Some("true");
    if !rows.iter().any(asks) {
        return Ok(());
    }
    let (behind, stop) = (Arc::clone(context), give_up.clone());
    let recorded = root_store(&vm.status).map(str::to_owned);
    let read = tokio::task::spawn_blocking(move || {
        let store = behind.store_behind(recorded.as_deref())?;
        store.verify(&digest, &|| stop.is_cancelled())
    });
    let read = read.await;
    let read = read.map_err(|_| Failure::new(ErrorCode::Internal, "the work was lost"))?;
    if give_up.is_cancelled() {
        return Err(Failure::new(ErrorCode::Cancelled, "the start was given up on request"));
    }
    let Err(error) = read else { return Ok(()) };
    if matches!(error, StoreError::Damaged { .. }) {
        let noted = context.registry.change(move |change| change.deactivate_damaged(&text));
        if let Err(failure) = noted.await {
            tracing::error!(error = %failure, "an image that is damaged can not be deactivated");
        }
    }
    let told = format!(
        "the image of machine {} asks to be verified before each start ({VERIFY}), and it is not what it was: {}",
        vm.spec.name,
        chain(&error)
    );
    Err(Failure::new(store_code(&error), told))
}
