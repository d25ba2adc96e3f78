//! The process that is killed: writes through an engine and reports each request before it begins and after it has completed.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow};
use disk::{Access, Disk, DiskErrorKind, DiskIo, ZeroMode};
use guestmem::IoBuf;
use uring::{Executor, Ring};

use crate::engine::Engine;
use crate::random::Random;
use crate::shadow::Shadow;
use crate::stack::Stack;
use crate::transfer::alone;

/// Length of one report on the pipe, bytes.
pub const REPORT_BYTES: usize = 32;

/// What a report says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// The image is open.
    Opened,
    /// A change begins: it puts [`content`] there.
    Write,
    /// The same with zeroes.
    Zero,
    /// The same with zeroes, or nothing.
    Discard,
    /// A change has completed.
    Done,
    /// A flush begins.
    Flush,
    /// A flush has completed.
    FlushDone,
}

const ALL: [What; 7] = [
    What::Opened,
    What::Write,
    What::Zero,
    What::Discard,
    What::Done,
    What::Flush,
    What::FlushDone,
];

/// One report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// What happens.
    pub what: What,
    /// Number of the request.
    pub number: u64,
    /// Its first byte.
    pub offset: u64,
    /// Its length, bytes.
    pub len: u64,
}

impl Report {
    fn to_bytes(self) -> [u8; REPORT_BYTES] {
        let mut bytes = [0; REPORT_BYTES];
        let fields = [self.what as u64, self.number, self.offset, self.len];
        for (to, field) in bytes.chunks_mut(8).zip(fields) {
            to.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    /// The report in these bytes.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let field = |index: usize| {
            let bytes = bytes.get(index * 8..index * 8 + 8)?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        Some(Self {
            what: *ALL.get(usize::try_from(field(0)?).ok()?)?,
            number: field(1)?,
            offset: field(2)?,
            len: field(3)?,
        })
    }

    /// Hands it to the pipe in one piece; what is in the pipe outlives this process.
    fn tell(self) -> Result<()> {
        let mut pipe = std::io::stdout().lock();
        pipe.write_all(&self.to_bytes())?;
        pipe.flush()?;
        Ok(())
    }
}

/// What the write of this number puts on the disk.
pub fn content(seed: u64, number: u64, len: usize) -> Vec<u8> {
    Random::of(seed, number).bytes(len)
}

/// Writes until somebody kills this process.
pub fn run(engine: &dyn Engine, stack: &Stack, seed: u64) -> Result<()> {
    let opened = alone(engine.open(stack, Access::ReadWrite)).context("open")?;
    Report {
        what: What::Opened,
        number: 0,
        offset: 0,
        len: 0,
    }
    .tell()?;
    let size = usize::try_from(opened.disk.geometry().size_bytes)?;
    let shadow = Arc::new(Shadow::new(vec![0; size]));
    let numbers = Arc::new(AtomicU64::new(1));
    let threads: Vec<_> = (0..2)
        .map(|queue| {
            let victim = Victim {
                disk: Arc::clone(&opened.disk),
                shadow: Arc::clone(&shadow),
                numbers: Arc::clone(&numbers),
                zero: engine.abilities().zero,
                seed,
            };
            thread::spawn(move || victim.queue(queue))
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| anyhow!("a queue panicked"))??;
    }
    Ok(())
}

/// Opens the image after a crash, and closes it in good order.
pub fn finish(engine: &dyn Engine, stack: &Stack) -> Result<()> {
    alone(async {
        let opened = engine.open(stack, Access::ReadWrite).await?;
        (opened.close)().await
    })
}

#[derive(Clone)]
struct Victim {
    disk: Arc<dyn Disk>,
    shadow: Arc<Shadow>,
    numbers: Arc<AtomicU64>,
    zero: bool,
    seed: u64,
}

impl Victim {
    fn queue(self, queue: u64) -> Result<()> {
        Executor::new(64)?.block_on(async {
            let io = self.disk.open_queue()?;
            let ring = Ring::current()?;
            let tasks: Vec<_> = (0..3)
                .map(|task| {
                    let (victim, io) = (self.clone(), io.clone());
                    let mut random = Random::of(self.seed, 1000 + queue * 3 + task);
                    ring.spawn(async move {
                        loop {
                            victim.one(&*io, &mut random).await?;
                        }
                    })
                })
                .collect();
            for task in tasks {
                let ended: Result<()> = task.await;
                ended?;
            }
            Ok(())
        })?
    }

    async fn one(&self, io: &dyn DiskIo, random: &mut Random) -> Result<()> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let report = |what, offset, len| Report {
            what,
            number,
            offset,
            len,
        };
        if random.chance(9) {
            report(What::Flush, 0, 0).tell()?;
            io.flush().await.context("flush")?;
            return report(What::FlushDone, 0, 0).tell();
        }
        let Some((offset, len)) = self.shadow.reserve(random, 128 << 10, 4096) else {
            return Ok(());
        };
        let (at, count) = (offset as u64, len as u64);
        match if self.zero { random.below(12) } else { 0 } {
            10 => {
                report(What::Zero, at, count).tell()?;
                io.write_zeroes(at, count, ZeroMode::MayUnmap).await.context("zeroes")?;
            }
            11 => {
                report(What::Discard, at, count).tell()?;
                match io.discard(at, count).await {
                    Err(error) if error.kind() == DiskErrorKind::Unsupported => {}
                    result => result.context("discard")?,
                }
            }
            _ => {
                let bytes = content(self.seed, number, len);
                report(What::Write, at, count).tell()?;
                let (result, _) = io.write(at, vec![IoBuf::from_bytes(&bytes)?]).await;
                result.context("write")?;
            }
        }
        report(What::Done, at, count).tell()?;
        self.shadow.release(offset, len, None);
        Ok(())
    }
}

/// Opens `dir`'s image as the killer made it: its backing file, if it has one, is beside it.
pub fn stack_in(dir: &Path) -> Stack {
    use crate::stack::{Format, Layer};
    let mut layers = vec![Layer {
        path: dir.join("top.qcow2"),
        format: Format::Qcow2,
    }];
    for level in 1.. {
        let path = dir.join(format!("below{level}/disk"));
        let Ok(file) = std::fs::read(&path) else { break };
        let format = if file.starts_with(b"QFI\xfb") {
            Format::Qcow2
        } else {
            Format::Raw
        };
        layers.push(Layer { path, format });
    }
    let data = dir.join("data");
    Stack {
        layers,
        data_file: data.exists().then_some(data),
    }
}
