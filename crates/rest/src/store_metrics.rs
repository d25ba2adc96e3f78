//! The part of `/metrics` on stores of images.

use host::{Metrics, StoreFigures, StoreRoom};

use crate::page::Page;

/// A figure that a store has only while it is there.
type Figure = fn(&StoreRoom) -> u64;

/// All stores, whether they are there or not, and the cache.
pub(crate) fn write(page: &mut Page, metrics: &Metrics) {
    let stores = &metrics.stores;
    page.family("store_info", "gauge", "Always 1; the labels tell of the store.");
    for store in stores {
        let labels = [
            ("store", store.name.as_str()),
            ("default", word(store.is_default)),
            ("complete", word(store.is_complete)),
            ("clone", store.clone_method),
        ];
        page.sample("store_info", &labels, 1);
    }
    page.family("store_available", "gauge", "1 while the store can be used.");
    for store in stores {
        page.sample("store_available", &labels(store), u8::from(store.is_available));
    }
    let figures: [(&str, &str, Figure); 5] = [
        (
            "store_shares_root_filesystem",
            "1 while the store is on the file system of /.",
            |room| u64::from(room.shares_root),
        ),
        ("store_images", "Images in the store.", |room| room.images),
        ("store_used_bytes", "Space of the store's images.", |room| {
            room.used_bytes
        }),
        ("store_free_bytes", "Space left on the store's file system.", |room| {
            room.free_bytes
        }),
        ("store_size_bytes", "Size of the store's file system.", |room| {
            room.size_bytes
        }),
    ];
    for (name, help, figure) in figures {
        page.family(name, "gauge", help);
        for store in stores {
            if let Some(room) = &store.room {
                page.sample(name, &labels(store), figure(room));
            }
        }
    }
    page.family("store_quota_bytes", "gauge", "Most space the store's images may take.");
    for store in stores {
        if let Some(quota) = store.quota_bytes {
            page.sample("store_quota_bytes", &labels(store), quota);
        }
    }
    write_cache(page, metrics);
}

fn write_cache(page: &mut Page, metrics: &Metrics) {
    let cache = &metrics.cache;
    let counters = [
        (
            "image_cache_hits_total",
            "Uses of an image whose copy was in the cache.",
            cache.hits,
        ),
        (
            "image_cache_misses_total",
            "Uses of an image that had to be copied first.",
            cache.misses,
        ),
        (
            "image_cache_evictions_total",
            "Copies removed from the cache for want of room.",
            cache.evictions,
        ),
    ];
    for (name, help, value) in counters {
        page.family(name, "counter", help);
        page.sample(name, &[], value);
    }
    page.family(
        "image_cache_images",
        "gauge",
        "Images in the cache, and those that are to come.",
    );
    page.sample("image_cache_images", &[("state", "cached")], cache.images);
    page.sample("image_cache_images", &[("state", "queued")], cache.queued);
    page.gauge(
        "image_cache_bytes",
        "Space of the copies in the cache.",
        cache.used_bytes,
    );
    page.gauge(
        "image_cache_max_bytes",
        "Most space of copies in the cache.",
        cache.max_bytes,
    );
}

fn labels(store: &StoreFigures) -> [(&str, &str); 1] {
    [("store", &store.name)]
}

const fn word(is: bool) -> &'static str {
    if is { "true" } else { "false" }
}
