//! Takes streams and reads their first frame, so that the session only sees who has said who it is.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::event::Event;
use crate::error::Failure;
use crate::link::{Acceptor, HangUp, Link};
use crate::wire::{Message, read_frame};

/// Most streams that have not said hello yet; the one that is silent for longest goes first.
const STRANGERS_MAX: usize = 32;
/// How often it is looked whether the session is over.
const TICK: Duration = Duration::from_millis(20);

/// A stream that has not said hello.
struct Stranger {
    greeted: Arc<AtomicBool>,
    hang_up: HangUp,
    thread: JoinHandle<()>,
}

/// Runs until `over`, then ends all streams that have not said hello.
pub(super) fn attend(mut acceptor: Box<dyn Acceptor>, events: &Sender<Event>, over: &AtomicBool) {
    let mut strangers: VecDeque<Stranger> = VecDeque::new();
    while !over.load(Ordering::Acquire) {
        match acceptor.accept(TICK) {
            Ok(Some(link)) => {
                strangers.push_back(greet(link, events.clone()));
                strangers.retain(|stranger| !stranger.thread.is_finished());
                if strangers.len() > STRANGERS_MAX
                    && let Some(oldest) = strangers.pop_front()
                {
                    dismiss(oldest);
                }
            }
            Ok(None) => {}
            Err(error) => {
                // The session may be over.
                let _ = events.send(Event::NoMore(Failure::Connect(error)));
                break;
            }
        }
    }
    strangers.into_iter().for_each(dismiss);
}

fn greet(link: Link, events: Sender<Event>) -> Stranger {
    let (greeted, hang_up) = (Arc::new(AtomicBool::new(false)), Arc::clone(&link.hang_up));
    let said = Arc::clone(&greeted);
    let thread = thread::spawn(move || {
        let mut link = link;
        let mut payload = Vec::new();
        let hello = read_frame(&mut link.reader, &mut payload).and_then(|kind| Message::decode(kind, &payload));
        match hello {
            Ok(hello @ (Message::Hello(_) | Message::StreamHello(_))) => {
                said.store(true, Ordering::Release);
                // A session that is over drops the link, which its peer sees once it is ended.
                if let Err(unsent) = events.send(Event::Greeted(link, hello))
                    && let Event::Greeted(link, _) = unsent.0
                {
                    (link.hang_up)();
                }
            }
            // Not one of ours.
            _ => (link.hang_up)(),
        }
    });
    Stranger {
        greeted,
        hang_up,
        thread,
    }
}

fn dismiss(stranger: Stranger) {
    if !stranger.greeted.load(Ordering::Acquire) {
        (stranger.hang_up)();
    }
    // Its panic, if it had one, was reported where it happened.
    let _ = stranger.thread.join();
}
