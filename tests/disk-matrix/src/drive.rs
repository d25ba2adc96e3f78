//! Random requests from several tasks on several queues, held against the model as they complete.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use disk::{Disk, DiskErrorKind, DiskIo, ZeroMode};
use uring::{Executor, Ring};

use crate::engine::Abilities;
use crate::random::Random;
use crate::shadow::{SECTOR, Shadow};
use crate::transfer::{difference, read_scattered, scattered};

/// How hard a disk is driven.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Of the requests.
    pub seed: u64,
    /// Requests in all.
    pub requests: u32,
    /// Queues, each on a thread of its own.
    pub queues: u32,
    /// Requests in flight on each.
    pub depth: u32,
    /// Longest request, bytes.
    pub longest: usize,
    /// What many requests are multiples of, bytes.
    pub align: usize,
    /// What the disk can do.
    pub abilities: Abilities,
}

/// Drives `disk`. Whatever it does differently from the model is an error.
pub fn drive(disk: &Arc<dyn Disk>, shadow: &Arc<Shadow>, plan: &Plan) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..plan.queues)
        .map(|queue| {
            let (disk, shadow, stop, plan) = (Arc::clone(disk), Arc::clone(shadow), Arc::clone(&stop), *plan);
            thread::spawn(move || {
                let ended = on_one_queue(&disk, &shadow, &stop, &plan, queue);
                stop.fetch_or(ended.is_err(), Ordering::Relaxed);
                ended
            })
        })
        .collect();
    let mut ended = Ok(());
    for thread in threads {
        let result = thread.join().map_err(|_| anyhow!("the thread of a queue panicked"));
        ended = ended.and(result.and_then(|result| result));
    }
    ended
}

fn on_one_queue(
    disk: &Arc<dyn Disk>,
    shadow: &Arc<Shadow>,
    stop: &Arc<AtomicBool>,
    plan: &Plan,
    queue: u32,
) -> Result<()> {
    let mut executor = Executor::new(64)?;
    executor.block_on(async {
        let io = disk.open_queue()?;
        let ring = Ring::current()?;
        let tasks: Vec<_> = (0..plan.depth)
            .map(|task| {
                let driver = Driver {
                    io: Rc::clone(&io),
                    shadow: Arc::clone(shadow),
                    random: Random::of(plan.seed, u64::from(queue * plan.depth + task) + 1),
                    plan: *plan,
                };
                let stop = Arc::clone(stop);
                ring.spawn(async move { driver.run(&stop).await })
            })
            .collect();
        let mut ended = Ok(());
        for task in tasks {
            let result = task.await;
            stop.fetch_or(result.is_err(), Ordering::Relaxed);
            ended = ended.and(result);
        }
        ended
    })?
}

struct Driver {
    io: Rc<dyn DiskIo>,
    shadow: Arc<Shadow>,
    random: Random,
    plan: Plan,
}

impl Driver {
    async fn run(mut self, stop: &AtomicBool) -> Result<()> {
        for number in 0..self.plan.requests / (self.plan.queues * self.plan.depth) {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            self.one()
                .await
                .with_context(|| format!("request {number} of a task"))?;
        }
        Ok(())
    }

    async fn one(&mut self) -> Result<()> {
        let can = self.plan.abilities;
        match self.random.below(100) {
            0..44 => self.write().await,
            44..46 if can.abandon => self.abandon().await,
            46..54 if can.zero => self.zero().await,
            54..61 if can.zero => self.discard().await,
            61..67 => self.io.flush().await.context("flush"),
            67 if can.grow => self.grow().await,
            _ => self.read().await,
        }
    }

    fn range(&mut self) -> Option<(usize, usize)> {
        self.shadow
            .reserve(&mut self.random, self.plan.longest, self.plan.align)
    }

    async fn write(&mut self) -> Result<()> {
        let Some((offset, len)) = self.range() else {
            return Ok(());
        };
        let bytes = self.random.bytes(len);
        let bufs = scattered(&mut self.random, &bytes)?;
        let count = bufs.len();
        let (result, bufs) = self.io.write(offset as u64, bufs).await;
        result.with_context(|| format!("write of {len} bytes at {offset}"))?;
        ensure!(
            bufs.len() == count,
            "a write gave back {} of {count} buffers",
            bufs.len()
        );
        self.shadow.release(offset, len, Some(&bytes));
        Ok(())
    }

    /// Begins a write and drops it.
    async fn abandon(&mut self) -> Result<()> {
        let Some((offset, len)) = self.range() else {
            return Ok(());
        };
        let bytes = self.random.bytes(len);
        let bufs = scattered(&mut self.random, &bytes)?;
        let mut write = self.io.write(offset as u64, bufs);
        for _ in 0..=self.random.below(3) {
            if poll_fn(|context| Poll::Ready(write.as_mut().poll(context).is_ready())).await {
                break;
            }
        }
        drop(write);
        self.shadow.abandon(offset, bytes);
        Ok(())
    }

    async fn read(&mut self) -> Result<()> {
        let Some((offset, len)) = self.range() else {
            return Ok(());
        };
        let found = read_scattered(&*self.io, &mut self.random, offset, len)
            .await
            .with_context(|| format!("read of {len} bytes at {offset}"))?;
        if let Some(words) = difference(&self.shadow.expected(offset, len), &found) {
            return Err(anyhow!("read of {len} bytes at {offset}: {words} (from there)"));
        }
        self.shadow.release(offset, len, None);
        Ok(())
    }

    async fn zero(&mut self) -> Result<()> {
        let Some((offset, len)) = self.range() else {
            return Ok(());
        };
        let mode = if self.random.chance(60) {
            ZeroMode::MayUnmap
        } else {
            ZeroMode::KeepAllocated
        };
        let zeroed = self.io.write_zeroes(offset as u64, len as u64, mode).await;
        zeroed.with_context(|| format!("zeroes ({mode:?}) of {len} bytes at {offset}"))?;
        self.shadow.release(offset, len, Some(&vec![0; len]));
        Ok(())
    }

    /// Afterwards every sector has to be what it was or zero; which, the model learns.
    async fn discard(&mut self) -> Result<()> {
        let Some((offset, len)) = self.range() else {
            return Ok(());
        };
        match self.io.discard(offset as u64, len as u64).await {
            Err(error) if error.kind() == DiskErrorKind::Unsupported => {}
            result => result.with_context(|| format!("discard of {len} bytes at {offset}"))?,
        }
        let now = read_scattered(&*self.io, &mut self.random, offset, len).await?;
        let old = self.shadow.expected(offset, len);
        for (index, (now, old)) in now.chunks(SECTOR).zip(old.chunks(SECTOR)).enumerate() {
            let zero = now.iter().all(|&byte| byte == 0);
            let place = offset + index * SECTOR;
            ensure!(
                zero || now == old,
                "the sector at {place} is neither old nor zero after a discard of {len} bytes at {offset}"
            );
        }
        self.shadow.release(offset, len, Some(&now));
        Ok(())
    }

    async fn grow(&mut self) -> Result<()> {
        let more = usize::try_from(self.random.below(512) + 1)? * SECTOR;
        let Some(size) = self.shadow.begin_growth(more) else {
            return Ok(());
        };
        let grown = self.io.grow(size as u64).await;
        self.shadow.end_growth(grown.is_ok().then_some(size));
        grown.with_context(|| format!("growth to {size} bytes"))
    }
}
