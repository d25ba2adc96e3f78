//! From a reference to a manifest this program can work with.

use serde::Deserialize;

use crate::fetch::Blob;
use crate::layer::{Compression, compression};
use crate::registry::{MANIFEST_MAX, Registry};
use crate::unpack::check_cmdline;
use crate::{BadDigest, ImageDigest, PullError, Reference};

/// Image label with the default kernel command line.
pub(crate) const CMDLINE_LABEL: &str = "io.karat.cmdline";

/// An OCI image manifest or index; what of it matters here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ManifestBody {
    schema_version: u32,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

/// An image configuration; what of it matters here. Docker and OCI write the same names.
#[derive(Deserialize, Default)]
#[serde(default)]
struct ImageConfig {
    config: Option<ConfigSection>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ConfigSection {
    #[serde(rename = "Labels")]
    labels: Option<std::collections::BTreeMap<String, String>>,
}

/// A manifest judged to be usable.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) digest: ImageDigest,
    pub(crate) index_digest: Option<ImageDigest>,
    pub(crate) config: Option<Blob>,
    pub(crate) layers: Vec<(Blob, Compression)>,
}

/// Follows the reference, through an index if there is one, to a manifest for this kind of machine.
pub(crate) async fn resolve(registry: &Registry, reference: &Reference) -> Result<Plan, PullError> {
    let (body, digest) = registry.manifest(&reference.manifest_name()).await?;
    let manifest = parse(registry, &body)?;
    let Some(entries) = manifest.manifests else {
        return plan(registry, manifest, digest, None);
    };
    let fits = |entry: &&Descriptor| {
        let platform = entry.platform.as_ref();
        platform.is_some_and(|platform| platform.os == "linux" && platform.architecture == "amd64")
    };
    let Some(entry) = entries.iter().find(fits) else {
        let name = |platform: &Platform| format!("{}/{}", platform.os, platform.architecture);
        let offered: Vec<String> = entries
            .iter()
            .filter_map(|entry| entry.platform.as_ref())
            .take(20)
            .map(name)
            .collect();
        let offered = if offered.is_empty() {
            "nothing".to_owned()
        } else {
            offered.join(", ")
        };
        return Err(registry.manifest_problem(format!("it has nothing for linux/amd64; it offers {offered}")));
    };
    let chosen = blob(registry, entry)?;
    let (body, digest_of_chosen) = registry.manifest(&chosen.digest.to_string()).await?;
    let manifest = parse(registry, &body)?;
    if manifest.manifests.is_some() {
        return Err(registry.manifest_problem("its index leads to another index"));
    }
    plan(registry, manifest, digest_of_chosen, Some(digest))
}

fn parse(registry: &Registry, body: &[u8]) -> Result<ManifestBody, PullError> {
    let manifest: ManifestBody =
        serde_json::from_slice(body).map_err(|error| registry.manifest_problem(format!("it is malformed: {error}")))?;
    if manifest.schema_version != 2 {
        let version = manifest.schema_version;
        return Err(registry.manifest_problem(format!("schema version {version} is not supported, only 2 is")));
    }
    Ok(manifest)
}

fn plan(
    registry: &Registry,
    manifest: ManifestBody,
    digest: ImageDigest,
    index_digest: Option<ImageDigest>,
) -> Result<Plan, PullError> {
    let Some(layers) = manifest.layers.filter(|layers| !layers.is_empty()) else {
        let kind = manifest.media_type.unwrap_or_default();
        return Err(registry.manifest_problem(format!("it has no layers (media type {kind:?})")));
    };
    let mut total: u64 = 0;
    let mut planned = Vec::new();
    for layer in &layers {
        let Some(compression) = compression(&layer.media_type) else {
            let kind = &layer.media_type;
            return Err(registry.manifest_problem(format!(
                "layer {} has media type {kind:?}; tar, tar+gzip and tar+zstd are supported",
                layer.digest
            )));
        };
        let blob = blob(registry, layer)?;
        total = total
            .checked_add(blob.size)
            .ok_or_else(|| registry.manifest_problem("its layers' sizes are absurd"))?;
        planned.push((blob, compression));
    }
    let config = manifest
        .config
        .as_ref()
        .map(|config| blob(registry, config))
        .transpose()?;
    Ok(Plan {
        digest,
        index_digest,
        config,
        layers: planned,
    })
}

fn blob(registry: &Registry, descriptor: &Descriptor) -> Result<Blob, PullError> {
    let digest = descriptor
        .digest
        .parse()
        .map_err(|error: BadDigest| registry.manifest_problem(error.to_string()))?;
    Ok(Blob {
        digest,
        size: descriptor.size,
    })
}

/// The command line in the image's labels. A configuration that is no JSON object (artifacts may have any) has none.
pub(crate) async fn read_label(registry: &Registry, config: &Blob) -> Result<Option<String>, PullError> {
    use futures_util::StreamExt;
    if config.size > MANIFEST_MAX as u64 {
        return Err(registry.manifest_problem(format!("its configuration is longer than {MANIFEST_MAX} bytes")));
    }
    let mut body = registry.blob(&config.digest, 0).await?;
    let mut bytes = Vec::new();
    let mut broken = None;
    while let Some(piece) = body.stream.next().await {
        match piece {
            Ok(piece) if (bytes.len() + piece.len()) as u64 <= config.size => bytes.extend_from_slice(&piece),
            Ok(_) => {
                return Err(PullError::TooLong {
                    digest: config.digest.clone(),
                    expected_bytes: config.size,
                });
            }
            Err(error) => {
                broken = Some(error.into());
                break;
            }
        }
    }
    if (bytes.len() as u64) < config.size {
        return Err(PullError::BrokeOff {
            digest: config.digest.clone(),
            done_bytes: 0,
            total_bytes: config.size,
            source: broken,
        });
    }
    let found = ImageDigest::of(&bytes);
    if found != config.digest {
        return Err(PullError::DigestMismatch {
            subject: "image configuration".to_owned(),
            expected: config.digest.clone(),
            found,
        });
    }
    let parsed: ImageConfig = serde_json::from_slice(&bytes).unwrap_or_default();
    let label = parsed
        .config
        .and_then(|config| config.labels)
        .and_then(|mut labels| labels.remove(CMDLINE_LABEL));
    label.map(|label| check_cmdline(&label)).transpose()
}
