//! Who speaks HTTP with registries, and where it may go.
//!
//! The policy holds for every connection: for the registry's own, for its token service's, and for where either redirects to, DNS
//! included. The one exception is a registry that the operator listed in `insecure_registries`: it may be on this host, on any
//! port. What *it* leads to is guarded like everything else.

use std::sync::{Mutex, PoisonError};

use image_sources::{AddressPolicy, Agent, AgentOptions, Network, SourceError};

use crate::Settings;

/// Redirects followed within one request: registries lead to a blob store, and that perhaps to a mirror.
const REDIRECTS_MAX: u32 = 5;
/// All networks, this host itself by name.
const EVERYWHERE: [&str; 4] = ["0.0.0.0/0", "::/0", "127.0.0.0/8", "::1/128"];

/// Where registries may be unless an operator says otherwise: as for the web, but on any port.
pub fn registry_policy() -> AddressPolicy {
    AddressPolicy {
        allowed_ports: Vec::new(),
        redirects_max: REDIRECTS_MAX,
        ..AddressPolicy::default()
    }
}

/// Agents of one store, made when the first registry is spoken to: the host's certificate authorities are read for them.
#[derive(Default)]
pub(crate) struct RegistryAgents(Mutex<Option<Pair>>);

/// The two sorts of agents.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    /// For all but the next.
    pub(crate) guarded: Agent,
    /// For the own host of a registry that the operator listed as insecure.
    pub(crate) listed: Agent,
}

impl RegistryAgents {
    /// Both.
    pub(crate) fn get(&self, settings: &Settings) -> Result<Pair, SourceError> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pair) = &*known {
            return Ok(pair.clone());
        }
        let agent = |policy| {
            Agent::new(AgentOptions {
                policy,
                limits: settings.registry_limits.clone(),
                authorities_pem: settings.registry_authorities_pem.clone(),
                lookup: None,
            })
        };
        let pair = Pair {
            guarded: agent(safe(settings.registry_policy.clone()))?,
            listed: agent(anywhere(safe(settings.registry_policy.clone())))?,
        };
        *known = Some(pair.clone());
        Ok(pair)
    }
}

/// Content of registries never comes over plain HTTP by way of HTTPS.
fn safe(policy: AddressPolicy) -> AddressPolicy {
    AddressPolicy {
        redirect_to_plain_http: false,
        ..policy
    }
}

/// What is denied by name stays so.
fn anywhere(policy: AddressPolicy) -> AddressPolicy {
    AddressPolicy {
        allowed_hosts: Vec::new(),
        allowed_ports: Vec::new(),
        allowed_networks: EVERYWHERE
            .iter()
            .filter_map(|text| text.parse::<Network>().ok())
            .collect(),
        ..policy
    }
}
