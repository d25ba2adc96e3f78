//! The few devices every machine has at fixed places: serial port, real-time clock, power registers, ACPI event source.
//!
//! Each is a [`device::BusHandler`] that knows register offsets and nothing of addresses, interrupts numbers or KVM. What a
//! guest asks of its machine (reset, power-off, leave with a code) goes through one [`PowerSink`] given at construction.
//!
//! There is deliberately no PIC, PIT, DMA, keyboard or floppy: the machine is ACPI hardware-reduced, its interrupt controllers
//! are in the kernel, and everything else is virtio on PCI.

mod debug_exit;
mod events;
#[cfg(test)]
mod migration_tests;
mod pm_timer;
mod power;
mod rtc;
mod serial;

pub use debug_exit::DebugExit;
pub use events::{EventRegister, GENERATION_EVENT, POWER_BUTTON_EVENT};
pub use pm_timer::PmTimer;
pub use power::{GuestRequest, KeyboardController, PowerRegisters, PowerSink, RESET_VALUE, SLEEP_TYPE_S5};
pub use rtc::Rtc;
pub use serial::{INPUT_QUEUE_BYTES, Serial, SerialPeer};

/// Locks, and carries on after a panic elsewhere: registers hold no invariant that a half-done access could break.
fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod testing {
    //! Doubles that record what a device did.

    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use crate::{GuestRequest, PowerSink};

    /// Counts edges.
    #[derive(Default)]
    pub(crate) struct CountingLine(AtomicUsize);

    impl CountingLine {
        pub(crate) fn count(&self) -> usize {
            self.0.load(Ordering::SeqCst)
        }
    }

    impl device::IrqLine for CountingLine {
        fn trigger(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Keeps every request.
    #[derive(Default)]
    pub(crate) struct Requests(Mutex<Vec<GuestRequest>>);

    impl Requests {
        pub(crate) fn take(&self) -> Vec<GuestRequest> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    impl PowerSink for Requests {
        fn request(&self, request: GuestRequest) {
            self.0.lock().unwrap().push(request);
        }
    }
}
