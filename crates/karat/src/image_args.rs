//! What can be typed after `karat image`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use api_types::{ImageCreate, ImageImport, ImagePatch, ImageSums, ImportOptions};
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Pull a container disk from a registry.
    Pull {
        /// `registry/repository[:tag][@sha256:…]`.
        reference: String,
    },
    /// List images.
    Ls {
        /// Those that are hidden instead.
        #[arg(long)]
        hidden: bool,
        /// Those that are private, shared, community or public.
        #[arg(long)]
        visibility: Option<String>,
        /// Those of an owner.
        #[arg(long)]
        owner: Option<String>,
    },
    /// Show one image.
    Show {
        /// Id, name, alias, digest, or a reference it was pulled by.
        image: String,
    },
    /// Record an image under a name, and import into it where `--from` says from where.
    Create(Box<CreateImageArgs>),
    /// Import into a record that has no data yet, or whose import failed.
    Import {
        /// Id or name.
        image: String,
        /// `docker://…`, `https://…`, `s3://…`, or an absolute path.
        #[arg(long, value_parser = parse_import)]
        from: ImageImport,
        #[command(flatten)]
        options: Box<ImportArgs>,
    },
    /// Send a file as the data of a record, which is made where there is none. It may be packed (gzip, xz, zstd, bzip2). What breaks off
    /// is gone on with, also by a second command with the same file.
    Upload(UploadImageArgs),
    /// Copy an image to further stores.
    Copy {
        /// Id, name, digest or reference.
        image: String,
        /// Names of stores that do not have it; `karat image import-info` lists them.
        #[arg(required_unless_present = "all_stores", conflicts_with = "all_stores")]
        stores: Vec<String>,
        /// All stores that do not have it.
        #[arg(long)]
        all_stores: bool,
        /// Whether some of them may fail. Default: true.
        #[arg(long, value_name = "BOOL")]
        allow_failure: Option<bool>,
    },
    /// Take an image out of one of several stores.
    Displace {
        /// Id, name, digest or reference.
        image: String,
        /// Name of the store.
        store: String,
    },
    /// Change what is recorded of an image.
    Set(Box<SetImageArgs>),
    /// Read images' bytes and compare them with their digests; what is damaged is deactivated.
    Verify {
        /// Ids, names, digests or references.
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Publish an image as a container disk, as `karat run` and others pull it.
    Push {
        /// Id, name, digest or reference.
        image: String,
        /// Where to: `registry/repository:tag`.
        reference: String,
    },
    /// Keep images from being used; machines that were made from them go on.
    Deactivate {
        /// Ids, names, digests or references.
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Let images be used again.
    Reactivate {
        /// Ids, names, digests or references.
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Show which methods of import are enabled.
    ImportInfo,
    /// Stores of images.
    #[command(subcommand)]
    Store(StoreCommand),
    /// Copies of images of slow stores, from which machines and volumes are made.
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Compare records with what is in the stores; fails where they do not agree.
    Fsck,
    /// Remove images nobody uses.
    Rm {
        /// Ids, names, digests or references.
        #[arg(required = true)]
        images: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// List stores of images: whether they can be used, what they hold, and what they may.
    Ls,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// List copies of images of slow stores, and those that are to come.
    Ls,
    /// Ask for copies of images, before they are needed.
    Add {
        /// Ids, names, aliases, digests or references.
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Take images out of the cache, or out of the queue.
    Rm {
        /// Ids, names, aliases, digests or references.
        #[arg(required_unless_present_any = ["all_cached", "all_queued"])]
        images: Vec<String>,
        /// All copies that nobody uses.
        #[arg(long)]
        all_cached: bool,
        /// All that are to come.
        #[arg(long)]
        all_queued: bool,
    },
    /// Remove copies until they take no more than they may, those that were not used for longest first.
    Prune,
}

#[derive(Debug, clap::Args)]
pub(crate) struct CreateImageArgs {
    /// Name, 1–63 of a-z, 0-9 and -.
    pub(crate) name: String,
    /// `docker://…`, `https://…`, `s3://…`, or an absolute path.
    #[arg(long, value_parser = parse_import)]
    pub(crate) from: Option<ImageImport>,
    /// Machine whose disk becomes the image, as it is at one instant. It may run.
    #[arg(long, value_name = "VM", conflicts_with_all = ["from", "from_volume"])]
    from_vm: Option<String>,
    /// Which of the machine's disks. Default: root.
    #[arg(long, requires = "from_vm")]
    disk: Option<String>,
    /// Volume that becomes the image, as it is at one instant.
    #[arg(long, value_name = "VOLUME", conflicts_with = "from")]
    from_volume: Option<String>,
    #[command(flatten)]
    options: ImportArgs,
    /// Whose it is.
    #[arg(long)]
    owner: Option<String>,
    #[command(flatten)]
    pub(crate) fields: ImageFields,
}

#[derive(Debug, clap::Args)]
pub(crate) struct UploadImageArgs {
    /// Name of the record.
    pub(crate) image: String,
    /// The file.
    pub(crate) file: PathBuf,
    /// Digest that the file must have, `sha256:…` or `sha512:…`.
    #[arg(long)]
    pub(crate) digest: Option<String>,
    /// Store it shall be in. Default: the default store.
    #[arg(long)]
    pub(crate) store: Option<String>,
}

/// What is asked of data that comes in.
#[derive(Debug, clap::Args)]
pub(crate) struct ImportArgs {
    /// Digest that the data must have, `sha256:…` or `sha512:…`. May be given several times.
    #[arg(long)]
    digest: Vec<String>,
    /// URL of a file of digests that lists the data, as SHA256SUMS.
    #[arg(long, value_name = "URL")]
    sums: Option<String>,
    /// URL of its detached OpenPGP signature.
    #[arg(long, value_name = "URL", requires = "sums")]
    sums_signature: Option<String>,
    /// Store it shall be in. May be given several times. Default: the default store.
    #[arg(long)]
    store: Vec<String>,
    /// All stores.
    #[arg(long, conflicts_with = "store")]
    all_stores: bool,
    /// Whether it is enough that one of several stores takes it. Default: true.
    #[arg(long, value_name = "BOOL")]
    allow_failure: Option<bool>,
}

impl ImportArgs {
    pub(crate) fn ask(&self, from: ImageImport) -> ImageImport {
        from.with(ImportOptions {
            digests: self.digest.clone(),
            sums: self.sums.as_ref().map(|url| ImageSums {
                url: url.clone(),
                signature_url: self.sums_signature.clone(),
                name: None,
            }),
            stores: self.store.clone(),
            all_stores: self.all_stores,
            allow_failure: self.allow_failure,
        })
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct SetImageArgs {
    /// Id, name, digest or reference.
    pub(crate) image: String,
    /// A new name.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Property to take away. May be given several times.
    #[arg(long, value_name = "KEY")]
    pub(crate) unset_property: Vec<String>,
    #[command(flatten)]
    pub(crate) fields: ImageFields,
}

/// Fields of a record.
#[derive(Debug, clap::Args)]
pub(crate) struct ImageFields {
    /// A line that tells what it is.
    #[arg(long)]
    description: Option<String>,
    /// Smallest disk of a machine made from it, GiB.
    #[arg(long, value_name = "GIB")]
    min_disk: Option<u64>,
    /// Smallest memory of a machine made from it, MiB.
    #[arg(long, value_name = "MIB")]
    min_ram: Option<u64>,
    /// Whether deletion is refused.
    #[arg(long, value_name = "BOOL")]
    protected: Option<bool>,
    /// Whether ordinary lists leave it out.
    #[arg(long, value_name = "BOOL")]
    hidden: Option<bool>,
    /// private, shared, community or public: kept and listed by; everybody who may use the API sees all.
    #[arg(long)]
    visibility: Option<String>,
    /// Word to find it by. May be given several times.
    #[arg(long)]
    tag: Vec<String>,
    /// Property, such as os_distro=debian. May be given several times.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_property)]
    property: Vec<(String, String)>,
}

impl CreateImageArgs {
    /// What is imported at once.
    fn source(&self) -> Option<ImageImport> {
        let snapshot = self.from_vm.is_some() || self.from_volume.is_some();
        let snapshot = snapshot.then(|| ImageImport::Snapshot {
            vm: self.from_vm.clone(),
            disk: self.disk.clone(),
            volume: self.from_volume.clone(),
            options: ImportOptions::default(),
        });
        self.from.clone().or(snapshot)
    }

    pub(crate) fn wish(&self) -> ImageCreate {
        let fields = &self.fields;
        ImageCreate {
            name: Some(self.name.clone()),
            description: fields.description.clone().unwrap_or_default(),
            min_disk_gib: fields.min_disk.unwrap_or(0),
            min_ram_mib: fields.min_ram.unwrap_or(0),
            protected: fields.protected.unwrap_or(false),
            hidden: fields.hidden.unwrap_or(false),
            visibility: fields.visibility.clone(),
            owner: self.owner.clone(),
            tags: fields.tag.iter().cloned().collect(),
            properties: fields.property.iter().cloned().collect(),
            import: self.source().map(|from| self.options.ask(from)),
            ..ImageCreate::default()
        }
    }
}

impl SetImageArgs {
    pub(crate) fn patch(&self) -> ImagePatch {
        let fields = &self.fields;
        let set = fields.property.iter().cloned().map(|(key, value)| (key, Some(value)));
        let unset = self.unset_property.iter().cloned().map(|key| (key, None));
        let properties: BTreeMap<_, _> = set.chain(unset).collect();
        let tags: BTreeSet<_> = fields.tag.iter().cloned().collect();
        ImagePatch {
            name: self.name.clone(),
            description: fields.description.clone(),
            min_disk_gib: fields.min_disk,
            min_ram_mib: fields.min_ram,
            protected: fields.protected,
            hidden: fields.hidden,
            visibility: fields.visibility.clone(),
            tags: (!tags.is_empty()).then_some(tags),
            properties: (!properties.is_empty()).then_some(properties),
            ..ImagePatch::default()
        }
    }
}

pub(crate) fn parse_import(text: &str) -> Result<ImageImport, String> {
    if let Some(reference) = text.strip_prefix("docker://") {
        Ok(ImageImport::registry(reference))
    } else if text.starts_with("http://") || text.starts_with("https://") {
        Ok(ImageImport::web(text))
    } else if text.starts_with("s3://") {
        Ok(ImageImport::s3(text))
    } else if text.starts_with('/') {
        Ok(ImageImport::file(text))
    } else {
        Err("write docker://REFERENCE, https://…, s3://BUCKET/KEY, or an absolute path".to_owned())
    }
}

fn parse_property(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_an_import_comes_from_is_told_by_its_beginning() {
        let of = |text: &str| parse_import(text).map(|from| from.method());
        assert_eq!(of("docker://quay.io/x/y:1"), Ok("registry"));
        assert_eq!(of("https://x/y.qcow2"), Ok("web-download"));
        assert_eq!(of("s3://b/k"), Ok("s3"));
        assert_eq!(of("/srv/x.raw"), Ok("file"));
        assert!(of("x.raw").is_err());
    }
}
