//! One set of streams with a source: who may join, what may come when.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::event::Event;
use super::inflow::{Agreed, Brought, Inflow, Rooms};
use super::{Expected, porter};
use crate::clock::Clock;
use crate::error::Failure;
use crate::link::{Acceptor, HangUp, Link};
use crate::machine::TargetMemory;
use crate::options::STREAMS_MAX;
use crate::outbox::Outbox;
use crate::page_set::PageSet;
use crate::section::Sections;
use crate::source::MISSING_PER_FRAME;
use crate::wire::{
    Hello, KIND_PAGES, Message, Offers, PageFrame, Purpose, RefuseReason, StreamHello, VERSION_MAX, VERSION_MIN,
    Welcome, read_frame,
};

/// How often deadlines are looked at while nothing happens.
const TICK: Duration = Duration::from_millis(20);
/// Page numbers in one request.
const WANTED_PER_FRAME: usize = 1024;

/// Streams with one source. Dropping it ends them.
pub(super) struct Session<'a, M> {
    expected: &'a Expected,
    purpose: Purpose,
    offers: Offers,
    inflow: Arc<Inflow<M>>,
    clock: Arc<dyn Clock>,
    events: Receiver<Event>,
    sender: Sender<Event>,
    over: Arc<AtomicBool>,
    outbox: Option<Outbox>,
    version: u16,
    agreed: Agreed,
    /// The last round that ended on each page stream that is up.
    ended: Vec<Option<u32>>,
    round: u32,
    idle: Duration,
    seen: (u64, Duration),
    hang_ups: Vec<HangUp>,
    threads: Vec<JoinHandle<()>>,
}

impl<M> Drop for Session<'_, M> {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        if let Some(outbox) = &mut self.outbox {
            outbox.close();
        }
        for hang_up in &self.hang_ups {
            hang_up();
        }
        if let Some(outbox) = &mut self.outbox {
            outbox.join();
        }
        for thread in self.threads.drain(..) {
            // Its panic, if it had one, was reported where it happened.
            let _ = thread.join();
        }
    }
}

fn refuse(link: Link, reason: RefuseReason, text: &str) {
    let mut outbox = Outbox::new(link.writer);
    outbox.send(&Message::Refuse {
        reason,
        text: text.into(),
    });
    outbox.close();
    (link.hang_up)();
    outbox.join();
}

impl<'a, M: TargetMemory + 'static> Session<'a, M> {
    pub(super) fn new(
        expected: &'a Expected,
        purpose: Purpose,
        inflow: Arc<Inflow<M>>,
        acceptor: Box<dyn Acceptor>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let (sender, events) = mpsc::channel();
        let over = Arc::new(AtomicBool::new(false));
        let (told, ended) = (sender.clone(), Arc::clone(&over));
        let porter = thread::spawn(move || porter::attend(acceptor, &told, &ended));
        let told = sender.clone();
        inflow.wanted.attach(Box::new(move || {
            // A session that is over has no use for it; the next one asks for all that are left.
            let _ = told.send(Event::Wanted);
        }));
        let now = clock.now();
        Self {
            expected,
            purpose,
            offers: expected.offers,
            inflow,
            clock,
            events,
            sender,
            over,
            outbox: None,
            version: VERSION_MIN,
            agreed: Agreed {
                offers: Offers::none(),
                streams: 1,
            },
            ended: Vec::new(),
            round: 0,
            idle: expected.patience,
            seen: (0, now),
            hang_ups: Vec::new(),
            threads: vec![porter],
        }
    }

    pub(super) fn send(&self, message: &Message) {
        if let Some(outbox) = &self.outbox {
            outbox.send(message);
        }
    }

    /// Waits for the source and its page streams, and agrees with it.
    pub(super) fn join(&mut self, can_post_copy: bool) -> Result<(), Failure> {
        if can_post_copy {
            self.offers = self.offers.with(Offers::POST_COPY);
        }
        let mut agreed = false;
        while !agreed || self.ended.iter().any(Option::is_none) {
            match self.next()? {
                Some(Event::Control(Message::Parameters(parameters))) if !agreed => {
                    if parameters.streams != self.agreed.streams || parameters.offers != self.agreed.offers {
                        return Err(Failure::Protocol("parameters that were not agreed upon"));
                    }
                    self.idle = Duration::from_millis(parameters.idle_timeout_ms.into()).max(self.idle);
                    agreed = true;
                }
                // Page streams may be faster than the control stream: a whole round, before the parameters.
                Some(Event::RoundEnd { stream, round }) => self.round_end(stream, round)?,
                // Who is here already needs no more.
                Some(Event::NoMore(failure)) if self.ended.is_empty() || self.ended.contains(&None) => {
                    return Err(failure);
                }
                Some(Event::Control(_)) => return Err(Failure::Protocol("a message before all streams are up")),
                _ => {}
            }
        }
        Ok(())
    }

    /// Takes rounds, sections and missing pages until the seal, and checks that they are what was sealed.
    pub(super) fn copy(&mut self) -> Result<(Sections, PageSet), Failure> {
        let mut sections = Sections::default();
        let mut missing = PageSet::empty(self.expected.layout.pages());
        loop {
            match self.next()? {
                Some(Event::RoundEnd { stream, round }) => self.round_end(stream, round)?,
                Some(Event::Control(Message::Section(section))) => sections.push(section)?,
                Some(Event::Control(Message::Missing(pairs))) => {
                    pairs.iter().for_each(|(chunk, mask)| missing.add(*chunk, *mask));
                }
                Some(Event::Control(Message::Seal(seal))) => {
                    if seal.sections != sections.count() || seal.digest != sections.digest() {
                        return Err(Failure::Protocol("sections that are not the sealed ones"));
                    }
                    if seal.missing != missing.len() {
                        return Err(Failure::Protocol("missing pages that are not the sealed ones"));
                    }
                    if seal.missing != 0 && !self.agreed.offers.has(Offers::POST_COPY) {
                        return Err(Failure::Protocol("a post-copy that was not agreed upon"));
                    }
                    return Ok((sections, missing));
                }
                Some(Event::Control(_)) => return Err(Failure::Protocol("a message that has no place while copying")),
                _ => {}
            }
        }
    }

    fn round_end(&mut self, stream: u8, round: u32) -> Result<(), Failure> {
        let ended = self
            .ended
            .get_mut(usize::from(stream))
            .filter(|_| round == self.round + 1);
        let Some(ended) = ended else {
            return Err(Failure::Protocol("a round ends that did not begin"));
        };
        *ended = Some(round);
        if self.ended.iter().all(|ended| *ended == Some(round)) {
            self.round = round;
            self.send(&Message::RoundDone(round));
        }
        Ok(())
    }

    /// Waits for the word to start.
    pub(super) fn await_start(&mut self) -> Result<(), Failure> {
        loop {
            match self.next() {
                Ok(Some(Event::Control(Message::Start(key)))) if key == self.expected.key => return Ok(()),
                Ok(Some(Event::Control(_))) => return Err(Failure::Protocol("something else than start")),
                // The page streams are not needed for it.
                Ok(_) | Err(Failure::Link { stream: "page", .. }) => {}
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Says what is missing, to a source that serves again.
    pub(super) fn list_missing(&self) {
        let missing = self.inflow.missing();
        let pairs: Vec<_> = missing.chunks().collect();
        for pairs in pairs.chunks(MISSING_PER_FRAME) {
            self.send(&Message::Missing(pairs.to_vec()));
        }
        self.send(&Message::Ready {
            key: self.expected.key,
            missing: missing.len(),
        });
    }

    /// Takes missing pages until there are none, and asks first for those that the machine waits for.
    pub(super) fn pull(&mut self) -> Result<(), Failure> {
        self.request();
        while self.inflow.left() > 0 {
            match self.next()? {
                Some(Event::Wanted) => self.request(),
                Some(Event::Control(_)) => {
                    return Err(Failure::Protocol("a message that has no place after the start"));
                }
                _ => {}
            }
        }
        self.send(&Message::Complete(self.expected.key));
        Ok(())
    }

    fn request(&self) {
        let mut pages = self.inflow.wanted.take_fresh();
        pages.retain(|page| self.inflow.is_missing(*page));
        for pages in pages.chunks(WANTED_PER_FRAME) {
            self.send(&Message::Wanted(pages.to_vec()));
        }
    }

    /// The next event that is not about who may join, or none after a tick.
    fn next(&mut self) -> Result<Option<Event>, Failure> {
        let now = self.clock.now();
        let frames = self.inflow.frames.load(Ordering::Relaxed);
        if frames != self.seen.0 {
            self.seen = (frames, now);
        }
        match self.events.recv_timeout(TICK) {
            Ok(Event::Greeted(link, Message::Hello(hello))) => self.hello(link, &hello).map(|()| None),
            Ok(Event::Greeted(link, Message::StreamHello(hello))) => {
                self.stream_hello(link, hello);
                Ok(None)
            }
            Ok(Event::ControlLost(failure) | Event::StreamLost(failure)) => Err(failure),
            Ok(Event::Control(Message::Abort { key, text })) if key == self.expected.key => {
                Err(Failure::PeerGaveUp(text))
            }
            Ok(event) => {
                if matches!(event, Event::Control(_)) {
                    self.seen.1 = now;
                }
                Ok(Some(event))
            }
            Err(RecvTimeoutError::Timeout) if now.saturating_sub(self.seen.1) >= self.idle => {
                Err(Failure::Idle(self.idle))
            }
            Err(RecvTimeoutError::Timeout) => Ok(None),
            // This holds a sender itself.
            Err(RecvTimeoutError::Disconnected) => Err(Failure::Protocol("no stream is left")),
        }
    }

    /// Takes the source's control stream, once. Strangers are sent away and change nothing; a source with the right key that
    /// asks for something else will not do better later.
    fn hello(&mut self, link: Link, hello: &Hello) -> Result<(), Failure> {
        let expected = self.expected;
        let version = VERSION_MAX.min(hello.version_max);
        let (reason, text, fatal) = if hello.key != expected.key {
            (RefuseReason::Key, "no such migration is expected here", false)
        } else if self.outbox.is_some() {
            (
                RefuseReason::Duplicate,
                "this migration has a control stream already",
                false,
            )
        } else if hello.purpose != self.purpose {
            (RefuseReason::State, "this migration is not at that point", false)
        } else if version < VERSION_MIN.max(hello.version_min) {
            (RefuseReason::Version, "no version of the protocol in common", true)
        } else if hello.machine != expected.machine {
            (RefuseReason::Machine, "another machine is expected", true)
        } else if hello.layout != expected.layout.digest() || hello.pages != expected.layout.pages() {
            (
                RefuseReason::Layout,
                "the machine here has its memory at other places",
                true,
            )
        } else {
            self.welcome(link, version, hello);
            return Ok(());
        };
        refuse(link, reason, text);
        if fatal {
            Err(Failure::Refused {
                reason,
                text: text.into(),
            })
        } else {
            Ok(())
        }
    }

    fn welcome(&mut self, link: Link, version: u16, hello: &Hello) {
        self.version = version;
        self.agreed = Agreed {
            offers: hello.offers.and(self.offers),
            streams: hello.streams.clamp(1, STREAMS_MAX),
        };
        self.ended = vec![None; self.agreed.streams.into()];
        let outbox = Outbox::new(link.writer);
        outbox.send(&Message::Welcome(Welcome {
            version,
            offers: self.agreed.offers,
            streams: self.agreed.streams,
        }));
        self.outbox = Some(outbox);
        self.hang_ups.push(link.hang_up);
        let (inflow, events, agreed) = (Arc::clone(&self.inflow), self.sender.clone(), self.agreed);
        self.threads
            .push(thread::spawn(move || listen(link.reader, &inflow, &events, agreed)));
    }

    /// Takes each page stream once.
    fn stream_hello(&mut self, link: Link, hello: StreamHello) {
        let slot = self.ended.get_mut(usize::from(hello.stream));
        let (reason, text) = match slot {
            _ if hello.key != self.expected.key => (RefuseReason::Key, "no such migration is expected here"),
            Some(slot @ None) if hello.version == self.version && hello.purpose == self.purpose => {
                *slot = Some(0);
                self.hang_ups.push(Arc::clone(&link.hang_up));
                let (inflow, events, agreed) = (Arc::clone(&self.inflow), self.sender.clone(), self.agreed);
                self.threads.push(thread::spawn(move || {
                    take_pages(link, hello.stream, &inflow, &events, agreed);
                }));
                return;
            }
            Some(Some(_)) => (RefuseReason::Duplicate, "there is such a page stream already"),
            _ => (RefuseReason::State, "no such page stream was agreed upon"),
        };
        refuse(link, reason, text);
    }
}

/// Reads the control stream until it breaks or nobody listens.
fn listen<M: TargetMemory>(
    mut reader: Box<dyn std::io::Read + Send>,
    inflow: &Inflow<M>,
    events: &Sender<Event>,
    agreed: Agreed,
) {
    let (mut payload, mut unpacked) = (Vec::new(), Vec::new());
    let broken = |error| Failure::Link {
        stream: "control",
        error,
    };
    loop {
        let read = read_frame(&mut reader, &mut payload).map_err(broken);
        let event = match read {
            Ok(KIND_PAGES) => PageFrame::decode(&payload)
                .map_err(broken)
                .and_then(|frame| inflow.apply(&frame, &mut unpacked, None, agreed))
                .map(|brought| (brought == Brought::All).then_some(Event::AllPlaced)),
            Ok(kind) => Message::decode(kind, &payload)
                .map_err(broken)
                .map(|message| Some(Event::Control(message))),
            Err(failure) => Err(failure),
        };
        let (event, last) = match event {
            Ok(Some(event)) => (event, false),
            Ok(None) => continue,
            Err(failure) => (Event::ControlLost(failure), true),
        };
        if events.send(event).is_err() || last {
            return;
        }
    }
}

/// Takes what comes on one page stream until it breaks or nobody listens.
fn take_pages<M: TargetMemory>(link: Link, stream: u8, inflow: &Inflow<M>, events: &Sender<Event>, agreed: Agreed) {
    let Link {
        mut reader,
        mut writer,
        hang_up: _,
    } = link;
    let welcome = writer
        .write_all(&Message::StreamWelcome.encode())
        .and_then(|()| writer.flush());
    if let Err(error) = welcome {
        let error = crate::wire::WireError::Io(error);
        // The session may be over.
        let _ = events.send(Event::StreamLost(Failure::Link { stream: "page", error }));
        return;
    }
    let mut rooms = Rooms::default();
    loop {
        let event = match inflow.next(&mut *reader, &mut rooms, stream, agreed) {
            Ok(Brought::Pages) => continue,
            Ok(Brought::All) => Event::AllPlaced,
            Ok(Brought::RoundEnd(round)) => Event::RoundEnd { stream, round },
            Err(failure) => Event::StreamLost(failure),
        };
        let last = matches!(event, Event::StreamLost(_));
        if events.send(event).is_err() || last {
            return;
        }
    }
}
