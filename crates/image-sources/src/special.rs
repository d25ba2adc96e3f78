//! Networks that no image is fetched from unless the operator names them: the host itself, its link, cloud metadata services and
//! what is no single machine's address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// A network closed by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Special {
    pub(crate) network: IpNet,
    /// What it is, for messages: "the … 10.0.0.0/8".
    pub(crate) name: &'static str,
}

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8, name: &'static str) -> Special {
    let network = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix));
    Special { network, name }
}

const fn v6(segments: [u16; 8], prefix: u8, name: &'static str) -> Special {
    let [a, b, c, d, e, f, g, h] = segments;
    let network = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), prefix));
    Special { network, name }
}

/// The IANA special-purpose registries (RFC 6890) as far as a fetch there reaches this host, its link or nobody, and the metadata
/// services of clouds that lie outside of those. Private networks (RFC 1918, RFC 4193) are not here: mirrors live there.
const CLOSED: [Special; 15] = [
    v4(0, 0, 0, 0, 8, "this host's network"),
    v4(127, 0, 0, 0, 8, "loopback network"),
    v4(169, 254, 0, 0, 16, "link-local network"),
    v4(100, 100, 100, 200, 32, "metadata service"),
    v4(168, 63, 129, 16, 32, "metadata service"),
    v4(192, 0, 0, 0, 24, "protocol assignments network"),
    v4(224, 0, 0, 0, 4, "multicast network"),
    v4(240, 0, 0, 0, 4, "reserved network"),
    v6([0; 8], 128, "unspecified address"),
    v6([0, 0, 0, 0, 0, 0, 0, 1], 128, "loopback address"),
    v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10, "link-local network"),
    v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8, "multicast network"),
    v6([0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x254], 128, "metadata service"),
    v6([0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x254], 128, "metadata service"),
    v6([0xfd00, 0x0042, 0, 0, 0, 0, 0, 0x42], 128, "metadata service"),
];

/// The closed network that `address` lies in, if any.
pub(crate) fn closed(address: IpAddr) -> Option<Special> {
    CLOSED
        .iter()
        .find(|special| special.network.contains(&address))
        .copied()
}

/// All addresses that a packet to `address` may end at: itself, and the IPv4 address within where a translator or tunnel takes it
/// out again. An IPv4-mapped address is the IPv4 address and nothing else.
pub(crate) fn meanings(address: IpAddr) -> (IpAddr, Option<IpAddr>) {
    let IpAddr::V6(address) = address.to_canonical() else {
        return (address.to_canonical(), None);
    };
    let [a, b, c, d, e, f, g, h] = address.segments();
    let within = match (a, b) {
        // NAT64 (RFC 6052), its local-use prefix (RFC 8215) with the address in its last 32 bits.
        (0x64, 0xff9b) if (c, d, e, f) == (0, 0, 0, 0) || c == 1 => Some((g, h)),
        // 6to4 (RFC 3056).
        (0x2002, _) => Some((b, c)),
        // IPv4-compatible (RFC 4291 §2.5.5.1), deprecated, still taken by some stacks.
        (0, 0) if (c, d, e, f) == (0, 0, 0, 0) && (g, h) != (0, 0) && (g, h) != (0, 1) => Some((g, h)),
        // Teredo (RFC 4380): the client's address, inverted.
        (0x2001, 0) => Some((!g, !h)),
        _ => None,
    };
    let within = within.map(|(high, low)| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    });
    (IpAddr::V6(address), within)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_within_addresses() {
        let within = |text: &str| meanings(text.parse().unwrap()).1.map(|address| address.to_string());
        assert_eq!(within("64:ff9b::7f00:1").as_deref(), Some("127.0.0.1"));
        assert_eq!(within("2002:a9fe:a9fe::1").as_deref(), Some("169.254.169.254"));
        assert_eq!(within("::127.0.0.1").as_deref(), Some("127.0.0.1"));
        assert_eq!(within("2001:0:1:2:3:4:80ff:fffe").as_deref(), Some("127.0.0.1"));
        assert_eq!(within("2001:db8::7f00:1"), None);
        assert_eq!(within("::1"), None);
        let mapped = meanings("::ffff:10.1.2.3".parse().unwrap());
        assert_eq!(mapped, ("10.1.2.3".parse().unwrap(), None));
    }

    #[test]
    fn metadata_services_are_closed() {
        for text in [
            "169.254.169.254",
            "fd00:ec2::254",
            "192.0.0.192",
            "100.100.100.200",
            "168.63.129.16",
        ] {
            assert!(closed(text.parse().unwrap()).is_some(), "{text}");
        }
        for text in [
            "192.0.2.1",
            "10.0.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "2001:db8::1",
            "fd00::1",
        ] {
            assert_eq!(closed(text.parse().unwrap()), None, "{text}");
        }
    }
}
