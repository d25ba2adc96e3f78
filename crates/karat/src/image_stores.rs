//! `karat image store …` and `karat image cache …`.

use api_types::{ImageCache, ImageCacheEntry, ImageCacheState, ImageStore};
use client::Client;

use crate::args::Format;
use crate::image_args::{CacheCommand, StoreCommand};
use crate::output::{columns, human, say, word, write};

pub(crate) async fn stores(client: &Client, command: StoreCommand, format: Format) -> anyhow::Result<()> {
    match command {
        StoreCommand::Ls => write(format, &client.image_stores().await?, |stores| table(stores)),
    }
}

pub(crate) async fn cache(client: &Client, command: CacheCommand, format: Format) -> anyhow::Result<()> {
    match command {
        CacheCommand::Ls => write(format, &client.image_cache().await?, list)?,
        CacheCommand::Add { images } => {
            for image in images {
                let entry = client.cache_image(&image).await?;
                say(&format!("{image} is {}", word(&entry.state)));
            }
        }
        CacheCommand::Rm {
            images,
            all_cached,
            all_queued,
        } => {
            for image in images {
                client.evict_image(&image).await?;
                say(&format!("took {image} out of the cache"));
            }
            let all = [
                (all_cached, ImageCacheState::Cached),
                (all_queued, ImageCacheState::Queued),
            ];
            for (_, state) in all.into_iter().filter(|(wanted, _)| *wanted) {
                client.clear_image_cache(state).await?;
                say(&format!("took all out that were {}", word(&state)));
            }
        }
        CacheCommand::Prune => write(format, &client.prune_image_cache().await?, list)?,
    }
    Ok(())
}

fn table(stores: &[ImageStore]) -> String {
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), human);
    let row = |store: &ImageStore| {
        [
            store.name.clone(),
            word(&store.state),
            if store.cached { "yes" } else { "" }.to_owned(),
            store.images.map_or_else(|| "-".to_owned(), |images| images.to_string()),
            size(store.used_bytes),
            size(store.quota_bytes),
            size(store.free_bytes),
            store.problem.clone().unwrap_or_default(),
        ]
    };
    columns(
        ["NAME", "STATE", "CACHED", "IMAGES", "USED", "QUOTA", "FREE", "PROBLEM"],
        &stores.iter().map(row).collect::<Vec<_>>(),
    )
}

fn list(cache: &ImageCache) -> String {
    let row = |entry: &ImageCacheEntry| {
        [
            entry.images.first().unwrap_or(&entry.digest).clone(),
            word(&entry.state),
            entry.size_bytes.map_or_else(|| "-".to_owned(), human),
            entry.hits.to_string(),
            entry.used_at.strftime("%Y-%m-%d %H:%M").to_string(),
            entry.problem.clone().unwrap_or_else(|| entry.used_by.join(", ")),
        ]
    };
    let rows: Vec<_> = cache.items.iter().map(row).collect();
    let room = format!("{} of {}\n", human(cache.used_bytes), human(cache.max_bytes));
    columns(["IMAGE", "STATE", "SIZE", "HITS", "USED (UTC)", "USED BY"], &rows) + &room
}
