//! What can be typed about volumes.

use std::path::PathBuf;

use api_types::{
    ByteSize, DiskBus, DiskCache, DiskFormat, DiskLimits, DiskWish, Preallocation, VolumeRepair, VolumeSource,
    VolumeWish,
};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use serde::de::DeserializeOwned;

#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// Create a volume: blank, from a golden image, or as a copy of another volume.
    Create(CreateArgs),
    /// List volumes.
    Ls,
    /// Show one volume.
    Show {
        /// Name or id.
        volume: String,
    },
    /// Make a volume larger. Partitions and file systems in it stay as they are.
    Resize {
        /// Name or id.
        volume: String,
        /// The new size, as 20Gi.
        size: ByteSize,
    },
    /// Remove volumes no machine has.
    Rm {
        /// Names or ids.
        #[arg(required = true)]
        volumes: Vec<String>,
    },
    /// Check a volume, and repair it where that is asked for.
    Check {
        /// Name or id.
        volume: String,
        /// What to repair; no machine may run with the volume.
        #[arg(long, value_parser = words::<VolumeRepair>(&["leaks", "all"]))]
        repair: Option<VolumeRepair>,
    },
    /// Copy a volume into a new one of another form.
    Convert {
        /// Name or id.
        volume: String,
        /// Name of the new volume; the old one stays.
        name: String,
        #[command(flatten)]
        form: FormArgs,
    },
    /// Write the newest file of a volume, as a snapshot made it, into the file below it; no machine may run with it.
    Commit {
        /// Name or id.
        volume: String,
    },
    /// Make a volume stand alone: one file, which shares blocks with no image; no machine may run with it.
    Rebase {
        /// Name or id.
        volume: String,
    },
    /// Tell how large the file of a copy of a volume would be.
    Measure {
        /// Name or id.
        volume: String,
        #[command(flatten)]
        form: FormArgs,
    },
    /// Create a volume from a raw or qcow2 image file of this computer, or go on with sending one.
    Upload(UploadArgs),
    /// Have the machine that runs with a volume go on in an overlay; what the volume holds now stays as it is below.
    Snapshot {
        /// Name or id.
        volume: String,
    },
    /// Make one file of all files of a volume, and of the image it shares blocks with, while its machine runs.
    Stream {
        /// Name or id.
        volume: String,
    },
    /// Copy a volume into a new one while its machine runs; the copy is what the volume holds in the end.
    Copy {
        /// Name or id.
        volume: String,
        /// Name of the new volume.
        name: String,
        /// Format of the copy. Default: that of the volume.
        #[arg(long, value_parser = words::<DiskFormat>(&["raw", "qcow2"]))]
        format: Option<DiskFormat>,
    },
    /// Move a volume into a new file while its machine runs, as one of another format.
    Move {
        /// Name or id.
        volume: String,
        /// Format of the new file. Default: that of the volume.
        #[arg(long, value_parser = words::<DiskFormat>(&["raw", "qcow2"]))]
        format: Option<DiskFormat>,
    },
    /// Keep a volume of a machine to these rates, and to no others: at once, and from each start on.
    Limit(LimitArgs),
    /// Give a machine a volume as a disk: at once on the SCSI bus of one that runs, else from its next start on.
    Attach(AttachArgs),
    /// Take a volume from a machine; from one that runs only if it is on the SCSI bus.
    Detach {
        /// Name or id.
        volume: String,
        /// Name or id of the machine.
        vm: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Name of the volume.
    pub(crate) name: String,
    /// Size, as 10Gi. Default: that of what it is made from.
    #[arg(long)]
    pub(crate) size: Option<ByteSize>,
    /// Make it from this golden image: a digest, or a reference that was pulled.
    #[arg(long, value_name = "IMAGE", conflicts_with = "from_volume")]
    pub(crate) from_image: Option<String>,
    /// Copy all of the image, instead of sharing blocks with it.
    #[arg(long, requires = "from_image")]
    pub(crate) copy: bool,
    /// Copy this volume.
    #[arg(long, value_name = "VOLUME")]
    pub(crate) from_volume: Option<String>,
    #[command(flatten)]
    pub(crate) form: FormArgs,
}

#[derive(Debug, Args)]
pub(crate) struct FormArgs {
    /// How its bytes lie in its file. Default: raw for blank ones, qcow2 for clones of images, else as the source.
    #[arg(long, value_parser = words::<DiskFormat>(&["raw", "qcow2"]))]
    pub(crate) format: Option<DiskFormat>,
    /// Whether its space is taken at once.
    #[arg(long, default_value = "off", value_parser = words::<Preallocation>(&["off", "metadata", "falloc", "full"]))]
    pub(crate) preallocation: Preallocation,
    /// Cluster of a qcow2 volume, as 64Ki.
    #[arg(long)]
    pub(crate) cluster_size: Option<ByteSize>,
    /// Compress what is copied; copies into qcow2 only.
    #[arg(long)]
    pub(crate) compressed: bool,
}

#[derive(Debug, Args)]
pub(crate) struct UploadArgs {
    /// Name of the volume. One that was sent in part is gone on with.
    pub(crate) name: String,
    /// The image file.
    pub(crate) file: PathBuf,
    /// Size the disk is grown to. Default: its own.
    #[arg(long)]
    pub(crate) size: Option<ByteSize>,
    /// SHA-256 of the file, as sha256sum prints it; something else is refused.
    #[arg(long, value_name = "DIGITS")]
    pub(crate) sha256: Option<String>,
    #[command(flatten)]
    pub(crate) form: FormArgs,
}

#[derive(Debug, Args)]
pub(crate) struct LimitArgs {
    /// Name or id of the volume.
    pub(crate) volume: String,
    /// Bytes per second, read and written together, as 100Mi.
    #[arg(long)]
    bytes_per_second: Option<ByteSize>,
    /// Bytes per second read.
    #[arg(long)]
    read_bytes_per_second: Option<ByteSize>,
    /// Bytes per second written.
    #[arg(long)]
    write_bytes_per_second: Option<ByteSize>,
    /// Operations per second of any kind.
    #[arg(long)]
    iops: Option<u64>,
    /// Reads per second.
    #[arg(long)]
    read_iops: Option<u64>,
    /// Changes per second.
    #[arg(long)]
    write_iops: Option<u64>,
    /// How much may be used at once after a pause, in milliseconds of each rate.
    #[arg(long)]
    burst_ms: Option<u32>,
}

impl LimitArgs {
    /// What is asked for.
    pub(crate) const fn limits(&self) -> DiskLimits {
        DiskLimits {
            bytes_per_s: self.bytes_per_second,
            read_bytes_per_s: self.read_bytes_per_second,
            write_bytes_per_s: self.write_bytes_per_second,
            iops: self.iops,
            read_iops: self.read_iops,
            write_iops: self.write_iops,
            burst_ms: self.burst_ms,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    /// Name or id of the volume.
    pub(crate) volume: String,
    /// Name or id of the machine.
    pub(crate) vm: String,
    /// Name of the disk within the machine. Default: the volume's.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// How the guest reaches it.
    #[arg(long, default_value = "virtio", value_parser = words::<DiskBus>(&["virtio", "scsi"]))]
    pub(crate) bus: DiskBus,
    /// What the host does with data on its way to the storage.
    #[arg(long, default_value = "cached", value_parser = words::<DiskCache>(&["cached", "direct", "writethrough"]))]
    pub(crate) cache: DiskCache,
    /// The guest may only read; then other machines may have the volume too.
    #[arg(long)]
    pub(crate) read_only: bool,
    /// The guest sees a CD-ROM drive; bus scsi only.
    #[arg(long)]
    pub(crate) cdrom: bool,
    /// Serial number the guest sees. Default: the beginning of the name.
    #[arg(long)]
    pub(crate) serial: Option<String>,
    /// Place among the disks, 1 or more; those without come last.
    #[arg(long, value_name = "PLACE")]
    pub(crate) boot_order: Option<u16>,
    /// Bytes per second that are kept to, read and written together.
    #[arg(long, value_name = "BYTES")]
    pub(crate) bytes_per_second: Option<ByteSize>,
    /// Operations per second that are kept to.
    #[arg(long)]
    pub(crate) iops: Option<u64>,
}

/// Words of the API as choices of the command line.
pub(crate) fn words<T: DeserializeOwned + Clone + Send + Sync + 'static>(
    known: &'static [&'static str],
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(known).try_map(|word| serde_json::from_value::<T>(word.into()))
}

impl CreateArgs {
    /// What is asked for.
    pub(crate) fn wish(self) -> VolumeWish {
        let copy = self.copy;
        let source = match (self.from_image, self.from_volume) {
            (Some(image), _) => VolumeSource::Image { image, copy },
            (None, Some(volume)) => VolumeSource::Volume { volume },
            (None, None) => VolumeSource::Blank {},
        };
        self.form.wish(self.name, source, self.size)
    }
}

impl UploadArgs {
    /// What is asked for.
    pub(crate) fn wish(&self) -> VolumeWish {
        let source = VolumeSource::Upload {
            sha256: self.sha256.clone(),
        };
        self.form.wish(self.name.clone(), source, self.size)
    }
}

impl FormArgs {
    fn wish(&self, name: String, source: VolumeSource, size: Option<ByteSize>) -> VolumeWish {
        VolumeWish {
            name,
            source,
            size,
            format: self.format,
            preallocation: self.preallocation,
            cluster_size: self.cluster_size,
            compressed: self.compressed,
        }
    }
}

impl AttachArgs {
    /// What is asked for.
    pub(crate) fn wish(self) -> DiskWish {
        DiskWish {
            name: self.name,
            bus: self.bus,
            cache: self.cache,
            read_only: self.read_only,
            cdrom: self.cdrom,
            serial: self.serial,
            boot_order: self.boot_order,
            limits: DiskLimits {
                bytes_per_s: self.bytes_per_second,
                iops: self.iops,
                ..DiskLimits::default()
            },
            ..DiskWish::from_volume(self.volume)
        }
    }
}

/// A volume for a new machine: `NAME[,ro][,cdrom][,bus=virtio|scsi][,cache=…][,serial=…][,boot-order=N]`.
pub(crate) fn parse_disk(text: &str) -> Result<DiskWish, String> {
    let mut words = text.split(',');
    let name = words
        .next()
        .filter(|name| !name.is_empty())
        .ok_or("name a volume first")?;
    let mut wish = DiskWish {
        name: Some(name.to_owned()),
        ..DiskWish::from_volume(name)
    };
    for word in words {
        match word.split_once('=') {
            None if word == "ro" => wish.read_only = true,
            None if word == "cdrom" => wish.cdrom = true,
            Some(("bus", bus)) => wish.bus = parse_word(bus)?,
            Some(("cache", cache)) => wish.cache = parse_word(cache)?,
            Some(("serial", serial)) => wish.serial = Some(serial.to_owned()),
            Some(("boot-order", order)) => {
                wish.boot_order = Some(
                    order
                        .parse()
                        .map_err(|_| format!("boot-order: {order:?} is no number"))?,
                );
            }
            _ => {
                return Err(format!(
                    "{word:?} is not understood; take ro, cdrom, bus=, cache=, serial= or boot-order="
                ));
            }
        }
    }
    Ok(wish)
}

fn parse_word<T: DeserializeOwned>(word: &str) -> Result<T, String> {
    serde_json::from_value(word.into()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_of_a_new_machine_is_a_volume_and_how_it_is_attached() {
        let wish = parse_disk("data,ro,bus=scsi,cache=direct,serial=s1,boot-order=2").unwrap();
        assert_eq!(wish.volume.as_deref(), Some("data"));
        assert_eq!(
            (wish.bus, wish.cache, wish.read_only),
            (DiskBus::Scsi, DiskCache::Direct, true)
        );
        assert_eq!((wish.serial.as_deref(), wish.boot_order), (Some("s1"), Some(2)));
        assert_eq!(
            parse_disk("data").unwrap(),
            DiskWish {
                name: Some("data".to_owned()),
                ..DiskWish::from_volume("data")
            }
        );
        for bad in ["", ",ro", "data,rw", "data,bus=ide", "data,boot-order=x", "data,size=1"] {
            assert!(parse_disk(bad).is_err(), "{bad}");
        }
    }
}
