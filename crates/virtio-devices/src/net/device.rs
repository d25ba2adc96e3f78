//! The network card as its transport sees it.

use std::collections::BTreeMap;
use std::sync::Arc;

use device::{Draining, Migrate, Migration, SaveError};
use savestate::{LoadError, SaveState, Section, Sections};
use virtio::{ActivateError, Activation, DeviceKind, VirtQueue, VirtioDevice};

use super::config::{self, NetOptions, PAIRS_MAX, feature};
use super::receive::Receiver;
use super::wire::Wire;
use super::worker::{NetCounters, Queues, Shared, Worker};
use crate::config_space;
use crate::crew::{Crew, Job, Make, Served};

savestate::section! {
    struct NetState = "virtio-net", version 1 {
        /// Queue pairs that take frames, the first ones.
        pairs: u16,
    }
}

/// A virtio network card on a tap.
pub struct Net {
    options: NetOptions,
    queue_sizes: Vec<u16>,
    shared: Arc<Shared>,
    crew: Crew,
}

impl Net {
    /// A card with a queue pair per queue of `wire`, at most 64.
    pub fn new(wire: Box<dyn Wire>, options: NetOptions) -> Self {
        let shared = Shared::new(wire, PAIRS_MAX);
        Self {
            options,
            queue_sizes: config::queue_sizes(shared.pairs()),
            shared: Arc::new(shared),
            crew: Crew::default(),
        }
    }

    /// What it did so far.
    pub fn counters(&self) -> &Arc<NetCounters> {
        &self.shared.counters
    }

    /// What its driver can do without being asked again: offloads on the wire, one pair.
    fn prepare(&self, features: u64) -> Result<(), ActivateError> {
        let prepared = self.shared.wire().set_offloads(config::offloads(features));
        prepared
            .and_then(|()| self.shared.use_pairs(1))
            .map_err(|error| ActivateError {
                device: self.options.name.clone(),
                missing: "a tap that takes its settings",
                source: Some(error.into()),
            })
    }

    fn job(&self, pair: usize, queues: BTreeMap<usize, VirtQueue>, features: u64) -> Job<Worker> {
        let shared = Arc::clone(&self.shared);
        let merges = features & feature::MRG_RXBUF != 0;
        let frame_max = config::frame_max(features, &self.options);
        let control_index = config::control_index(features, shared.pairs());
        let first = queues.values().next().map_or(0, VirtQueue::index);
        let make: Make<Worker> = Box::new(move |place| {
            let mut queues = queues;
            for queue in queues.values() {
                place.listen(queue)?;
            }
            let control = control_index.and_then(|index| queues.remove(&index)).map(Served::new);
            let queues = Queues {
                receive: queues
                    .remove(&(2 * pair))
                    .map(|queue| Receiver::new(queue, merges, frame_max))
                    .transpose()?,
                transmit: queues.remove(&(2 * pair + 1)).map(Served::new),
                control,
            };
            Worker::new(queues, pair, shared, place).ok_or_else(|| "a pair the wire does not have".into())
        });
        Job { queue: first, make }
    }
}

impl VirtioDevice for Net {
    fn name(&self) -> &str {
        &self.options.name
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::NET
    }

    fn features(&self) -> u64 {
        config::features(&self.options, self.shared.pairs())
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        config_space::read(&config::space(&self.options, self.shared.pairs()), offset, data);
    }

    /// Modern drivers change nothing here.
    fn config_write(&self, _offset: u64, _data: &[u8]) {}

    fn activate(&self, activation: Activation) -> Result<(), ActivateError> {
        let features = activation.features;
        self.prepare(features)?;
        let control = config::control_index(features, self.shared.pairs());
        let mut pairs: BTreeMap<usize, BTreeMap<usize, VirtQueue>> = BTreeMap::new();
        for queue in activation.queues {
            let index = usize::from(queue.index());
            // The control queue goes with the first pair, to which every driver has queues.
            let pair = if Some(index) == control { 0 } else { index / 2 };
            if pair < self.shared.pairs() {
                pairs.entry(pair).or_default().insert(index, queue);
            }
        }
        let jobs = pairs.into_iter().map(|(pair, queues)| self.job(pair, queues, features));
        self.crew.start(&self.options.name, &activation.signals, jobs.collect())
    }

    fn deactivate(&self) -> Vec<VirtQueue> {
        let queues = self.crew.stop();
        self.shared.release();
        queues
    }

    fn pause(&self) -> Draining {
        self.crew.pause()
    }

    fn resume(&self) {
        self.crew.resume();
    }

    fn migration(&self) -> Migration<'_> {
        Migration::Sections(self)
    }
}

impl Migrate for Net {
    fn save(&self) -> Result<Vec<Section>, SaveError> {
        let pairs = u16::try_from(self.shared.attached()).unwrap_or(u16::MAX);
        Ok(vec![NetState { pairs }.save(&self.options.name)])
    }

    /// Offloads were set on the new wire by the activation before this, from the driver's features.
    fn load(&self, sections: &mut Sections) -> Result<(), LoadError> {
        let (state, section) = sections.take::<NetState>(&self.options.name)?;
        let pairs = usize::from(state.pairs);
        if pairs == 0 || pairs > self.shared.pairs() {
            let why = format!("it used {pairs} queue pairs, and has {}", self.shared.pairs());
            return Err(LoadError::unfit(&section, why));
        }
        self.shared
            .use_pairs(pairs)
            .map_err(|error| LoadError::unfit(&section, format!("its tap does not take its settings: {error}")))
    }
}

/// Whoever gets the wire next finds it as this card did.
impl Drop for Net {
    fn drop(&mut self) {
        drop(self.deactivate());
    }
}
