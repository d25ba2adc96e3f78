//! Network interfaces: the queues of a tap, and a virtio network card on them, each.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use device::Device;
use spec::NetSpec;
use virtio_devices::{Net, NetOptions, TapWire};

use super::BuildError;
use super::pci::Slots;
use crate::layout::Layout;

/// Plugs all of them in; the blueprint keeps the queues for the next build.
pub(super) fn build(
    nets: &[NetSpec],
    taps: &[Vec<OwnedFd>],
    layout: &Layout,
    slots: &Slots,
) -> Result<Vec<Arc<dyn Device>>, BuildError> {
    let places = layout.net_slots().iter().zip(nets.iter().zip(taps)).enumerate();
    places
        .map(|(index, (&slot, (net, queues)))| {
            let name = format!("net{index}");
            slots.plug(slot, Arc::new(device(name, net, queues)?))
        })
        .collect()
}

fn device(name: String, net: &NetSpec, queues: &[OwnedFd]) -> Result<Net, BuildError> {
    let queues = queues
        .iter()
        .map(OwnedFd::try_clone)
        .collect::<Result<_, _>>()
        .map_err(BuildError::Descriptors)?;
    let wire = TapWire::new(queues).map_err(|source| BuildError::Tap {
        name: name.clone(),
        source,
    })?;
    let options = NetOptions {
        name,
        mac: net.mac.bytes(),
        mtu: None,
    };
    Ok(Net::new(Box::new(wire), options))
}
