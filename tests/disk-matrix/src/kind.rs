//! One kind of image: what `qemu-img` is told, and what is done to the image before the engine sees it.

use crate::stack::Format;

/// 1 MiB.
pub(crate) const MIB: u64 = 1 << 20;

/// What the image has been through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// Nothing.
    Empty,
    /// Random writes, zeroes and discards.
    Scattered,
    /// Every cluster compressed.
    Compressed,
    /// Every other stretch compressed, then random writes over some of it.
    Mixed,
    /// Zero clusters with and without space of their own.
    Zeroes,
}

/// What is below the image.
#[derive(Debug, Clone, Copy)]
pub struct Backing {
    /// Format of the file right below.
    pub format: Format,
    /// Its size, bytes.
    pub size: u64,
    /// Its cluster size, bytes.
    pub cluster: u64,
    /// Is it named relative to the image?
    pub relative: bool,
    /// Files below the image.
    pub depth: u32,
    /// Is it compressed?
    pub compressed: bool,
    /// Has it subclusters?
    pub extended: bool,
}

/// What has been added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extra {
    /// Internal snapshots, with changes after each.
    Snapshots(u32),
    /// Grown after a snapshot was taken.
    Grown,
    /// A bitmap that follows writes, or one that does not.
    Bitmap(bool),
    /// A header extension that nobody knows, with this many bytes.
    UnknownExtension(u32),
    /// A feature bit that nobody knows and that may be ignored: bit of the compatible features.
    UnknownCompatible,
    /// One that has to be cleared by whoever does not know it.
    UnknownAutoclear,
    /// One that must be understood: the image has to be refused.
    UnknownIncompatible,
    /// Data in a file of its own.
    DataFile,
    /// The same, and that file is a raw image by itself.
    DataFileRaw,
    /// Ciphertext: the image has to be refused.
    Encrypted(&'static str),
}

/// One kind.
#[derive(Debug, Clone)]
pub struct Kind {
    /// Its name.
    pub name: String,
    /// `-o` of `qemu-img create`.
    pub options: Vec<String>,
    /// Cluster size, bytes.
    pub cluster: u64,
    /// Capacity, bytes.
    pub size: u64,
    /// History.
    pub fill: Fill,
    /// What is below.
    pub backing: Option<Backing>,
    /// Further features.
    pub extras: Vec<Extra>,
}

impl Kind {
    /// A version 3 image with clusters of this size and a history.
    pub(crate) fn new(name: impl Into<String>, cluster: u64) -> Self {
        // The odd sectors make the last cluster a part of one.
        let size = match cluster {
            ..4096 => 3 * MIB + 512 * 3,
            4096..=65_536 => 8 * MIB + 512 * 5,
            65_537..=524_288 => 16 * MIB,
            _ => 32 * MIB + 4096,
        };
        Self {
            name: name.into(),
            options: vec!["compat=1.1".to_owned(), format!("cluster_size={cluster}")],
            cluster,
            size,
            fill: Fill::Scattered,
            backing: None,
            extras: Vec::new(),
        }
    }

    pub(crate) fn v2(mut self) -> Self {
        for option in &mut self.options {
            if option == "compat=1.1" {
                "compat=0.10".clone_into(option);
            }
        }
        self
    }

    pub(crate) fn option(mut self, option: impl Into<String>) -> Self {
        self.options.push(option.into());
        self
    }

    pub(crate) fn fill(mut self, fill: Fill) -> Self {
        self.fill = fill;
        self
    }

    pub(crate) fn extra(mut self, extra: Extra) -> Self {
        self.extras.push(extra);
        self
    }

    pub(crate) fn size(mut self, size: u64) -> Self {
        self.size = size;
        self
    }

    /// Over a file of this format with this share of the image's size, percent.
    pub(crate) fn over(mut self, format: Format, percent: u64) -> Self {
        self.backing = Some(Backing {
            format,
            size: (self.size * percent / 100).next_multiple_of(512),
            cluster: self.cluster.max(512),
            relative: false,
            depth: 1,
            compressed: false,
            extended: false,
        });
        self
    }

    /// Changes what is below.
    pub(crate) fn below(mut self, change: impl FnOnce(&mut Backing)) -> Self {
        if let Some(backing) = &mut self.backing {
            change(backing);
        }
        self
    }

    /// Whether the image can not be used, and must be refused with words that say why.
    pub fn refused(&self) -> Option<&'static [&'static str]> {
        self.extras.iter().find_map(|extra| match extra {
            Extra::Encrypted(how) if how.starts_with("luks") => Some(["luks", "encrypt"].as_slice()),
            Extra::Encrypted(_) => Some(["aes", "encrypt"].as_slice()),
            Extra::UnknownIncompatible => Some(["feature", "incompatible"].as_slice()),
            _ => None,
        })
    }

    /// Internal snapshots that the image has.
    pub fn snapshots(&self) -> u32 {
        let of = |extra: &Extra| match extra {
            Extra::Snapshots(count) => *count,
            Extra::Grown => 1,
            _ => 0,
        };
        self.extras.iter().map(of).sum()
    }

    /// Whether QEMU could grow it: version 2 snapshots do not say how large the disk was.
    pub fn grows(&self) -> bool {
        let old = self.options.iter().any(|option| option == "compat=0.10");
        // A bitmap that does not follow the disk is not true for a larger one.
        let idle = self.extras.contains(&Extra::Bitmap(false));
        !(old && self.snapshots() > 0 || idle || self.extras.contains(&Extra::DataFileRaw))
    }

    /// Whether an unclean stop may leave refcounts to be rebuilt.
    pub fn lazy(&self) -> bool {
        self.options.iter().any(|option| option == "lazy_refcounts=on")
    }

    pub(crate) fn has(&self, extra: Extra) -> bool {
        self.extras.contains(&extra)
    }
}
