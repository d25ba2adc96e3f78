//! From which store a disk is made, and in which way.

use api_types::VmStatus;
use images::{CloneWay, Store, StoreError, StoreName};

use crate::context::Context;

impl Context {
    /// How disks are made from images of a store, and which setting says so.
    pub(crate) fn clone_way(&self, store: &StoreName) -> (CloneWay, String) {
        let further = self.config.images.stores.iter().find(|one| one.name == *store);
        match further.and_then(|one| one.root_disks) {
            Some(way) => (way, format!("root_disks of image store {store}")),
            None => (self.config.root_disks, "root_disks".to_owned()),
        }
    }

    /// The store with the image that a disk was made from: the default one unless the disk's record names another. Blocks, but not for
    /// long.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub(crate) fn store_behind(&self, recorded: Option<&str>) -> Result<Store, StoreError> {
        let Some(recorded) = recorded else {
            return Ok(self.store.clone());
        };
        let name = recorded.parse::<StoreName>();
        let store = name.as_ref().ok().and_then(|name| self.stores.get(name));
        let Some(store) = store else {
            return Err(StoreError::Unavailable {
                store: name.unwrap_or_default(),
                problem: format!("no store {recorded:?} is configured any more (images.store in karat.toml)"),
            });
        };
        store.ask_now(Store::check_available)?;
        Ok(store.clone())
    }

    /// How a disk's record names a store; nothing for the default one.
    pub(crate) fn recorded(&self, store: &Store) -> Option<String> {
        (store.name() != self.store.name()).then(|| store.name().to_string())
    }
}

/// The store that a machine's record names.
pub(crate) fn root_store(status: &VmStatus) -> Option<&str> {
    status.root_disk.as_ref().and_then(|root| root.store.as_deref())
}

/// As it is configured and told.
pub(crate) const fn way_name(way: CloneWay) -> &'static str {
    match way {
        CloneWay::Overlay => "overlay",
        CloneWay::Reflink => "reflink",
        CloneWay::Copy => "copy",
    }
}
