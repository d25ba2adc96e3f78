//! The serial port: a 16550A by `vm-superio`, with an input queue in front of its FIFO.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex};

use device::{BusHandler, Device, Draining, IrqLine, Migrate, Migration, Motion, SaveError};
use savestate::{Bytes, LoadError, SaveState, Section, Sections};
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial as Uart, Trigger};

use crate::lock;

/// Offsets of registers, and bits in them (16550D data sheet, section 8).
const INTERRUPT_IDENTIFICATION: u64 = 2;
const LINE_STATUS: u8 = 5;
const DATA_READY: u8 = 1;
const RECEIVED_DATA: u8 = 1 << 2;
const NOTHING_PENDING: u8 = 1;

/// Input kept for a guest that does not read, bytes. Enough for a pasted file, small enough not to matter.
pub const INPUT_QUEUE_BYTES: usize = 64 * 1024;

/// The other end of the serial line.
pub trait SerialPeer: Send + Sync {
    /// The guest sent `bytes`. Called from a vCPU thread with the port locked: must not block, must not call the port.
    fn output(&self, bytes: &[u8]);

    /// The port refused input earlier, and the guest has now read all of it: [`Serial::input`] takes more. Called like
    /// [`SerialPeer::output`].
    fn input_wanted(&self);
}

/// Interrupt output of the UART; silent while the machine is paused.
struct Line {
    irq: Arc<dyn IrqLine>,
}

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.irq.trigger();
        Ok(())
    }
}

/// Transmitter of the UART.
struct Output(Arc<dyn SerialPeer>);

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.output(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

savestate::section! {
    struct PortState = "serial", version 1 {
        baud_divisor_low: u8,
        baud_divisor_high: u8,
        interrupt_enable: u8,
        interrupt_identification: u8,
        line_control: u8,
        line_status: u8,
        modem_control: u8,
        modem_status: u8,
        scratch: u8,
        /// What is in the FIFO.
        fifo: Bytes,
        /// What waits in front of it.
        queue: Bytes,
        /// The peer waits to be told that there is room again.
        refused: bool,
    }
}

struct State {
    uart: Uart<Line, NoEvents, Output>,
    queue: VecDeque<u8>,
    refused: bool,
    paused: bool,
}

impl State {
    /// Moves queued input into the FIFO, as much as fits.
    fn feed(&mut self) {
        if self.paused || self.queue.is_empty() {
            return;
        }
        let room = self.uart.fifo_capacity().min(self.queue.len());
        let bytes: Vec<u8> = self.queue.range(..room).copied().collect();
        // In loop-back mode the UART takes nothing from outside: the input waits.
        let taken = self.uart.enqueue_raw_bytes(&bytes).unwrap_or(0);
        self.queue.drain(..taken.min(room));
    }

    /// What the interrupt identification register says, after the UART said `identified`. Received data stays pending until the
    /// FIFO is empty: a driver that reads a bounded part of it asks again before it leaves, and no other interrupt will come. The
    /// UART takes the first byte that is read for all.
    fn identify(&mut self, identified: u8) -> u8 {
        if identified & NOTHING_PENDING == 0 || self.uart.read(LINE_STATUS) & DATA_READY == 0 {
            return identified;
        }
        // Received data is enabled by the lowest bit.
        match self.uart.state().interrupt_enable & 1 {
            0 => identified,
            _ => identified & !NOTHING_PENDING | RECEIVED_DATA,
        }
    }
}

/// A 16550A serial port: eight registers. Output leaves at once, input is queued up to [`INPUT_QUEUE_BYTES`].
pub struct Serial {
    name: String,
    peer: Arc<dyn SerialPeer>,
    irq: Arc<dyn IrqLine>,
    state: Mutex<State>,
    motion: Motion,
}

impl Serial {
    /// Length of the register block, bytes.
    pub const SIZE: u64 = 8;

    /// A port called `name`, interrupting by `irq`, connected to `peer`.
    pub fn new(name: impl Into<String>, irq: Arc<dyn IrqLine>, peer: Arc<dyn SerialPeer>) -> Self {
        Self {
            name: name.into(),
            state: Mutex::new(State {
                uart: power_on(&irq, &peer),
                queue: VecDeque::new(),
                refused: false,
                paused: false,
            }),
            peer,
            irq,
            motion: Motion::default(),
        }
    }

    /// Sends `bytes` to the guest and returns how many were taken. When that is less than all, the rest is the caller's: keep
    /// it until [`SerialPeer::input_wanted`].
    pub fn input(&self, bytes: &[u8]) -> usize {
        let mut state = lock(&self.state);
        let taken = bytes.len().min(INPUT_QUEUE_BYTES.saturating_sub(state.queue.len()));
        state.queue.extend(bytes.iter().take(taken));
        state.refused |= taken < bytes.len();
        state.feed();
        taken
    }
}

fn power_on(irq: &Arc<dyn IrqLine>, peer: &Arc<dyn SerialPeer>) -> Uart<Line, NoEvents, Output> {
    let line = Line { irq: Arc::clone(irq) };
    Uart::new(line, Output(Arc::clone(peer)))
}

impl BusHandler for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let ([byte], Ok(offset)) = (&mut *data, u8::try_from(offset)) else {
            data.fill(0xff);
            return;
        };
        let mut state = lock(&self.state);
        *byte = state.uart.read(offset);
        if u64::from(offset) == INTERRUPT_IDENTIFICATION {
            *byte = state.identify(*byte);
        }
        state.feed();
        if state.refused && state.queue.is_empty() {
            state.refused = false;
            self.peer.input_wanted();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (&[byte], Ok(offset)) = (data, u8::try_from(offset)) {
            let mut state = lock(&self.state);
            // Neither the interrupt line nor the peer can fail; a byte in loop-back that finds the FIFO full is the guest's.
            let _ = state.uart.write(offset, byte);
            state.feed();
        }
    }
}

impl Device for Serial {
    fn name(&self) -> &str {
        &self.name
    }

    fn start(&self) {
        self.motion.begin();
    }

    fn pause(&self) -> Draining {
        self.motion.hold();
        lock(&self.state).paused = true;
        Draining::done()
    }

    fn resume(&self) {
        self.motion.begin();
        let mut state = lock(&self.state);
        state.paused = false;
        state.feed();
    }

    /// Input that was queued and not yet read is dropped, as on a real line.
    fn reset(&self) {
        let mut state = lock(&self.state);
        state.uart = power_on(&self.irq, &self.peer);
        state.queue.clear();
        if std::mem::take(&mut state.refused) {
            self.peer.input_wanted();
        }
    }

    fn migration(&self) -> Migration<'_> {
        Migration::Sections(self)
    }
}

impl Migrate for Serial {
    fn save(&self) -> Result<Vec<Section>, SaveError> {
        self.motion.may_save(&self.name)?;
        let state = lock(&self.state);
        let uart = state.uart.state();
        let saved = PortState {
            baud_divisor_low: uart.baud_divisor_low,
            baud_divisor_high: uart.baud_divisor_high,
            interrupt_enable: uart.interrupt_enable,
            interrupt_identification: uart.interrupt_identification,
            line_control: uart.line_control,
            line_status: uart.line_status,
            modem_control: uart.modem_control,
            modem_status: uart.modem_status,
            scratch: uart.scratch,
            fifo: Bytes(uart.in_buffer),
            queue: Bytes(state.queue.iter().copied().collect()),
            refused: state.refused,
        };
        Ok(vec![saved.save(&self.name)])
    }

    /// An interrupt that is pending is raised once more: whether it had arrived is not known here, and one too many is asked for
    /// its reason in vain.
    fn load(&self, sections: &mut Sections) -> Result<(), LoadError> {
        self.motion.may_load(&self.name)?;
        let (saved, section) = sections.take::<PortState>(&self.name)?;
        if saved.queue.0.len() > INPUT_QUEUE_BYTES {
            return Err(LoadError::unfit(&section, "more input waits than a port keeps"));
        }
        let registers = SerialState {
            baud_divisor_low: saved.baud_divisor_low,
            baud_divisor_high: saved.baud_divisor_high,
            interrupt_enable: saved.interrupt_enable,
            interrupt_identification: saved.interrupt_identification,
            line_control: saved.line_control,
            line_status: saved.line_status,
            modem_control: saved.modem_control,
            modem_status: saved.modem_status,
            scratch: saved.scratch,
            in_buffer: saved.fifo.0,
        };
        let line = Line {
            irq: Arc::clone(&self.irq),
        };
        let uart = Uart::from_state(&registers, line, NoEvents, Output(Arc::clone(&self.peer)))
            .map_err(|_| LoadError::unfit(&section, "its FIFO holds more than that of a 16550A"))?;
        *lock(&self.state) = State {
            uart,
            queue: saved.queue.0.into(),
            refused: saved.refused,
            paused: true,
        };
        Ok(())
    }
}

/// What the register file holds; for tests of the port and of what saves it.
impl Serial {
    /// A copy of the registers and of the FIFO's contents.
    pub fn registers(&self) -> SerialState {
        lock(&self.state).uart.state()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::CountingLine;

    const DATA: u64 = 0;
    const INTERRUPT_ENABLE: u64 = 1;
    const MODEM_CONTROL: u64 = 4;
    const LINE_STATUS: u64 = 5;
    /// What the driver of Linux reads at most before it asks again whether anything is pending.
    const DRIVER_READS_MAX: usize = 256;

    #[derive(Default)]
    struct Peer {
        output: Mutex<Vec<u8>>,
        wanted: CountingLine,
    }

    impl SerialPeer for Peer {
        fn output(&self, bytes: &[u8]) {
            self.output.lock().unwrap().extend(bytes);
        }
        fn input_wanted(&self) {
            self.wanted.trigger();
        }
    }

    fn port() -> (Serial, Arc<Peer>, Arc<CountingLine>) {
        let peer = Arc::new(Peer::default());
        let line = Arc::new(CountingLine::default());
        (Serial::new("serial", line.clone(), peer.clone()), peer, line)
    }

    fn read(port: &Serial, offset: u64) -> u8 {
        let mut data = [0];
        port.read(offset, &mut data);
        data[0]
    }

    fn read_all(port: &Serial) -> Vec<u8> {
        std::iter::from_fn(|| (read(port, LINE_STATUS) & 1 != 0).then(|| read(port, DATA))).collect()
    }

    #[test]
    fn output_reaches_the_peer() {
        let (port, peer, _) = port();
        for byte in b"hello" {
            port.write(DATA, &[*byte]);
        }
        port.write(DATA, b"wide");
        assert_eq!(*peer.output.lock().unwrap(), b"hello");
    }

    #[test]
    fn input_interrupts_once_enabled_and_keeps_its_order() {
        let (port, _, line) = port();
        let sent: Vec<u8> = (0..200).collect();
        assert_eq!(port.input(&sent), 200);
        assert_eq!(line.count(), 0);
        port.write(INTERRUPT_ENABLE, &[1]);
        assert_eq!(line.count(), 1);
        assert_eq!(read_all(&port), sent);
        assert!(line.count() > 1, "refills of the FIFO interrupt");
    }

    /// An interrupt handler: reads, in bounded parts, until the port says that nothing is pending.
    fn handle(port: &Serial) -> Vec<u8> {
        let mut seen = Vec::new();
        while read(port, INTERRUPT_IDENTIFICATION) & NOTHING_PENDING == 0 {
            let more = || (read(port, LINE_STATUS) & DATA_READY != 0).then(|| read(port, DATA));
            seen.extend(std::iter::from_fn(more).take(DRIVER_READS_MAX));
        }
        seen
    }

    #[test]
    fn received_data_is_pending_until_all_is_read() {
        for length in [1, 63, 65, 256, 257, 300, 319, 321, 700] {
            let (port, _, line) = port();
            port.write(INTERRUPT_ENABLE, &[1]);
            let sent: Vec<u8> = (0..=255).cycle().take(length).collect();
            port.input(&sent);
            let (mut seen, mut handled) = (Vec::new(), 0);
            while line.count() > handled {
                handled = line.count();
                seen.extend(handle(&port));
            }
            assert_eq!(seen, sent, "{length}");
            // What is not enabled is not pending.
            port.input(b"more");
            port.write(INTERRUPT_ENABLE, &[0]);
            read(&port, INTERRUPT_IDENTIFICATION);
            assert_eq!(handle(&port), b"");
        }
    }

    #[test]
    fn refused_input_is_asked_for_when_the_queue_has_drained() {
        let (port, peer, _) = port();
        let flood = vec![b'x'; INPUT_QUEUE_BYTES + 1000];
        let taken = port.input(&flood);
        assert_eq!(taken, INPUT_QUEUE_BYTES);
        // The FIFO has taken its share, so that much more fits, and then nothing.
        let more = port.input(&flood);
        assert!((16..=64).contains(&more), "{more}");
        assert_eq!(port.input(b"y"), 0);
        assert_eq!(read_all(&port).len(), taken + more);
        assert_eq!(peer.wanted.count(), 1);
        assert_eq!(port.input(b"y"), 1);
    }

    #[test]
    fn loop_back_holds_outside_input() {
        let (port, peer, _) = port();
        port.write(MODEM_CONTROL, &[0x10]);
        port.input(b"outside");
        port.write(DATA, b"i");
        assert_eq!(read_all(&port), b"i");
        port.write(MODEM_CONTROL, &[0x08]);
        assert_eq!(read_all(&port), b"outside");
        assert!(peer.output.lock().unwrap().is_empty());
    }

    #[test]
    fn pause_holds_input_and_reset_drops_it() {
        let (port, _, line) = port();
        port.write(INTERRUPT_ENABLE, &[1]);
        port.pause().wait();
        port.input(b"abc");
        assert_eq!((read(&port, LINE_STATUS) & 1, line.count()), (0, 0));
        port.resume();
        assert_eq!(line.count(), 1);
        port.reset();
        assert_eq!(read_all(&port), b"");
        assert_eq!(read(&port, INTERRUPT_ENABLE), 0);
        assert_eq!(port.registers(), SerialState::default());
    }

    proptest::proptest! {
        #[test]
        fn no_access_panics(accesses in proptest::collection::vec((0_u64..300, proptest::collection::vec(0_u8.., 1..9), proptest::bool::ANY), 0..200)) {
            let (port, _, _) = port();
            for (offset, mut data, write) in accesses {
                if write { port.write(offset, &data) } else { port.read(offset, &mut data) }
                port.input(&data);
            }
        }
    }
}
