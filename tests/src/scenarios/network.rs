//! A tap between host and guest.

use std::process::Command;

use anyhow::ensure;
use api_types::NetworkWish;

use crate::daemon::Daemon;
use crate::environment::Kernel;
use crate::tap::Tap;

/// The guest's address; 192.0.2.0/24 is for examples and routed nowhere (RFC 5737).
const GUEST: &str = "192.0.2.2";
/// The host's.
const HOST: &str = "192.0.2.1";

pub(super) async fn ping_both_ways(daemon: &mut Daemon) -> anyhow::Result<()> {
    let tap = Tap::create("karat-e2e", &format!("{HOST}/24"))?;
    let mut spec = daemon.stock("guest", Kernel::BzImage);
    let mac = "02:00:5e:00:53:01".to_owned();
    spec.networks = vec![NetworkWish {
        tap: tap.name.clone(),
        mac: Some(mac.clone()),
        queue_pairs: Some(2),
    }];
    spec.cpus = 2;
    daemon.run(&spec).await?;
    let mut guest = daemon.guest("guest").await?;
    let address = guest.run("/bin/busybox cat /sys/class/net/eth0/address").await?;
    ensure!(address == mac, "eth0 has {address} instead of {mac}");
    guest
        .run(&format!(
            "/bin/busybox ip address add {GUEST}/24 dev eth0 && /bin/busybox ip link set eth0 up"
        ))
        .await?;
    guest.run(&format!("/bin/busybox ping -c 3 -W 5 {HOST}")).await?;
    // 4000 bytes are fragments of more than one descriptor.
    guest
        .run(&format!("/bin/busybox ping -c 3 -W 5 -s 4000 {HOST}"))
        .await?;
    let host = Command::new("ping").args(["-c", "3", "-W", "5", GUEST]).output()?;
    ensure!(
        host.status.success(),
        "the host does not reach the guest: {}",
        String::from_utf8_lossy(&host.stdout)
    );
    Ok(())
}
