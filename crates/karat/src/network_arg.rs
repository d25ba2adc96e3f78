//! How a network interface is told on the command line.

/// What a network interface is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Network {
    None,
    Tap(String),
}

pub(crate) fn parse_network(text: &str) -> Result<Network, String> {
    match text.split_once(':') {
        Some(("tap", name)) if !name.is_empty() => Ok(Network::Tap(name.to_owned())),
        None if text == "none" => Ok(Network::None),
        _ => Err("take none, or tap:NAME".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_none_or_a_tap() {
        assert_eq!(parse_network("none"), Ok(Network::None));
        assert_eq!(parse_network("tap:vm0"), Ok(Network::Tap("vm0".to_owned())));
        for bad in ["", "tap", "tap:", "bridge:br0", "none:x"] {
            assert!(parse_network(bad).is_err(), "{bad}");
        }
    }
}
