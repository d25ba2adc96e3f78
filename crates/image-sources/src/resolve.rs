//! Names into addresses, and only into those that may be connected to.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::policy::{AddressPolicy, Refusal};

/// Who says which addresses a name has.
pub trait Lookup: Send + Sync {
    /// All addresses of `host`, in the order they are to be tried. Called for every new connection; what it returns is filtered
    /// by the address policy afterwards.
    fn lookup(&self, host: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>>;
}

/// What the host's own configuration says (`getaddrinfo`).
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemLookup;

impl Lookup for SystemLookup {
    fn lookup(&self, host: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        Box::pin(async move {
            let found = tokio::net::lookup_host((host.as_str(), 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }
}

/// A name has no address, or nobody answers for it.
#[derive(Debug, thiserror::Error)]
#[error("cannot resolve host {host}")]
pub(crate) struct Unresolved {
    pub(crate) host: String,
    pub(crate) source: io::Error,
}

/// The HTTP client's resolver: looks names up and leaves out what the policy refuses.
pub(crate) struct Guard {
    pub(crate) policy: Arc<AddressPolicy>,
    pub(crate) lookup: Arc<dyn Lookup>,
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let policy = Arc::clone(&self.policy);
        let host = name.as_str().to_owned();
        let found = self.lookup.lookup(host.clone());
        Box::pin(async move {
            let found = match found.await {
                Ok(found) if found.is_empty() => {
                    Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
                }
                found => found,
            };
            let found = found.map_err(|source| Unresolved {
                host: host.clone(),
                source,
            })?;
            Ok(permitted(&policy, &host, found)?)
        })
    }
}

/// Those of `found` that may be connected to; the first refusal if that is none.
fn permitted(policy: &AddressPolicy, host: &str, found: Vec<IpAddr>) -> Result<Addrs, Refusal> {
    let mut refusal = None;
    let mut kept = Vec::with_capacity(found.len());
    for address in found {
        match policy.check_address(host, address) {
            // Port 0 stands for the one of the URL, which was checked with it.
            Ok(()) => kept.push(SocketAddr::new(address, 0)),
            Err(error) => {
                refusal.get_or_insert(error);
            }
        }
    }
    match refusal {
        Some(refusal) if kept.is_empty() => Err(refusal),
        _ => Ok(Box::new(kept.into_iter())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denied_addresses_are_left_out_of_an_answer() {
        let policy = AddressPolicy::default();
        let addresses = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        let kept = permitted(
            &policy,
            "h.test",
            addresses(&["127.0.0.1", "192.0.2.1", "::1", "::ffff:10.0.0.1"]),
        );
        let kept: Vec<_> = kept.unwrap().map(|address| address.ip()).collect();
        assert_eq!(kept, addresses(&["192.0.2.1", "::ffff:10.0.0.1"]));
        let Err(refusal) = permitted(&policy, "h.test", addresses(&["::ffff:169.254.169.254"])) else {
            panic!("an address of the metadata service passed");
        };
        assert!(
            refusal
                .to_string()
                .starts_with("address 169.254.169.254 of host h.test is in the link-local network")
        );
    }
}
