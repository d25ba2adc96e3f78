//! What an address policy is written in: patterns of host names, and networks.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use url::Host;

/// A pattern or network that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {wanted}")]
pub struct PatternError {
    /// What was written.
    pub text: String,
    /// What it should have been, with examples.
    pub wanted: &'static str,
}

/// Host names: `mirror.example.org` (that one), `*.example.org` (all below, not `example.org` itself), an address, or `*` (all).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPattern(Shape);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Shape {
    Any,
    /// Lower case, in ASCII form, with its leading dot.
    Below(String),
    Name(String),
    Address(IpAddr),
}

/// A host name as it is compared: without the dot that may end it.
pub(crate) fn plain_name(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

impl HostPattern {
    /// True if `host` is one of those meant. `host` is as the parser of URLs leaves it: lower case, ASCII, numbers as addresses.
    pub(crate) fn matches(&self, host: &Host<&str>) -> bool {
        match (&self.0, host) {
            (Shape::Any, _) => true,
            (Shape::Name(name), Host::Domain(host)) => name == plain_name(host),
            (Shape::Below(end), Host::Domain(host)) => {
                let host = plain_name(host);
                host.len() > end.len() && host.ends_with(end.as_str())
            }
            (Shape::Address(address), Host::Ipv4(host)) => *address == IpAddr::V4(*host),
            (Shape::Address(address), Host::Ipv6(host)) => *address == IpAddr::V6(*host).to_canonical(),
            _ => false,
        }
    }
}

impl FromStr for HostPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let wrong = || PatternError {
            text: text.to_owned(),
            wanted: "host pattern such as mirror.example.org, *.example.org, 192.0.2.7 or *",
        };
        if text == "*" {
            return Ok(Self(Shape::Any));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self(Shape::Address(address.to_canonical())));
        }
        let (below, name) = match text.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, text),
        };
        let shape = match Host::parse(name).map_err(|_| wrong())? {
            _ if name.contains('*') => return Err(wrong()),
            Host::Domain(name) if below => Shape::Below(format!(".{}", plain_name(&name))),
            Host::Domain(name) => Shape::Name(plain_name(&name).to_owned()),
            _ if below => return Err(wrong()),
            Host::Ipv4(address) => Shape::Address(address.into()),
            Host::Ipv6(address) => Shape::Address(IpAddr::V6(address).to_canonical()),
        };
        match &shape {
            Shape::Name(name) if name.is_empty() => Err(wrong()),
            Shape::Below(end) if end.len() < 2 => Err(wrong()),
            _ => Ok(Self(shape)),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Shape::Any => f.write_str("*"),
            Shape::Below(end) => write!(f, "*{end}"),
            Shape::Name(name) => f.write_str(name),
            Shape::Address(address) => address.fmt(f),
        }
    }
}

impl TryFrom<String> for HostPattern {
    type Error = PatternError;

    fn try_from(text: String) -> Result<Self, PatternError> {
        text.parse()
    }
}

impl From<HostPattern> for String {
    fn from(pattern: HostPattern) -> Self {
        pattern.to_string()
    }
}

/// Addresses that share a prefix, `192.0.2.0/24` or `2001:db8::/32`; an address alone is the network of just itself. IPv4-mapped
/// IPv6 networks are taken as the IPv4 networks they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network(IpNet);

impl Network {
    /// True if `address`, which must not be IPv4-mapped, lies in it.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }

    /// True if all of it lies in `other`.
    pub(crate) fn is_within(&self, other: &IpNet) -> bool {
        other.contains(&self.0)
    }
}

impl FromStr for Network {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let network = match text.parse::<IpAddr>() {
            Ok(address) => Ok(IpNet::from(address)),
            Err(_) => text.parse::<IpNet>().map(|network| network.trunc()),
        };
        let network = network.map_err(|_| PatternError {
            text: text.to_owned(),
            wanted: "network such as 192.0.2.0/24, 2001:db8::/32 or 192.0.2.7",
        })?;
        // The mapped addresses are ::ffff:0:0/96 (RFC 4291 §2.5.5.2).
        if let (IpAddr::V4(address), Some(prefix)) =
            (network.addr().to_canonical(), network.prefix_len().checked_sub(96))
            && network.addr().is_ipv6()
            && let Ok(mapped) = ipnet::Ipv4Net::new(address, prefix)
        {
            return Ok(Self(IpNet::V4(mapped)));
        }
        Ok(Self(network))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<String> for Network {
    type Error = PatternError;

    fn try_from(text: String) -> Result<Self, PatternError> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, host: &str) -> bool {
        let url = url::Url::parse(&format!("http://{host}/")).unwrap();
        pattern.parse::<HostPattern>().unwrap().matches(&url.host().unwrap())
    }

    #[test]
    fn hosts_are_matched_whatever_their_spelling() {
        assert!(matches("mirror.example.org", "MIRROR.example.org."));
        assert!(matches("Mirror.Example.org.", "mirror.example.org"));
        assert!(!matches("example.org", "mirror.example.org"));
        assert!(matches("*.example.org", "a.b.example.org"));
        assert!(!matches("*.example.org", "example.org"));
        assert!(!matches("*.example.org", "evilexample.org"));
        assert!(!matches("*.example.org", "example.org.evil.test"));
        assert!(matches("*", "anything.test"));
        assert!(matches("127.0.0.1", "0x7f.1"));
        assert!(matches("127.0.0.1", "2130706433"));
        assert!(matches("127.0.0.1", "[::ffff:7f00:1]"));
        assert!(matches("::1", "[0:0:0:0:0:0:0:1]"));
        assert!(matches("bücher.example", "xn--bcher-kva.example"));
    }

    #[test]
    fn what_is_no_pattern_is_said_so() {
        for text in [
            "",
            "*.",
            "a b",
            "*.10.0.0.1",
            "a.*.org",
            "**",
            "http://a",
            "a/b",
            "a:80",
        ] {
            assert!(text.parse::<HostPattern>().is_err(), "{text:?}");
        }
        for text in ["", "10.0.0.0/33", "example.org", "10.0.0/8"] {
            assert!(text.parse::<Network>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn networks_are_written_back_in_their_short_form() {
        for (text, short) in [
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("192.0.2.7", "192.0.2.7/32"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("2001:DB8::1/32", "2001:db8::/32"),
        ] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), short);
        }
    }
}
