//! Devices at fixed ports.

use std::sync::Arc;

use boot::layout;
use chipset::{DebugExit, EventRegister, KeyboardController, PmTimer, PowerRegisters, PowerSink, Rtc, Serial};
use device::{Bus, BusHandler, Device};
use kvm::IrqRouting;
use spec::MachineSpec;

use super::BuildError;
use crate::Console;
use crate::action::Reporter;
use crate::interrupts::WiredIrq;

/// Devices that are asked for something later.
pub(super) struct Chipset {
    pub(super) events: Arc<EventRegister>,
    serial: Arc<Serial>,
    rtc: Arc<Rtc>,
    pm_timer: Arc<PmTimer>,
}

impl Chipset {
    /// Those with a life of their own.
    pub(super) fn devices(&self) -> Vec<Arc<dyn Device>> {
        vec![
            Arc::clone(&self.serial) as _,
            Arc::clone(&self.rtc) as _,
            Arc::clone(&self.events) as _,
            Arc::clone(&self.pm_timer) as _,
        ]
    }
}

/// Puts all of them on the port bus.
pub(super) fn build(
    spec: &MachineSpec,
    routing: &Arc<IrqRouting>,
    pio: &Bus,
    console: &Arc<dyn Console>,
    reporter: &Reporter,
) -> Result<Chipset, BuildError> {
    let wire = |pin| WiredIrq::new(routing, pin).map(Arc::new).map_err(BuildError::Interrupt);
    let power: Arc<dyn PowerSink> = Arc::new(reporter.clone());
    let peer = Arc::clone(console) as _;
    let serial = Arc::new(Serial::new("serial", wire(layout::SERIAL_GSI)?, peer));
    let rtc = Arc::new(Rtc::new());
    let pm_timer = Arc::new(PmTimer::new());
    let events = Arc::new(EventRegister::new(wire(layout::EVENT_GSI)?));
    let map =
        |port: u16, size, handler: Arc<dyn BusHandler>| pio.map(port.into(), size, handler).map_err(BuildError::Map);
    map(layout::SERIAL_PORT, Serial::SIZE, Arc::clone(&serial) as _)?;
    map(layout::RTC_PORT, Rtc::SIZE, Arc::clone(&rtc) as _)?;
    map(layout::EVENT_PORT, EventRegister::SIZE, Arc::clone(&events) as _)?;
    map(layout::PM_TIMER_PORT, PmTimer::SIZE, Arc::clone(&pm_timer) as _)?;
    map(
        layout::POWER_PORT,
        PowerRegisters::SIZE,
        Arc::new(PowerRegisters::new(Arc::clone(&power))),
    )?;
    map(
        layout::KEYBOARD_CONTROLLER_PORT,
        KeyboardController::SIZE,
        Arc::new(KeyboardController::new(Arc::clone(&power))),
    )?;
    if spec.debug_exit() {
        map(
            layout::DEBUG_EXIT_PORT,
            DebugExit::SIZE,
            Arc::new(DebugExit::new(power)),
        )?;
    }
    console.connect(&serial);
    Ok(Chipset {
        events,
        serial,
        rtc,
        pm_timer,
    })
}
