//! Formats that an image can be said to have.
//!
//! What is said is never trusted: the content decides (`image-formats`). These are the words of the API.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Makes an enum of words with `as_str`, `ALL`, `Display`, `FromStr` and serde on the words.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $text)] $variant,)+
        }

        impl $name {
            /// Every value, in the order in which they are documented.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            /// Every value as it is written.
            pub const TEXTS: &'static [&'static str] = &[$($text),+];

            /// As it is written.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// The value written as `text`, if any is.
            pub fn of(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)+ _ => None }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}
pub(crate) use words;

words! {
    /// How the bytes of a disk are laid out.
    DiskFormat {
        /// Amazon machine image: a root disk that goes with a kernel and a ramdisk image.
        Ami = "ami",
        /// Amazon ramdisk image.
        Ari = "ari",
        /// Amazon kernel image.
        Aki = "aki",
        /// Virtual PC.
        Vhd = "vhd",
        /// Hyper-V.
        Vhdx = "vhdx",
        /// VMware.
        Vmdk = "vmdk",
        /// Byte for byte.
        Raw = "raw",
        /// QEMU copy on write, versions 2 and 3.
        Qcow2 = "qcow2",
        /// VirtualBox.
        Vdi = "vdi",
        /// Optical disc.
        Iso = "iso",
        /// Virtuozzo containers; known and never taken.
        Ploop = "ploop",
    }
}

words! {
    /// What is around the disk.
    ContainerFormat {
        /// Amazon machine image.
        Ami = "ami",
        /// Amazon ramdisk image.
        Ari = "ari",
        /// Amazon kernel image.
        Aki = "aki",
        /// Nothing.
        Bare = "bare",
        /// An OVF package directory; known and never taken.
        Ovf = "ovf",
        /// A tar archive with an OVF descriptor and disks.
        Ova = "ova",
        /// A tar archive of a container's file system; in Karat, a container disk.
        Docker = "docker",
    }
}

/// What becomes of an image of some format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handling {
    /// Stored as it is.
    Native,
    /// Converted on its way in.
    Converted,
    /// A kernel or a ramdisk, kept as a file for machines that name it.
    BootFile,
    /// Refused: nothing on this host can use it.
    Refused,
}

impl DiskFormat {
    /// What becomes of a disk of this format.
    pub const fn handling(self) -> Handling {
        match self {
            Self::Raw | Self::Qcow2 | Self::Iso | Self::Ami => Handling::Native,
            Self::Vhd | Self::Vhdx | Self::Vmdk | Self::Vdi => Handling::Converted,
            Self::Aki | Self::Ari => Handling::BootFile,
            Self::Ploop => Handling::Refused,
        }
    }

    /// Whether it is one of the three Amazon formats, for which alone `os_command_line` is defined.
    pub const fn is_amazon(self) -> bool {
        matches!(self, Self::Ami | Self::Ari | Self::Aki)
    }
}

impl ContainerFormat {
    /// What becomes of an image in this container.
    pub const fn handling(self) -> Handling {
        match self {
            Self::Bare | Self::Ami => Handling::Native,
            Self::Ova | Self::Docker => Handling::Converted,
            Self::Aki | Self::Ari => Handling::BootFile,
            Self::Ovf => Handling::Refused,
        }
    }

    /// Whether it is one of the three Amazon formats.
    pub const fn is_amazon(self) -> bool {
        matches!(self, Self::Ami | Self::Ari | Self::Aki)
    }
}

words! {
    /// Who sees an image and may use it.
    Visibility {
        /// Its owner alone.
        Private = "private",
        /// Its owner and those it was shared with.
        Shared = "shared",
        /// Everybody who knows of it; in nobody's list but the owner's unless asked for.
        Community = "community",
        /// Everybody.
        Public = "public",
    }
}

/// Who asks, in relation to one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Viewer {
    /// An administrator of the host.
    Admin,
    /// The image's owner.
    Owner,
    /// Somebody it was shared with.
    Member,
    /// Anybody else.
    Other,
}

impl Visibility {
    /// Whether `viewer` may see and use the image when naming it.
    pub const fn usable_by(self, viewer: Viewer) -> bool {
        match (self, viewer) {
            (_, Viewer::Admin | Viewer::Owner) | (Self::Public | Self::Community, _) => true,
            (Self::Shared, viewer) => matches!(viewer, Viewer::Member),
            (Self::Private, _) => false,
        }
    }

    /// Whether the image is in `viewer`'s list when nothing special is asked for. Hidden images are left out beside this.
    pub const fn listed_for(self, viewer: Viewer) -> bool {
        match self {
            Self::Community => matches!(viewer, Viewer::Admin | Viewer::Owner),
            _ => self.usable_by(viewer),
        }
    }
}

/// An identity of an image record: a UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImageId(uuid::Uuid);

impl ImageId {
    /// A new random one (RFC 9562 version 4).
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4())
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for ImageId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        uuid::Uuid::try_parse(text).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_read_as_they_are_written() {
        for (format, text) in DiskFormat::ALL.iter().zip(DiskFormat::TEXTS) {
            assert_eq!(DiskFormat::of(text), Some(*format));
            assert_eq!(serde_json::to_value(format).unwrap(), *text);
        }
        assert_eq!(DiskFormat::of("QCOW2"), None);
        assert_eq!(ContainerFormat::TEXTS.len(), 7);
    }

    #[test]
    fn hidden_corners_of_visibility() {
        use Viewer::{Admin, Member, Other, Owner};
        let seen = |visibility: Visibility| [Admin, Owner, Member, Other].map(|viewer| visibility.usable_by(viewer));
        assert_eq!(seen(Visibility::Private), [true, true, false, false]);
        assert_eq!(seen(Visibility::Shared), [true, true, true, false]);
        assert_eq!(seen(Visibility::Community), [true; 4]);
        assert_eq!(seen(Visibility::Public), [true; 4]);
        assert!(!Visibility::Community.listed_for(Other) && Visibility::Community.listed_for(Owner));
        assert!(Visibility::Public.listed_for(Other) && !Visibility::Private.listed_for(Member));
    }
}
