//! Interrupts of devices, delivered by KVM.

use std::sync::Arc;

use device::{IrqLine, MsiMessage, MsiRoutes};
use kvm::{IrqLineFd, IrqRouting, MsiIrq, RouteError};

/// A device's wire to a pin of the IOAPIC.
pub(crate) struct WiredIrq(IrqLineFd);

impl WiredIrq {
    /// A wire to `pin`.
    pub(crate) fn new(routing: &Arc<IrqRouting>, pin: u32) -> Result<Self, RouteError> {
        routing.line(pin).map(Self)
    }
}

impl IrqLine for WiredIrq {
    fn trigger(&self) {
        self.0.trigger();
    }
}

/// The message interrupts of one PCI function: an irqfd each.
pub(crate) struct KvmMsiRoutes {
    device: String,
    vectors: Vec<MsiIrq>,
}

impl KvmMsiRoutes {
    /// `count` vectors for the function called `device`.
    pub(crate) fn new(routing: &Arc<IrqRouting>, device: &str, count: u16) -> Result<Self, RouteError> {
        let vectors = (0..count).map(|_| routing.message()).collect::<Result<_, _>>()?;
        Ok(Self {
            device: device.to_owned(),
            vectors,
        })
    }
}

impl MsiRoutes for KvmMsiRoutes {
    fn route(&self, vector: u16, message: Option<MsiMessage>) {
        static REFUSED: telemetry::RateLimited = telemetry::RateLimited::new();
        let Some(irq) = self.vectors.get(usize::from(vector)) else {
            return;
        };
        let message = message.map(|message| kvm::MsiMessage {
            address: message.address,
            data: message.data,
        });
        // The guest wrote the message, so a refusal is the guest's matter: its interrupt is lost.
        if let Err(error) = irq.route(message)
            && let Some(admitted) = REFUSED.admit()
        {
            let suppressed = admitted.suppressed;
            tracing::warn!(device = self.device, vector, %error, suppressed, "interrupt message refused by KVM");
        }
    }

    fn deliver(&self, vector: u16) {
        if let Some(irq) = self.vectors.get(usize::from(vector)) {
            irq.trigger();
        }
    }
}
