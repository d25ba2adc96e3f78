//! The SCSI host as a driver sees it.

mod drives;
mod hostile;
mod identity;
mod management;
mod media;

use std::sync::Arc;

use disk::{Disk, Geometry, InMemory};
use virtio::feature::{EVENT_IDX, INDIRECT_DESC};
use virtio::mock::{Buf, MockDriver, Used};

use super::config::feature::{CHANGE, HOTPLUG};
use super::{Lun, LunOptions, Medium, Scsi, ScsiOptions};

const EVERYTHING: u64 = EVENT_IDX | INDIRECT_DESC | HOTPLUG | CHANGE;
const GOOD: u8 = 0;
const CHECK: u8 = 2;
/// Bytes of an answer before data, with the sense size that drivers find.
const ANSWER: u32 = 12 + 96;

const ILLEGAL: u8 = 5;
const ATTENTION: u8 = 6;

/// The first unit.
fn first() -> Lun {
    Lun::new(0, 0).unwrap()
}

fn medium(medium: Medium) -> LunOptions {
    LunOptions {
        serial: "SN-0001".into(),
        medium,
    }
}

/// 1 MiB of zeroes.
fn blank() -> InMemory {
    InMemory::new(Geometry::of_size(1 << 20))
}

struct Bench {
    scsi: Arc<Scsi>,
    driver: MockDriver,
}

/// Where the parts of a submitted command lie.
struct Sent {
    head: u16,
    answer: u64,
    room: u32,
}

/// How a command went.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    code: u8,
    status: u8,
    residual: u32,
    sense: Vec<u8>,
    data: Vec<u8>,
    used: u32,
}

impl Answer {
    /// Sense key, code and qualifier.
    fn sense(&self) -> (u8, u8, u8) {
        assert_eq!((self.code, self.status), (0, CHECK), "{self:x?}");
        assert_eq!(self.sense.len(), 18);
        (self.sense[2], self.sense[12], self.sense[13])
    }

    /// Whether the field pointer is for the CDB, its byte, and its bit.
    fn field(&self) -> (bool, u16, Option<u8>) {
        assert_eq!(self.sense[15] & 0x80, 0x80, "{self:x?}");
        let bit = (self.sense[15] & 8 != 0).then_some(self.sense[15] & 7);
        let byte = u16::from_be_bytes([self.sense[16], self.sense[17]]);
        (self.sense[15] & 0x40 != 0, byte, bit)
    }

    fn good(self) -> Vec<u8> {
        assert_eq!((self.code, self.status), (0, GOOD), "{self:x?}");
        self.data
    }
}

impl Bench {
    /// A running driver for a host with this disk as unit 0:0, which has told that it is new.
    fn on(disk: impl Disk + 'static, options: LunOptions) -> Self {
        let mut bench = Self::empty(1);
        bench.scsi.attach(first(), Arc::new(disk), options).unwrap();
        bench.driver.start(EVERYTHING);
        assert_eq!(bench.ask(first(), &[0; 6]).sense(), (ATTENTION, 0x29, 0));
        bench
    }

    /// A host without units, and a driver that has not begun.
    fn empty(request_queues: u16) -> Self {
        let scsi = Arc::new(Scsi::new(ScsiOptions {
            name: "scsi0".into(),
            request_queues,
            queue_size: 128,
        }));
        let driver = MockDriver::new(Arc::clone(&scsi) as _);
        Self { scsi, driver }
    }

    fn header(address: [u8; 8], tag: u64, cdb: &[u8]) -> Vec<u8> {
        let mut header = [&address[..], &tag.to_le_bytes(), &[0; 3], cdb].concat();
        header.resize(51, 0);
        header
    }

    fn send_raw(&mut self, queue: u16, header: &[u8], out: &[u8], room: u32) -> Sent {
        let readable = self.driver.place(&[header, out].concat());
        let answer = self.driver.place(&vec![0xee; (ANSWER + room) as usize]);
        let readable = Buf::Readable(readable, u32::try_from(header.len() + out.len()).unwrap());
        let head = self
            .driver
            .submit(queue, &[readable, Buf::Writable(answer, ANSWER + room)]);
        Sent { head, answer, room }
    }

    fn answer_of(&self, sent: &Sent, used: Used) -> Answer {
        let head = self.driver.bytes(sent.answer, 12);
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
        let room = sent.room as usize;
        Answer {
            code: head[11],
            status: head[10],
            residual: word(4),
            sense: self.driver.bytes(sent.answer + 12, word(0) as usize),
            data: self.driver.bytes(sent.answer + u64::from(ANSWER), room),
            used: used.len,
        }
    }

    /// Does a command with data to the unit, or room for `room` bytes from it.
    fn exchange(&mut self, address: [u8; 8], cdb: &[u8], out: &[u8], room: u32) -> Answer {
        let sent = self.send_raw(2, &Self::header(address, 1, cdb), out, room);
        let used = self.driver.wait_used(2);
        assert_eq!(used.head, sent.head);
        self.answer_of(&sent, used)
    }

    /// A command without data.
    fn ask(&mut self, lun: Lun, cdb: &[u8]) -> Answer {
        self.exchange(lun.bytes(), cdb, &[], 0)
    }

    /// What a command of unit 0:0 gives, without what it leaves of `room`.
    fn get(&mut self, cdb: &[u8], room: u32) -> Vec<u8> {
        let answer = self.exchange(first().bytes(), cdb, &[], room);
        let moved = (room - answer.residual) as usize;
        let mut data = answer.good();
        assert!(data[moved..].iter().all(|&byte| byte == 0xee), "more than was said");
        data.truncate(moved);
        data
    }

    /// A command with data for unit 0:0.
    fn put(&mut self, cdb: &[u8], out: &[u8]) -> Answer {
        self.exchange(first().bytes(), cdb, out, 0)
    }

    /// Asks the control queue.
    fn control(&mut self, words: &[&[u8]], room: u32) -> Vec<u8> {
        let bytes = words.concat();
        let readable = self.driver.place(&bytes);
        let answer = self.driver.allocate(room as usize);
        let readable = Buf::Readable(readable, u32::try_from(bytes.len()).unwrap());
        self.driver.submit(0, &[readable, Buf::Writable(answer, room)]);
        assert_eq!(self.driver.wait_used(0).len, room);
        self.driver.bytes(answer, room as usize)
    }

    /// A task management function.
    fn manage(&mut self, function: u32, lun: Lun, tag: u64) -> u8 {
        let words: [&[u8]; 4] = [&[0; 4], &function.to_le_bytes(), &lun.bytes(), &tag.to_le_bytes()];
        self.control(&words, 1)[0]
    }
}
