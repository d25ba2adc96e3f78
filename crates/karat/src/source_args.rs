//! What can be typed after `karat boot-source`.

use api_types::{BootSourceFrom, BootSourceGarbageCollect, BootSourceRetention, BootSourceWish, ByteSize, ImageImport};
use clap::{Subcommand, ValueEnum};

use crate::image_args::parse_import;

#[derive(Debug, Subcommand)]
pub(crate) enum BootSourceCommand {
    /// List boot sources.
    Ls,
    /// Show one boot source.
    Show {
        /// Name.
        source: String,
    },
    /// Track an image under a name, or change how one is tracked.
    Set(Box<SetSourceArgs>),
    /// Look for a newer image now, and import it.
    Sync {
        /// Names.
        #[arg(required_unless_present = "all")]
        sources: Vec<String>,
        /// All that are switched on.
        #[arg(long, conflicts_with = "sources")]
        all: bool,
    },
    /// Switch boot sources on.
    Enable {
        /// Names.
        #[arg(required = true)]
        sources: Vec<String>,
    },
    /// Switch boot sources off; their images and aliases stay.
    Disable {
        /// Names.
        #[arg(required = true)]
        sources: Vec<String>,
    },
    /// Remove boot sources that were not defined in files, and changes to those that were.
    Rm {
        /// Names.
        #[arg(required = true)]
        sources: Vec<String>,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct SetSourceArgs {
    /// Name.
    pub(crate) source: String,
    /// `docker://…`, `https://…`, `s3://…`, or an absolute path.
    #[arg(long, value_parser = parse_import)]
    from: Option<ImageImport>,
    /// URL of a file of digests that lists the image, as SHA256SUMS; beside an `https://…`.
    #[arg(long, value_name = "URL", requires = "from")]
    sums: Option<String>,
    /// URL of its detached OpenPGP signature.
    #[arg(long, value_name = "URL", requires = "sums")]
    sums_signature: Option<String>,
    /// When to look: five cron fields in UTC, or @daily and the like.
    #[arg(long, value_name = "CRON")]
    schedule: Option<String>,
    /// How much later than the schedule it may be looked for, seconds.
    #[arg(long, value_name = "SECONDS")]
    jitter: Option<u32>,
    /// Alias that leads to the newest import.
    #[arg(long, value_name = "ALIAS")]
    managed: Option<String>,
    /// How many imports are kept.
    #[arg(long, value_name = "NUMBER")]
    keep: Option<u32>,
    /// Whether older imports that nothing uses are removed.
    #[arg(long, value_enum)]
    collect: Option<Collect>,
    /// What becomes of the imports when the source is removed.
    #[arg(long, value_enum)]
    retention: Option<Retention>,
    /// Store the imports go to.
    #[arg(long)]
    store: Option<String>,
    /// Largest disk that is imported, as 30Gi.
    #[arg(long, value_name = "SIZE")]
    max_size: Option<ByteSize>,
    /// A line that tells what it is.
    #[arg(long)]
    description: Option<String>,
}

/// What becomes of older imports.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Collect {
    /// Those that nothing uses go.
    Outdated,
    /// They stay.
    Never,
}

/// What becomes of imports when their source is removed.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Retention {
    /// They stay.
    All,
    /// Those that nothing uses go.
    None,
}

impl SetSourceArgs {
    pub(crate) fn wish(&self) -> BootSourceWish {
        BootSourceWish {
            description: self.description.clone(),
            source: self.from.clone().map(|from| BootSourceFrom {
                checksums: self.sums.clone(),
                checksums_signature: self.sums_signature.clone(),
                ..source(from)
            }),
            schedule: self.schedule.clone(),
            jitter_seconds: self.jitter,
            managed: self.managed.clone(),
            imports_to_keep: self.keep,
            garbage_collect: self.collect.map(|collect| match collect {
                Collect::Outdated => BootSourceGarbageCollect::Outdated,
                Collect::Never => BootSourceGarbageCollect::Never,
            }),
            retention: self.retention.map(|retention| match retention {
                Retention::All => BootSourceRetention::RetainAll,
                Retention::None => BootSourceRetention::None,
            }),
            enabled: None,
            store: self.store.clone(),
            max_size: self.max_size,
        }
    }
}

fn source(from: ImageImport) -> BootSourceFrom {
    let mut source = BootSourceFrom::default();
    match from {
        ImageImport::Registry { reference, .. } => source.registry = Some(reference),
        ImageImport::WebDownload { url, .. } => source.url = Some(url),
        ImageImport::S3 { url, .. } => source.s3 = Some(url),
        ImageImport::File { path, .. } => source.file = Some(path),
        // What is parsed is none of these.
        ImageImport::Upload { .. } | ImageImport::Snapshot { .. } | ImageImport::Copy { .. } => {}
    }
    source
}
