//! Every device with state, saved and loaded.

use std::sync::Arc;

use device::conformance::{check, load, save};
use device::{BusHandler, Device};

use crate::testing::CountingLine;
use crate::{EventRegister, PmTimer, Rtc, Serial, SerialPeer};

struct Deaf;

impl SerialPeer for Deaf {
    fn output(&self, _bytes: &[u8]) {}
    fn input_wanted(&self) {}
}

fn serial() -> Arc<Serial> {
    Arc::new(Serial::new("serial", Arc::new(CountingLine::default()), Arc::new(Deaf)))
}

fn read(handler: &dyn BusHandler, offset: u64) -> u8 {
    let mut data = [0];
    handler.read(offset, &mut data);
    data[0]
}

#[test]
fn a_serial_port_keeps_registers_fifo_and_what_waits() {
    let port = serial();
    port.start();
    for (offset, value) in [(3, 0x83), (0, 0x0c), (1, 0), (3, 0x03), (1, 0x01), (7, 0x5a)] {
        port.write(offset, &[value]);
    }
    let sent: Vec<u8> = (0..200).collect();
    port.input(&sent);
    assert_eq!([read(&*port, 0), read(&*port, 0)], [0, 1]);
    port.pause().wait();
    check(&*port, || serial());
    let again = serial();
    load(&*again, &save(&*port));
    again.resume();
    let rest: Vec<u8> = std::iter::from_fn(|| (read(&*again, 5) & 1 != 0).then(|| read(&*again, 0))).collect();
    assert_eq!(rest, sent[2..], "no byte is lost, none comes twice");
    assert_eq!(read(&*again, 7), 0x5a);
    again.input(b"x");
    assert_eq!(read(&*again, 0), b'x');
}

#[test]
fn a_clock_keeps_its_distance_from_the_host_and_its_nvram() {
    let rtc = Rtc::new();
    for (index, value) in [(0x0b, 0x82), (0x32, 0x21), (0x09, 0x42), (0x50, 0xa5), (0x0b, 0x02)] {
        rtc.write(0, &[index]);
        rtc.write(1, &[value]);
    }
    check(&rtc, || Arc::new(Rtc::new()));
    let again = Rtc::new();
    load(&again, &save(&rtc));
    for (index, value) in [(0x32, 0x21), (0x09, 0x42), (0x50, 0xa5)] {
        again.write(0, &[index]);
        assert_eq!(read(&again, 1), value);
    }
    rtc.write(0, &[0x0b]);
    rtc.write(1, &[0x82]);
    check(&rtc, || Arc::new(Rtc::new()));
}

#[test]
fn a_pressed_power_button_is_told_in_the_new_process() {
    let make = || Arc::new(EventRegister::new(Arc::new(CountingLine::default())));
    let events = make();
    events.start();
    events.pause().wait();
    events.press_power_button();
    check(&*events, || make());
    let line = Arc::new(CountingLine::default());
    let again = EventRegister::new(line.clone());
    load(&again, &save(&*events));
    assert_eq!(line.count(), 0);
    again.resume();
    assert_eq!(line.count(), 1);
    let mut data = [0; 4];
    again.read(0, &mut data);
    assert_eq!(data, [1, 0, 0, 0]);
}

#[test]
fn a_copy_is_told_of_its_generation_once_it_goes_on() {
    let events = EventRegister::new(Arc::new(CountingLine::default()));
    events.start();
    events.pause().wait();
    let line = Arc::new(CountingLine::default());
    let copy = EventRegister::new(line.clone());
    load(&copy, &save(&events));
    copy.tell_generation();
    assert_eq!(line.count(), 0);
    copy.resume();
    assert_eq!(line.count(), 1);
    let mut data = [0; 4];
    copy.read(0, &mut data);
    assert_eq!(data, [2, 0, 0, 0]);
}

#[test]
fn the_timer_goes_on_where_it_was() {
    let timer = PmTimer::new();
    timer.start();
    std::thread::sleep(std::time::Duration::from_millis(30));
    timer.pause().wait();
    check(&timer, || Arc::new(PmTimer::new()));
    let count = |timer: &PmTimer| {
        let mut data = [0; 4];
        timer.read(0, &mut data);
        u32::from_le_bytes(data)
    };
    let again = PmTimer::new();
    load(&again, &save(&timer));
    again.resume();
    let ticks = count(&again);
    assert!((30 * 3579..10_000 * 3579).contains(&ticks), "{ticks}");
    assert!(count(&timer) >= 30 * 3579);
}
