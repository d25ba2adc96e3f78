//! The entropy source as its transport sees it.

use std::sync::Arc;

use device::{Draining, Migration};
use virtio::{ActivateError, Activation, DeviceKind, VirtQueue, VirtioDevice};

use super::worker::{RngCounters, Worker};
use crate::config_space;
use crate::crew::{Crew, Job};

/// Entries of the one queue. Drivers keep a single request in it.
const QUEUE_SIZE: u16 = 64;
/// Bytes per second when nothing else is said: far more than any guest needs, far less than the host can give.
const RATE_DEFAULT: u64 = 1 << 20;

/// What an entropy source is.
#[derive(Debug, Clone)]
pub struct RngOptions {
    /// Unique in the machine, as `rng0`.
    pub name: String,
    /// Most bytes per second, from 1 on.
    pub bytes_per_second: u64,
}

impl RngOptions {
    /// At the default rate of 1 MiB/s.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            bytes_per_second: RATE_DEFAULT,
        }
    }
}

/// A virtio entropy source.
pub struct Rng {
    options: RngOptions,
    counters: Arc<RngCounters>,
    crew: Crew,
}

impl Rng {
    /// A source with these options.
    pub fn new(options: RngOptions) -> Self {
        Self {
            options,
            counters: Arc::default(),
            crew: Crew::default(),
        }
    }

    /// What it did so far.
    pub const fn counters(&self) -> &Arc<RngCounters> {
        &self.counters
    }
}

impl VirtioDevice for Rng {
    fn name(&self) -> &str {
        &self.options.name
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::ENTROPY
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        config_space::read(&[], offset, data);
    }

    /// There is no configuration.
    fn config_write(&self, _offset: u64, _data: &[u8]) {}

    fn activate(&self, activation: Activation) -> Result<(), ActivateError> {
        let jobs = activation.queues.into_iter().map(|queue| -> Job<Worker> {
            let (rate, counters) = (self.options.bytes_per_second, Arc::clone(&self.counters));
            Job {
                queue: queue.index(),
                make: Box::new(move |place| {
                    place.listen(&queue)?;
                    Ok(Worker::new(queue, rate, counters, place))
                }),
            }
        });
        self.crew.start(&self.options.name, &activation.signals, jobs.collect())
    }

    fn deactivate(&self) -> Vec<VirtQueue> {
        self.crew.stop()
    }

    fn pause(&self) -> Draining {
        self.crew.pause()
    }

    fn resume(&self) {
        self.crew.resume();
    }

    /// Its bucket is full again in the new process: a few kilobytes of randomness more.
    fn migration(&self) -> Migration<'_> {
        Migration::Stateless
    }
}
