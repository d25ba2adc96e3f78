//! Identities: of machines, operations, images and network interfaces.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A new random one (RFC 9562 version 4).
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }

            /// The sixteen bytes, in network order.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                Uuid::try_parse(text).map(Self)
            }
        }
    };
}

uuid_id! {
    /// One machine, for as long as its record exists.
    VmId
}
uuid_id! {
    /// One operation: a change that takes time.
    OperationId
}
uuid_id! {
    /// One course of a guest's life: another one begins each time that it goes on from the same saved state.
    GenerationId
}
uuid_id! {
    /// One attempt to move one machine.
    MigrationId
}
uuid_id! {
    /// One volume, for as long as its record exists.
    VolumeId
}
uuid_id! {
    /// One snapshot of a machine, for as long as its record exists.
    SnapshotId
}

/// Content address of a sealed image: `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ImageDigest(String);

/// Why a text is no image digest.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no digest: it takes sha256: and 64 of 0-9a-f")]
pub struct ImageDigestError(String);

/// Algorithm prefix of every digest (OCI image specification, descriptor digests).
const DIGEST_PREFIX: &str = "sha256:";

impl ImageDigest {
    /// With its algorithm: `sha256:…`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 64 digits alone: safe as the name of a file.
    pub fn hex(&self) -> &str {
        self.0.strip_prefix(DIGEST_PREFIX).unwrap_or(&self.0)
    }
}

impl FromStr for ImageDigest {
    type Err = ImageDigestError;

    fn from_str(text: &str) -> Result<Self, ImageDigestError> {
        let hex = text.strip_prefix(DIGEST_PREFIX).unwrap_or("");
        if hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ImageDigestError(text.to_owned()))
        }
    }
}

impl TryFrom<String> for ImageDigest {
    type Error = ImageDigestError;

    fn try_from(text: String) -> Result<Self, ImageDigestError> {
        text.parse()
    }
}

impl From<ImageDigest> for String {
    fn from(digest: ImageDigest) -> Self {
        digest.0
    }
}

impl fmt::Display for ImageDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A unicast Ethernet address (IEEE 802), written `02:00:5e:10:00:01`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct MacAddress([u8; 6]);

/// Why a text is no address for a network interface.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MacAddressError {
    /// Not six pairs of hexadecimal digits.
    #[error("{0:?} is no MAC address: it takes six pairs of hex digits with colons, as 02:00:5e:10:00:01")]
    Malformed(String),
    /// The group bit is set, or all is zero.
    #[error("{0:?} is a multicast or empty address: the first byte must be even, and not all bytes zero")]
    NotUnicast(String),
}

impl MacAddress {
    /// A locally administered address (IEEE 802c, second bit of the first byte) that follows from the machine and the
    /// interface's position, so that it survives restarts without being stored.
    pub fn derived(vm: VmId, index: u8) -> Self {
        let id = vm.as_bytes();
        Self([0x02, id[0], id[1], id[2], id[3], id[15] ^ index])
    }

    /// The six bytes, first on the wire first.
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddress {
    type Err = MacAddressError;

    fn from_str(text: &str) -> Result<Self, MacAddressError> {
        let malformed = || MacAddressError::Malformed(text.to_owned());
        let mut bytes = [0; 6];
        let mut pairs = text.split(':');
        for byte in &mut bytes {
            let pair = pairs
                .next()
                .filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
            *byte = u8::from_str_radix(pair.ok_or_else(malformed)?, 16).map_err(|_| malformed())?;
        }
        if pairs.next().is_some() {
            return Err(malformed());
        }
        if bytes[0] & 1 != 0 || bytes == [0; 6] {
            return Err(MacAddressError::NotUnicast(text.to_owned()));
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for MacAddress {
    type Error = MacAddressError;

    fn try_from(text: String) -> Result<Self, MacAddressError> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(address: MacAddress) -> Self {
        address.to_string()
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses_read_and_write_the_same() {
        let text = "02:00:5e:10:00:ff";
        assert_eq!(text.parse::<MacAddress>().unwrap().to_string(), text);
        for bad in [
            "",
            "02:00:5e:10:00",
            "02:00:5e:10:00:01:02",
            "2:0:5e:10:0:1",
            "02-00-5e-10-00-01",
            "02:00:5e:10:00:+1",
        ] {
            assert!(
                matches!(bad.parse::<MacAddress>(), Err(MacAddressError::Malformed(_))),
                "{bad}"
            );
        }
        for bad in ["01:00:5e:00:00:01", "00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff"] {
            assert!(
                matches!(bad.parse::<MacAddress>(), Err(MacAddressError::NotUnicast(_))),
                "{bad}"
            );
        }
    }

    #[test]
    fn derived_addresses_are_local_unicast_and_differ_by_index() {
        let vm = VmId::random();
        let [first, second] = [0, 1].map(|index| MacAddress::derived(vm, index));
        assert_ne!(first, second);
        assert_eq!(first.to_string().parse(), Ok(first));
        assert_eq!(first.bytes()[0] & 3, 2);
    }

    #[test]
    fn digests_are_sha256_only() {
        let good = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(good.parse::<ImageDigest>().unwrap().hex().len(), 64);
        for bad in [
            "",
            "sha256:",
            "sha512:00",
            &good.to_uppercase(),
            &good[..70],
            "sha256:../../../etc/passwd",
        ] {
            assert!(bad.parse::<ImageDigest>().is_err(), "{bad}");
        }
    }
}
