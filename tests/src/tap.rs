//! A tap device of the host, made by iproute2 and removed again.

use std::process::Command;

use anyhow::ensure;

/// A persistent tap with an address. Scenarios run in a network namespace of their own, so names can not clash.
pub struct Tap {
    /// Its name.
    pub name: String,
}

impl Tap {
    /// Makes the tap and gives the host's side `address` (with prefix length).
    pub fn create(name: &str, address: &str) -> anyhow::Result<Self> {
        ip(&["tuntap", "add", "dev", name, "mode", "tap", "multi_queue", "vnet_hdr"])?;
        let tap = Self { name: name.to_owned() };
        ip(&["address", "add", address, "dev", name])?;
        ip(&["link", "set", name, "up"])?;
        Ok(tap)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        drop(ip(&["link", "delete", &self.name]));
    }
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip").args(arguments).output()?;
    ensure!(
        output.status.success(),
        "ip {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
