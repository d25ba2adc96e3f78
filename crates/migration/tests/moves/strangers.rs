//! Peers that are not the right one, come twice, speak another version, or send what they should not.

use std::io::{Read, Write};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use migration::wire::{
    FRAME_HEADER_BYTES, Hello, Message, Parameters, Purpose, RefuseReason, Seal, StreamHello, Welcome, read_frame,
};
use migration::{
    Acceptor, Arrival, Arrivals, Departure, Departures, Failure, Key, Link, MachineId, Offers, Options, PostCopy,
    arrive, depart,
};
use proptest::prelude::*;

use crate::attempt::{expected, handle, host_clock, key, layout, plan, small, watch_panics};
use crate::network::Network;
use crate::world::{Source, Target, World};

fn hello() -> Hello {
    Hello {
        version_min: 1,
        version_max: 9,
        key: key(1),
        machine: MachineId([9; 16]),
        layout: layout().digest(),
        pages: 70,
        offers: Offers::ZSTD.with(Offers::POST_COPY),
        streams: 1,
        purpose: Purpose::Move,
    }
}

fn send(link: &mut Link, message: &Message) {
    // The other side may have ended the stream, which the next read shows.
    let _ = link.writer.write_all(&message.encode());
}

fn receive(link: &mut Link) -> Option<Message> {
    let mut payload = Vec::new();
    let kind = read_frame(&mut link.reader, &mut payload).ok()?;
    Some(Message::decode(kind, &payload).unwrap())
}

/// Runs a target against a scripted source; what became of it, and whether it was cleaned up.
fn against_target(script: impl FnOnce(&Network)) -> (Arrival<Target>, World) {
    watch_panics();
    let (network, world) = (Network::new(None), World::new());
    let target = Target::new(&world, 70);
    let arrival = thread::scope(|scope| {
        let (acceptor, mut resolver) = (Box::new(network.clone()), world.ledger());
        let arriving = scope.spawn(move || {
            arrive(
                target,
                &expected(),
                Arrivals {
                    acceptor,
                    resolver: &mut resolver,
                    clock: host_clock(),
                },
            )
        });
        script(&network);
        network.cut();
        arriving.join().unwrap()
    });
    world.with(|truth| assert_eq!(truth.faults, Vec::<String>::new()));
    assert_eq!(crate::attempt::PANICS.load(std::sync::atomic::Ordering::SeqCst), 0);
    (arrival, world)
}

fn refused(network: &Network, hello: Hello) -> Option<RefuseReason> {
    let mut link = network.connect().unwrap();
    send(&mut link, &Message::Hello(hello));
    match receive(&mut link) {
        Some(Message::Refuse { reason, .. }) => Some(reason),
        _ => None,
    }
}

const PAGE_STREAM: StreamHello = StreamHello {
    version: 1,
    key: Key {
        migration: [1; 16],
        token: [1 ^ 0x55; 16],
    },
    stream: 0,
    purpose: Purpose::Move,
};

fn page_stream_refused(network: &Network, hello: StreamHello) -> Option<RefuseReason> {
    let mut link = network.connect().unwrap();
    send(&mut link, &Message::StreamHello(hello));
    match receive(&mut link) {
        Some(Message::Refuse { reason, .. }) => Some(reason),
        _ => None,
    }
}

#[test]
fn strangers_are_refused_and_the_right_source_is_still_welcome() {
    let (arrival, world) = against_target(|network| {
        let mut mute: Vec<Link> = (0..40).map(|_| network.connect().unwrap()).collect();
        let mut babbler = network.connect().unwrap();
        babbler.writer.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert_eq!(babbler.reader.read(&mut [0; 1]).unwrap(), 0, "ended without a word");
        assert_eq!(
            refused(network, Hello { key: key(2), ..hello() }),
            Some(RefuseReason::Key)
        );
        assert_eq!(
            refused(
                network,
                Hello {
                    purpose: Purpose::Fetch,
                    ..hello()
                }
            ),
            Some(RefuseReason::State)
        );
        assert_eq!(page_stream_refused(network, PAGE_STREAM), Some(RefuseReason::State));
        let mut right = network.connect().unwrap();
        send(&mut right, &Message::Hello(hello()));
        assert!(matches!(
            receive(&mut right),
            Some(Message::Welcome(Welcome {
                version: 1,
                streams: 1,
                ..
            }))
        ));
        assert_eq!(refused(network, hello()), Some(RefuseReason::Duplicate));
        let mut pages = network.connect().unwrap();
        send(&mut pages, &Message::StreamHello(PAGE_STREAM));
        assert_eq!(receive(&mut pages), Some(Message::StreamWelcome));
        assert_eq!(page_stream_refused(network, PAGE_STREAM), Some(RefuseReason::Duplicate));
        let ninth = StreamHello {
            stream: 9,
            ..PAGE_STREAM
        };
        assert_eq!(page_stream_refused(network, ninth), Some(RefuseReason::State));
        let stranger = StreamHello {
            key: key(2),
            ..PAGE_STREAM
        };
        assert_eq!(page_stream_refused(network, stranger), Some(RefuseReason::Key));
        send(
            &mut right,
            &Message::Abort {
                key: key(1),
                text: "enough".into(),
            },
        );
        assert_eq!(receive(&mut right).map(|message| message.name()), Some("abort"));
        mute.clear();
    });
    assert!(
        matches!(&arrival, Arrival::Discarded(Failure::PeerGaveUp(text)) if text == "enough"),
        "{arrival:?}"
    );
    assert!(world.with(|truth| truth.discarded && truth.source_runs));
}

#[test]
fn another_version_machine_or_layout_ends_it_on_both_sides() {
    for (wrong, reason) in [
        (
            Hello {
                version_min: 2,
                ..hello()
            },
            RefuseReason::Version,
        ),
        (
            Hello {
                version_min: 0,
                version_max: 0,
                ..hello()
            },
            RefuseReason::Version,
        ),
        (
            Hello {
                machine: MachineId([8; 16]),
                ..hello()
            },
            RefuseReason::Machine,
        ),
        (
            Hello {
                layout: [0; 32],
                ..hello()
            },
            RefuseReason::Layout,
        ),
        (Hello { pages: 71, ..hello() }, RefuseReason::Layout),
    ] {
        let (arrival, world) = against_target(|network| assert_eq!(refused(network, wrong), Some(reason)));
        assert!(
            matches!(&arrival, Arrival::Discarded(Failure::Refused { reason: r, .. }) if *r == reason),
            "{arrival:?}"
        );
        assert!(world.with(|truth| truth.discarded));
    }
}

/// Page streams and the control stream race: a round may be over before the parameters are there.
#[test]
fn a_round_that_ends_before_the_parameters_come_is_counted() {
    let (arrival, _) = against_target(|network| {
        let mut right = network.connect().unwrap();
        send(&mut right, &Message::Hello(hello()));
        let Some(Message::Welcome(welcome)) = receive(&mut right) else {
            panic!("not welcome")
        };
        let mut stream = network.connect().unwrap();
        let page_stream = StreamHello {
            version: 1,
            key: key(1),
            stream: 0,
            purpose: Purpose::Move,
        };
        send(&mut stream, &Message::StreamHello(page_stream));
        assert_eq!(receive(&mut stream), Some(Message::StreamWelcome));
        send(&mut stream, &Message::RoundEnd(1));
        assert_eq!(receive(&mut right), Some(Message::RoundDone(1)));
        send(
            &mut right,
            &Message::Parameters(Parameters {
                offers: welcome.offers,
                streams: 1,
                idle_timeout_ms: 0,
            }),
        );
        send(&mut stream, &Message::RoundEnd(2));
        assert_eq!(receive(&mut right), Some(Message::RoundDone(2)));
    });
    assert!(
        matches!(arrival, Arrival::Discarded(Failure::Link { .. })),
        "{arrival:?}"
    );
}

/// A source that is welcome, and then sends anything.
fn welcome_source(network: &Network, control: &[u8], pages: &[u8]) {
    let mut right = network.connect().unwrap();
    send(&mut right, &Message::Hello(hello()));
    let Some(Message::Welcome(welcome)) = receive(&mut right) else {
        panic!("not welcome")
    };
    let parameters = Parameters {
        offers: welcome.offers,
        streams: 1,
        idle_timeout_ms: 0,
    };
    send(&mut right, &Message::Parameters(parameters));
    let mut stream = network.connect().unwrap();
    let page_stream = StreamHello {
        version: 1,
        key: key(1),
        stream: 0,
        purpose: Purpose::Move,
    };
    send(&mut stream, &Message::StreamHello(page_stream));
    assert_eq!(receive(&mut stream), Some(Message::StreamWelcome));
    // The target may give up at any byte.
    let _ = stream.writer.write_all(pages);
    let _ = right.writer.write_all(control);
    thread::sleep(Duration::from_micros(200));
}

/// Frames with right checksums and any payload.
fn sealed(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut head = u32::try_from(payload.len()).unwrap().to_le_bytes().to_vec();
    head.extend([kind, 0, 0, 0]);
    let mut hash = crc32(&head, payload).to_le_bytes().to_vec();
    head.append(&mut hash);
    assert_eq!(head.len(), FRAME_HEADER_BYTES);
    head.extend(payload);
    head
}

/// CRC-32 bit by bit: another way than the crate's.
fn crc32(head: &[u8], payload: &[u8]) -> u32 {
    !head.iter().chain(payload).fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 }
        })
    })
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let small = || prop_oneof![Just(0_u64), Just(1), Just(63), Just(u64::MAX), any::<u64>()];
    let pages = (
        small(),
        small(),
        small(),
        small(),
        0_u32..9000,
        prop::collection::vec(any::<u8>(), 0..80),
    )
        .prop_map(|(chunk, zero, raw, delta, length, rest)| {
            let mut payload: Vec<u8> = [chunk % 3, zero, raw & !zero, delta & !zero & !raw]
                .into_iter()
                .flat_map(u64::to_le_bytes)
                .collect();
            payload.extend(length.to_le_bytes());
            payload.extend(rest);
            sealed(7, &payload)
        });
    let messages = prop_oneof![
        any::<u32>().prop_map(Message::RoundEnd),
        (0_u32..3).prop_map(Message::RoundEnd),
        (0_u64..3, any::<u64>()).prop_map(|(chunk, mask)| Message::Missing(vec![(chunk, mask | 1)])),
        (0_u32..2, 0_u64..3).prop_map(|(sections, missing)| Message::Seal(Seal {
            sections,
            digest: [0; 32],
            missing
        })),
        Just(Message::Start(key(1))),
        Just(Message::Started(key(1))),
        Just(Message::Abort {
            key: key(2),
            text: "no".into()
        }),
        prop::collection::vec(any::<u64>(), 0..9).prop_map(Message::Wanted),
    ]
    .prop_map(|message| message.encode());
    let payload = (0_u8..20, prop::collection::vec(any::<u8>(), 0..64)).prop_map(|(kind, bytes)| {
        let limit = if matches!(kind, 8 | 9) { 4 } else { 64 };
        sealed(kind, &bytes[..bytes.len().min(limit)])
    });
    prop_oneof![2 => pages, 3 => messages, 2 => payload, 1 => prop::collection::vec(any::<u8>(), 0..40)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn a_hostile_source_starts_nothing(
        control in prop::collection::vec(any_frame(), 0..6),
        pages in prop::collection::vec(any_frame(), 0..6),
    ) {
        let (arrival, world) = against_target(|network| welcome_source(network, &control.concat(), &pages.concat()));
        // No section was right, so nothing can have been sealed.
        prop_assert!(matches!(arrival, Arrival::Discarded(_)), "{:?}", arrival);
        prop_assert!(world.with(|truth| truth.discarded && !truth.target_runs && truth.source_runs));
    }

    #[test]
    fn a_hostile_target_leaves_the_machine_or_takes_it(
        first in prop::collection::vec(any_frame(), 0..3),
        then in prop::collection::vec(any_frame(), 0..6),
        kind in 0..3,
    ) {
        watch_panics();
        let (network, world) = (Network::new(None), World::new());
        let source = Source::new(&world, crate::attempt::guest());
        let post_copy = if kind == 0 { PostCopy::Off } else { PostCopy::AfterRounds(0) };
        let departure = thread::scope(|scope| {
            let mut acceptor = network.clone();
            scope.spawn(move || {
                let accept = |acceptor: &mut Network| loop {
                    match acceptor.accept(Duration::from_millis(1)) {
                        Ok(None) => {}
                        Ok(Some(link)) => return Some(link),
                        Err(_) => return None,
                    }
                };
                let Some(mut control) = accept(&mut acceptor) else { return };
                let Some(Message::Hello(hello)) = receive(&mut control) else { return };
                if kind < 2 {
                    send(&mut control, &Message::Welcome(Welcome { version: 1, offers: hello.offers, streams: 1 }));
                    if let Some(mut pages) = accept(&mut acceptor) {
                        send(&mut pages, &Message::StreamWelcome);
                        let _ = control.writer.write_all(&first.concat());
                        send(&mut control, &Message::Ready { key: key(1), missing: 6 });
                    }
                }
                let _ = control.writer.write_all(&then.concat());
                thread::sleep(Duration::from_micros(300));
                acceptor.cut();
            });
            let outside = Departures {
                dialer: &mut network.clone(),
                ledger: &mut world.ledger(),
                clock: host_clock(),
                handle: handle(),
            };
            depart(source, &plan(Options { zstd: false, ..small(post_copy) }), outside)
        });
        let (runs, departed) = world.with(|truth| (truth.source_runs, truth.departed));
        let stays = matches!(departure, Departure::Stayed { runs: Ok(()), .. });
        prop_assert_eq!((runs, departed), (stays, !stays));
        prop_assert_eq!(crate::attempt::PANICS.load(std::sync::atomic::Ordering::SeqCst), 0);
        drop(Arc::new(departure));
    }
}
