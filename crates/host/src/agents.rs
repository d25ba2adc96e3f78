//! Who speaks HTTP for imports.

use image_sources::{AddressPolicy, Agent, AgentOptions, Network};

use crate::image_config::ImageConfig;

/// One agent for each kind of server.
pub(crate) struct Agents {
    /// To web servers that requests name.
    pub(crate) web: Result<Agent, String>,
    /// To object stores that the operator named: these may be anywhere.
    pub(crate) s3: Result<Agent, String>,
}

impl Agents {
    /// Reads the host's certificate authorities. Without these there is no HTTP, which is told when it is wanted.
    pub(crate) fn open(config: &ImageConfig) -> Self {
        let agent = |policy: AddressPolicy| {
            let options = AgentOptions {
                policy,
                authorities_pem: config.authorities_pem.clone(),
                ..AgentOptions::default()
            };
            Agent::new(options).map_err(|error| {
                let error = crate::failure::chain(&error);
                tracing::warn!(error, "nothing can be imported from the web");
                error
            })
        };
        Self {
            web: agent(config.web.clone()),
            s3: agent(anywhere()),
        }
    }
}

/// All hosts and ports, this host itself as well.
fn anywhere() -> AddressPolicy {
    let networks = ["0.0.0.0/0", "::/0", "127.0.0.0/8", "::1/128"];
    AddressPolicy {
        allowed_ports: Vec::new(),
        allowed_networks: networks
            .iter()
            .filter_map(|text| text.parse::<Network>().ok())
            .collect(),
        ..AddressPolicy::default()
    }
}
