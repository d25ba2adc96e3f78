//! Which addresses images may be fetched from.
//!
//! The rules hold for the URL as given, for every redirect, and for the addresses that a name turns out to have at the moment of
//! each connection: whoever controls a name or a redirect gains nothing by it. Numbers are taken as addresses in whatever spelling
//! (`0x7f.1`, `2130706433`, `[::ffff:127.0.0.1]`), and IPv4 addresses inside of IPv6 ones are looked at too.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use url::{Host, Url};

use crate::pattern::{HostPattern, Network};
use crate::special;

/// Allow and deny lists. What a `denied_…` list names is refused whatever else is said; an `allowed_…` list that is not empty
/// refuses all it does not name. Defaults are those of the OpenStack image service's web-download (`import_filtering_opts`):
/// schemes `http` and `https`, ports 80 and 443, all hosts.
///
/// Beyond these lists, loopback, link-local, multicast, reserved and metadata-service addresses are refused unless an entry of
/// `allowed_networks` names them *by itself*, as `127.0.0.0/8` or `169.254.10.1`: `0.0.0.0/0` does not. Private networks are
/// allowed.
///
/// An object store is judged by the URL of its endpoint, so `s3` is no scheme here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AddressPolicy {
    /// Schemes fetched by, lower case; of others than `http` and `https` there are none.
    pub allowed_schemes: Vec<String>,
    /// Schemes never fetched by.
    pub denied_schemes: Vec<String>,
    /// Hosts fetched from; empty: all.
    pub allowed_hosts: Vec<HostPattern>,
    /// Hosts never fetched from.
    pub denied_hosts: Vec<HostPattern>,
    /// TCP ports connected to; empty: all.
    pub allowed_ports: Vec<u16>,
    /// TCP ports never connected to.
    pub denied_ports: Vec<u16>,
    /// Networks connected to; empty: all but the special ones.
    pub allowed_networks: Vec<Network>,
    /// Networks never connected to.
    pub denied_networks: Vec<Network>,
    /// Redirects followed within one request.
    pub redirects_max: u32,
    /// Whether a redirect may lead from https to http.
    pub redirect_to_plain_http: bool,
}

/// Redirects followed unless said otherwise, as `curl` is commonly told; mirror networks need two or three.
const REDIRECTS_MAX: u32 = 10;

impl Default for AddressPolicy {
    fn default() -> Self {
        Self {
            allowed_schemes: vec!["http".to_owned(), "https".to_owned()],
            denied_schemes: Vec::new(),
            allowed_hosts: Vec::new(),
            denied_hosts: Vec::new(),
            allowed_ports: vec![80, 443],
            denied_ports: Vec::new(),
            allowed_networks: Vec::new(),
            denied_networks: Vec::new(),
            redirects_max: REDIRECTS_MAX,
            redirect_to_plain_http: false,
        }
    }
}

/// What an address policy refuses, and the entry that would have to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The URL's scheme.
    #[error("scheme {scheme} is {rule}")]
    Scheme {
        /// As in the URL.
        scheme: String,
        /// Which list says so.
        rule: Rule,
    },
    /// The URL's host.
    #[error("host {host} is {rule}")]
    Host {
        /// As in the URL, normalised.
        host: String,
        /// Which list says so.
        rule: Rule,
    },
    /// The URL's port, or the one its scheme implies.
    #[error("port {port} is {rule}")]
    Port {
        /// TCP port.
        port: u16,
        /// Which list says so.
        rule: Rule,
    },
    /// An address, from the URL or from DNS.
    #[error("{} {}", Subject { host, address }, Why { address, rule })]
    Address {
        /// The host it belongs to.
        host: String,
        /// The address, IPv4 if it is IPv4-mapped.
        address: IpAddr,
        /// Which list says so.
        rule: Rule,
    },
}

/// Why something is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// The list named allows other things only.
    NotIn(&'static str),
    /// The list named has it.
    In(&'static str),
    /// A network closed by default: what it is, and its prefix.
    Special(&'static str, String),
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotIn(list) => write!(f, "not in {list}; add it there if it is meant"),
            Self::In(list) => write!(f, "in {list}; fetch from elsewhere, or remove it there"),
            Self::Special(name, network) => write!(f, "in the {name} {network}"),
        }
    }
}

struct Subject<'a> {
    host: &'a String,
    address: &'a IpAddr,
}

impl fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self.host == self.address.to_string() {
            write!(f, "address {}", self.address)
        } else {
            write!(f, "address {} of host {}", self.address, self.host)
        }
    }
}

struct Why<'a> {
    address: &'a IpAddr,
    rule: &'a Rule,
}

impl fmt::Display for Why<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "is {}", self.rule)?;
        match self.rule {
            Rule::Special(..) => write!(
                f,
                ", where no image is fetched from by default; if it is meant, add {} to allowed_networks",
                self.address
            ),
            _ => Ok(()),
        }
    }
}

/// The host of `url` as it is matched and shown.
pub(crate) fn host_text(host: &Host<&str>) -> String {
    match host {
        Host::Domain(name) => crate::pattern::plain_name(name).to_owned(),
        Host::Ipv4(address) => address.to_string(),
        Host::Ipv6(address) => IpAddr::V6(*address).to_canonical().to_string(),
    }
}

impl AddressPolicy {
    /// Checks all that a URL alone tells: scheme, host, port, and the address if the host is one.
    ///
    /// # Errors
    /// [`Refusal`], for the first thing that is not allowed.
    pub fn check_url(&self, url: &Url) -> Result<(), Refusal> {
        let scheme = url.scheme();
        let of_scheme = |rule| Refusal::Scheme {
            scheme: scheme.to_owned(),
            rule,
        };
        let spoken = matches!(scheme, "http" | "https");
        let allowed = self.allowed_schemes.is_empty() || has_scheme(&self.allowed_schemes, scheme);
        if has_scheme(&self.denied_schemes, scheme) {
            return Err(of_scheme(Rule::In("denied_schemes")));
        }
        if !spoken || !allowed {
            return Err(of_scheme(Rule::NotIn("allowed_schemes")));
        }
        let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
            return Err(of_scheme(Rule::NotIn("allowed_schemes")));
        };
        self.check_host(&host)?;
        if self.denied_ports.contains(&port) {
            let rule = Rule::In("denied_ports");
            return Err(Refusal::Port { port, rule });
        }
        if !self.allowed_ports.is_empty() && !self.allowed_ports.contains(&port) {
            let rule = Rule::NotIn("allowed_ports");
            return Err(Refusal::Port { port, rule });
        }
        let literal = match host {
            Host::Domain(_) => return Ok(()),
            Host::Ipv4(address) => IpAddr::V4(address),
            Host::Ipv6(address) => IpAddr::V6(address),
        };
        self.check_address(&host_text(&host), literal)
    }

    fn check_host(&self, host: &Host<&str>) -> Result<(), Refusal> {
        let refuse = |rule| {
            let host = host_text(host);
            Err(Refusal::Host { host, rule })
        };
        if self.denied_hosts.iter().any(|pattern| pattern.matches(host)) {
            return refuse(Rule::In("denied_hosts"));
        }
        if !self.allowed_hosts.is_empty() && !self.allowed_hosts.iter().any(|pattern| pattern.matches(host)) {
            return refuse(Rule::NotIn("allowed_hosts"));
        }
        Ok(())
    }

    /// Checks an address that `host` has.
    ///
    /// # Errors
    /// [`Refusal::Address`].
    pub fn check_address(&self, host: &str, address: IpAddr) -> Result<(), Refusal> {
        let (address, within) = special::meanings(address);
        let refuse = |rule| {
            let host = host.to_owned();
            Err(Refusal::Address { host, address, rule })
        };
        let meant = || std::iter::once(address).chain(within);
        if meant().any(|address| self.denied_networks.iter().any(|network| network.contains(address))) {
            return refuse(Rule::In("denied_networks"));
        }
        for address in meant() {
            if let Some(special) = special::closed(address) {
                let named = |network: &Network| network.contains(address) && network.is_within(&special.network);
                if !self.allowed_networks.iter().any(named) {
                    return refuse(Rule::Special(special.name, special.network.to_string()));
                }
            }
        }
        let listed = |address| self.allowed_networks.iter().any(|network| network.contains(address));
        if !self.allowed_networks.is_empty() && !meant().any(listed) {
            return refuse(Rule::NotIn("allowed_networks"));
        }
        Ok(())
    }

    /// Checks the step from one URL to the next of a redirect; that URL is checked by [`Self::check_url`] too.
    pub(crate) fn may_follow(&self, from: &Url, to: &Url) -> bool {
        self.redirect_to_plain_http || from.scheme() != "https" || to.scheme() != "http"
    }
}

fn has_scheme(list: &[String], scheme: &str) -> bool {
    list.iter().any(|entry| entry.eq_ignore_ascii_case(scheme))
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
