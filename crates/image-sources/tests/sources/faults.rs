//! Servers that fail, one way at a time.

use std::io::Read;
use std::time::{Duration, Instant};

use image_sources::{Agent, Identity, Limits};

use crate::faulty::{Faulty, Reply, object};
use crate::fetched::{agent, content, drain, failure, fetch, limits, options, told, web};

fn agent_with(limits: Limits) -> Agent {
    let mut options = options();
    options.limits = limits;
    Agent::new(options).unwrap()
}

#[tokio::test]
async fn drops_are_gone_on_after_without_a_byte_twice() {
    let bytes = content(1_000_000);
    let cuts = [300_000, 0, 1, 400_000, 10];
    let served = bytes.clone();
    let server = Faulty::start(move |count, request| {
        let reply = object(request, &served, "\"v1\"");
        match cuts.get(count) {
            Some(cut) => reply.cut(*cut),
            None => reply,
        }
    })
    .await;
    let opened = web(&agent(), &server.url("/image")).open_at(0, None).await.unwrap();
    let progress = opened.progress();
    let (all, result) = drain(opened).await;
    result.unwrap();
    assert!(all == bytes);
    server.assert_each_byte_once(1_000_000);
    assert_eq!(server.seen().len(), 6);
    assert_eq!((progress.fetched_bytes(), progress.retries()), (1_000_000, 5));
    assert!(
        server.seen()[1..]
            .iter()
            .all(|seen| seen.request.header("if-range") == Some("\"v1\""))
    );
}

#[tokio::test]
async fn tries_are_bounded_when_nothing_comes_of_them() {
    let server =
        Faulty::start(|count, request| object(request, &content(1000), "\"v1\"").cut(if count == 0 { 100 } else { 0 }))
            .await;
    let (all, result) = drain(web(&agent(), &server.url("/")).open_at(0, None).await.unwrap()).await;
    let (code, text) = told(&result.unwrap_err());
    assert_eq!((code, all.len()), ("broke_off", 100));
    assert!(
        text.contains("gave up on") && text.contains("byte 100 after 3 tries"),
        "{text}"
    );
    // The first brought something; three in a row did not.
    assert_eq!(server.seen().len(), 3);

    let bounded = Limits {
        requests_max: 10,
        ..limits()
    };
    let server = Faulty::start(|_, request| object(request, &content(1000), "\"v1\"").cut(2)).await;
    let (all, result) = drain(
        web(&agent_with(bounded), &server.url("/"))
            .open_at(0, None)
            .await
            .unwrap(),
    )
    .await;
    assert_eq!((all.len(), result.unwrap_err().code()), (20, "broke_off"));
    assert_eq!(server.seen().len(), 10);
}

#[tokio::test]
async fn failing_answers_are_retried_and_a_wish_for_a_pause_obeyed() {
    let server = Faulty::start(|count, request| match count {
        0 => Reply::new(503, b"busy").header("retry-after", "1"),
        1 => Reply::new(429, b"busy"),
        2 => object(request, b"content", "\"v1\"").cut(3),
        3 => Reply::new(502, b"busy"),
        _ => object(request, b"content", "\"v1\""),
    })
    .await;
    let begun = Instant::now();
    assert_eq!(fetch(&web(&agent(), &server.url("/"))).await.unwrap(), b"content");
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert_eq!(server.seen().len(), 5);
    assert_eq!(server.seen()[4].request.start(), Some(3));
}

#[tokio::test]
async fn failing_answers_end_it_some_time() {
    let server = Faulty::start(|_, _| Reply::new(500, b"broken")).await;
    let (code, text) = failure(&web(&agent(), &server.url("/a?token=secret"))).await;
    assert_eq!(code, "unexpected_status");
    assert!(
        text.contains("after 3 tries") && text.contains("got 500") && !text.contains("secret"),
        "{text}"
    );
    assert_eq!(server.seen().len(), 3);

    let server = Faulty::start(|_, _| Reply::new(503, b"").header("retry-after", "3600")).await;
    let begun = Instant::now();
    let (code, text) = failure(&web(&agent(), &server.url("/"))).await;
    assert_eq!(code, "unexpected_status");
    assert!(text.contains("asked again in 3600 s"), "{text}");
    assert!(begun.elapsed() < Duration::from_secs(2) && server.seen().len() == 1);

    for (status, code) in [
        (401, "unauthorized"),
        (403, "unauthorized"),
        (404, "not_found"),
        (418, "unexpected_status"),
    ] {
        let server = Faulty::start(move |_, _| Reply::new(status, b"no")).await;
        assert_eq!(failure(&web(&agent(), &server.url("/"))).await.0, code);
        assert_eq!(server.seen().len(), 1, "{status}");
    }
}

#[tokio::test]
async fn a_slow_head_and_a_silent_body_and_a_trickle_are_cut() {
    let quick = Limits {
        connect_timeout_ms: 100,
        answer_timeout_ms: 200,
        idle_timeout_ms: 200,
        tries_max: 2,
        progress_bytes: 1000,
        ..limits()
    };
    let server = Faulty::start(|_, request| object(request, b"content", "\"v1\"").paced(1, 50)).await;
    assert_eq!(
        failure(&web(&agent_with(quick.clone()), &server.url("/"))).await.0,
        "too_slow"
    );

    let server = Faulty::start(|_, request| object(request, &content(1000), "\"v1\"").stalling(10)).await;
    let opened = web(&agent_with(quick), &server.url("/"))
        .open_at(0, None)
        .await
        .unwrap();
    let (all, result) = drain(opened).await;
    let (code, text) = told(&result.unwrap_err());
    assert_eq!(code, "too_slow");
    assert!(text.contains("nothing came for 0.2 s"), "{text}");
    assert_eq!(all.len(), 20);

    // Bytes keep coming, each in time, but too few of them.
    let rated = Limits {
        rate_min_bytes_per_s: 100_000,
        rate_window_ms: 300,
        tries_max: 2,
        progress_bytes: 10_000,
        ..limits()
    };
    let server = Faulty::start(|_, request| object(request, &content(100_000), "\"v1\"").paced(200, 20)).await;
    let opened = web(&agent_with(rated), &server.url("/"))
        .open_at(0, None)
        .await
        .unwrap();
    let (all, result) = drain(opened).await;
    let (code, text) = told(&result.unwrap_err());
    assert_eq!(code, "too_slow");
    assert!(text.contains("less than 100000 bytes/s over 0.3 s"), "{text}");
    assert!(all.len() < 20_000 && all == content(100_000)[..all.len()]);
    let starts: Vec<_> = server
        .seen()
        .iter()
        .map(|seen| seen.request.start().unwrap_or(0))
        .collect();
    assert!(starts.len() == 2 && starts[1] > 0, "{starts:?}");
}

#[tokio::test]
async fn a_consumer_that_takes_its_time_is_no_slow_server() {
    let rated = Limits {
        idle_timeout_ms: 200,
        rate_min_bytes_per_s: 100_000,
        rate_window_ms: 200,
        ..limits()
    };
    let server = Faulty::start(|_, request| object(request, &content(300_000), "\"v1\"")).await;
    let mut opened = web(&agent_with(rated), &server.url("/"))
        .open_at(0, None)
        .await
        .unwrap();
    let first = opened.next_piece().await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(600)).await;
    let (rest, result) = drain(opened).await;
    result.unwrap();
    assert_eq!(first.len() + rest.len(), 300_000);
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn wrong_lengths() {
    // Says 1000, has 600: on being asked for the rest, it admits it.
    let server = Faulty::start(|count, request| match count {
        0 => object(request, &content(600), "\"v1\"")
            .header("content-length", "1000")
            .cut(600),
        _ => object(request, &content(600), "\"v1\""),
    })
    .await;
    let (code, text) = failure(&web(&agent(), &server.url("/"))).await;
    assert_eq!(code, "wrong_length");
    assert!(text.contains("should have 1000 bytes but has 600"), "{text}");

    // The total changes from one answer to the next, the entity tag does not.
    let server = Faulty::start(|count, request| match count {
        0 => object(request, &content(1000), "\"v1\"").cut(10),
        _ => object(request, &content(1001), "\"v1\""),
    })
    .await;
    assert_eq!(failure(&web(&agent(), &server.url("/"))).await.0, "wrong_length");

    // The caller knows better.
    let server = Faulty::start(|_, request| object(request, &content(1000), "\"v1\"")).await;
    let length = |length| Identity {
        length_bytes: Some(length),
        ..Identity::default()
    };
    let source = web(&agent(), &server.url("/"));
    assert_eq!(
        source.open_at(0, Some(&length(999))).await.unwrap_err().code(),
        "wrong_length"
    );
    assert!(source.open_at(0, Some(&length(1000))).await.is_ok());

    // More than was expected, in a body that does not state its length.
    let server = Faulty::start(|_, _| {
        Reply::new(200, b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n")
            .header("content-length", "")
            .header("transfer-encoding", "chunked")
    })
    .await;
    let source = web(&agent(), &server.url("/"));
    assert_eq!(fetch(&source).await.unwrap(), b"abcdef");
    let (all, result) = drain(source.open_at(0, Some(&length(5))).await.unwrap()).await;
    assert_eq!((&all[..], result.unwrap_err().code()), (&b"abc"[..], "wrong_length"));
    let (all, result) = drain(source.open_at(0, Some(&length(7))).await.unwrap()).await;
    assert_eq!((&all[..], result.unwrap_err().code()), (&b"abcdef"[..], "wrong_length"));
}

#[tokio::test]
async fn an_object_that_changes_between_two_answers_is_no_mix() {
    let changed = async |answer: fn(usize, &crate::faulty::Request) -> Reply| {
        let server = Faulty::start(answer).await;
        let (all, result) = drain(web(&agent(), &server.url("/")).open_at(0, None).await.unwrap()).await;
        assert_eq!((all.len(), result.unwrap_err().code()), (100, "source_changed"));
        assert_eq!(server.seen().len(), 2);
    };
    // The server minds `If-Range`, and sends the new object whole.
    changed(|count, request| match count {
        0 => object(request, &content(1000), "\"v1\"").cut(100),
        _ => object(request, &content(1000), "\"v2\""),
    })
    .await;
    // The server does not, and sends a piece of the new object.
    changed(|count, request| match count {
        0 => object(request, &content(1000), "\"v1\"").cut(100),
        _ => Reply::new(206, &content(900))
            .header("content-range", "bytes 100-999/1000")
            .header("etag", "\"v2\""),
    })
    .await;
    // There are only dates.
    changed(|count, _| match count {
        0 => Reply::new(200, &content(1000))
            .header("last-modified", "Mon, 01 Jan 2024 00:00:00 GMT")
            .cut(100),
        _ => Reply::new(206, &content(900))
            .header("content-range", "bytes 100-999/1000")
            .header("last-modified", "Mon, 01 Jan 2024 00:00:01 GMT"),
    })
    .await;
}

#[tokio::test]
async fn a_date_alone_is_enough_to_go_on() {
    let server = Faulty::start(|count, request| {
        let reply = object(request, &content(1000), "").header("last-modified", "Mon, 01 Jan 2024 00:00:00 GMT");
        match (count, request.start()) {
            (0, _) => reply.cut(100),
            (_, Some(start)) => Reply::new(206, &content(1000)[start..])
                .header("content-range", &format!("bytes {start}-999/1000"))
                .header("last-modified", "Mon, 01 Jan 2024 00:00:00 GMT"),
            _ => reply,
        }
    })
    .await;
    assert!(fetch(&web(&agent(), &server.url("/"))).await.unwrap() == content(1000));
    let if_range = server.seen()[1].request.header("if-range").map(str::to_owned);
    assert_eq!(if_range.as_deref(), Some("Mon, 01 Jan 2024 00:00:00 GMT"));
}

#[tokio::test]
async fn answers_that_contradict_themselves() {
    let range = |range: &'static str| {
        move |count: usize, request: &crate::faulty::Request| match count {
            0 => object(request, &content(1000), "\"v1\"").cut(100),
            _ => Reply::new(206, &content(900))
                .header("content-range", range)
                .header("etag", "\"v1\""),
        }
    };
    for text in ["bytes 99-998/1000", "bytes 100-998/1000", "pages 1-2/3", ""] {
        let server = Faulty::start(range(text)).await;
        assert_eq!(
            failure(&web(&agent(), &server.url("/"))).await.0,
            "bad_answer",
            "{text}"
        );
    }
    // An end that cannot be told from a drop.
    let server = Faulty::start(|_, _| Reply::new(200, b"perhaps all").header("content-length", "").cut(99)).await;
    let source = web(&agent(), &server.url("/"));
    assert_eq!(failure(&source).await.0, "bad_answer");
    let eleven = Identity {
        length_bytes: Some(11),
        ..Identity::default()
    };
    let (all, result) = drain(source.open_at(0, Some(&eleven)).await.unwrap()).await;
    assert!(all == b"perhaps all" && result.is_ok());
    let server = Faulty::start(|_, _| Reply::new(204, b"")).await;
    assert_eq!(failure(&web(&agent(), &server.url("/"))).await.0, "unexpected_status");
}

#[tokio::test]
async fn a_range_in_shorter_parts_is_put_together() {
    let server = Faulty::start(|_, request| {
        let start = request.start().unwrap_or(0);
        let end = (start + 400).min(1000);
        let part = &content(1000)[start..end];
        match start {
            0 => Reply::new(200, &content(1000)).header("etag", "\"v1\"").cut(400),
            _ => Reply::new(206, part)
                .header("content-range", &format!("bytes {start}-{}/1000", end - 1))
                .header("etag", "\"v1\""),
        }
    })
    .await;
    assert!(fetch(&web(&agent(), &server.url("/"))).await.unwrap() == content(1000));
    server.assert_each_byte_once(1000);
}

#[tokio::test]
async fn dropping_a_stream_lets_the_server_go() {
    let server = Faulty::start(|_, request| object(request, &content(50_000_000), "\"v1\"")).await;
    let mut opened = web(&agent(), &server.url("/")).open_at(0, None).await.unwrap();
    opened.next_piece().await.unwrap().unwrap();
    // Nobody reads: what is sent ahead ends with the buffers of the connection.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let ahead = server.seen()[0].sent();
    assert!(ahead < 20_000_000, "{ahead} bytes were sent ahead");
    drop(opened);
    for _ in 0..500 {
        if server.seen()[0].was_abandoned() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the connection was not closed");
}

#[tokio::test]
async fn a_blocking_reader_gets_the_same() {
    let bytes = content(5_000_000);
    let served = bytes.clone();
    let server = Faulty::start(move |count, request| {
        let reply = object(request, &served, "\"v1\"");
        if count == 0 { reply.cut(1_234_567) } else { reply }
    })
    .await;
    let opened = web(&agent(), &server.url("/")).open_at(0, None).await.unwrap();
    let mut read = opened.into_read(&tokio::runtime::Handle::current(), 1 << 20);
    let all = tokio::task::spawn_blocking(move || {
        let mut all = Vec::new();
        read.read_to_end(&mut all).map(|_| all)
    });
    assert!(all.await.unwrap().unwrap() == bytes);
    server.assert_each_byte_once(5_000_000);
}

#[tokio::test]
async fn a_handshake_that_does_not_come() {
    let quick = Limits {
        connect_timeout_ms: 200,
        tries_max: 2,
        ..limits()
    };
    // The kernel takes the connections; nobody ever reads or writes.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://mirror.test:{}/", silent.local_addr().unwrap().port());
    let begun = Instant::now();
    let (code, text) = failure(&web(&agent_with(quick), &url)).await;
    assert_eq!(code, "too_slow");
    assert!(text.contains("not made in time"), "{text}");
    assert!(begun.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn nobody_there() {
    // Bound and closed again: nobody listens.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let (code, text) = failure(&web(&agent(), &format!("http://mirror.test:{port}/"))).await;
    assert_eq!(code, "unreachable");
    assert!(text.contains("after 3 tries"), "{text}");
}

#[tokio::test]
async fn a_poll_asks_for_the_head_alone() {
    let server = Faulty::start(|count, request| match count {
        0 => Reply::new(503, b""),
        _ => object(request, &content(1000), "\"v1\""),
    })
    .await;
    let identity = web(&agent(), &server.url("/")).probe().await.unwrap();
    assert_eq!(
        (identity.length_bytes, identity.etag.as_deref()),
        (Some(1000), Some("\"v1\""))
    );
    assert!(
        server
            .seen()
            .iter()
            .all(|seen| seen.request.method == "HEAD" && seen.sent() == 0)
    );
}

#[tokio::test]
async fn a_poll_of_a_server_that_knows_no_head() {
    let server = Faulty::start(|_, request| match request.method.as_str() {
        "HEAD" => Reply::new(405, b""),
        _ => object(request, &content(1000), "\"v1\""),
    })
    .await;
    let identity = web(&agent(), &server.url("/")).probe().await.unwrap();
    assert_eq!(
        (identity.length_bytes, identity.etag.as_deref()),
        (Some(1000), Some("\"v1\""))
    );
}
