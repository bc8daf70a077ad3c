//! Requests, answers, and loops that answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bus::{BusError, Headers, Message, ServeOptions};
use bytes::Bytes;
use testkit::{NatsServer, eventually};
use tokio_util::sync::CancellationToken;

use crate::{LONG, connect};

async fn echo(message: Message) -> Option<(Headers, Bytes)> {
    Some((message.headers, message.payload))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_gets_its_own_answer() {
    let server = NatsServer::start().await;
    let (caller, service) = (connect(&server).await, connect(&server).await);
    let subscription = service.subscribe("echo", Some("q")).await.unwrap();
    let stop = CancellationToken::new();
    let options = ServeOptions {
        concurrency: 8,
        grace: Duration::ZERO,
    };
    let serving = {
        let (service, stop) = (service.clone(), stop.clone());
        tokio::spawn(async move { service.serve(subscription, options, stop, echo).await })
    };
    let calls = (0..500_u32).map(|number| {
        let caller = caller.clone();
        tokio::spawn(async move {
            let headers = Headers::new().with("Number", number);
            let answer = caller
                .request("echo", headers, number.to_string().into(), LONG)
                .await
                .unwrap();
            assert_eq!(answer.payload, number.to_string());
            assert_eq!(answer.headers.get_u64("Number"), Some(u64::from(number)));
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
    assert_eq!(caller.stats().in_flight, 0);
    stop.cancel();
    let summary = serving.await.unwrap();
    assert_eq!((summary.handled, summary.unanswered), (500, 0));
}

#[tokio::test]
async fn nobody_listening_is_an_answer_at_once() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    let error = bus
        .request("nobody", Headers::new(), Bytes::new(), LONG)
        .await
        .expect_err("nobody listens");
    assert_eq!(
        error,
        BusError::NoResponders {
            subject: "nobody".to_owned()
        }
    );
    let error = bus
        .publish("not a subject", Headers::new(), Bytes::new())
        .await
        .expect_err("spaces");
    assert!(matches!(error, BusError::InvalidSubject { .. }));
    let large = Bytes::from(vec![0; bus.max_payload_bytes() + 1]);
    let error = bus
        .publish("large", Headers::new(), large)
        .await
        .expect_err("too large");
    assert!(matches!(error, BusError::TooLarge { .. }));
}

#[tokio::test]
async fn timeouts_leave_nothing_behind_and_late_answers_reach_nobody() {
    let server = NatsServer::start().await;
    let (caller, service) = (connect(&server).await, connect(&server).await);
    let mut requests = service.subscribe("slow", None).await.unwrap();
    for _ in 0..2_000 {
        let error = caller
            .request("slow", Headers::new(), Bytes::new(), Duration::from_micros(50))
            .await
            .expect_err("nobody answers");
        assert!(matches!(error, BusError::Timeout { .. }));
    }
    assert_eq!(caller.stats().in_flight, 0);

    // A request that is answered only after it was given up, while its slot is in use again.
    let first = caller
        .request(
            "slow",
            Headers::new(),
            Bytes::from_static(b"first"),
            Duration::from_millis(200),
        )
        .await;
    assert!(first.is_err());
    let late = loop {
        let request = tokio::time::timeout(LONG, requests.next()).await.unwrap().unwrap();
        if request.payload == "first" {
            break request;
        }
    };
    let second = {
        let caller = caller.clone();
        tokio::spawn(async move {
            caller
                .request("slow", Headers::new(), Bytes::from_static(b"second"), LONG)
                .await
        })
    };
    let request = tokio::time::timeout(LONG, requests.next()).await.unwrap().unwrap();
    assert_eq!(request.payload, "second");
    service
        .respond(&late, Headers::new(), Bytes::from_static(b"for the first"))
        .await
        .unwrap();
    service
        .respond(&request, Headers::new(), Bytes::from_static(b"for the second"))
        .await
        .unwrap();
    assert_eq!(second.await.unwrap().unwrap().payload, "for the second");
    assert_eq!(caller.stats().late_answers, 1);
    assert_eq!(caller.stats().in_flight, 0);
}

#[tokio::test]
async fn a_lost_connection_fails_what_is_in_flight() {
    let mut server = NatsServer::start().await;
    let (caller, service) = (connect(&server).await, connect(&server).await);
    let mut requests = service.subscribe("slow", None).await.unwrap();
    let call = {
        let caller = caller.clone();
        tokio::spawn(async move {
            caller
                .request("slow", Headers::new(), Bytes::new(), Duration::from_secs(3_600))
                .await
        })
    };
    tokio::time::timeout(LONG, requests.next()).await.unwrap().unwrap();
    server.kill();
    let answer = tokio::time::timeout(LONG, call)
        .await
        .expect("not after an hour")
        .unwrap();
    assert_eq!(answer.expect_err("the connection is gone"), BusError::Disconnected);
    assert_eq!(caller.stats().in_flight, 0);
}

#[tokio::test]
async fn a_stopped_loop_finishes_what_is_in_hand() {
    let server = NatsServer::start().await;
    let (caller, service) = (connect(&server).await, connect(&server).await);
    let subscription = service.subscribe("work", None).await.unwrap();
    let stop = CancellationToken::new();
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let serving = {
        let (service, stop, gate) = (service.clone(), stop.clone(), Arc::clone(&gate));
        let (running, most) = (Arc::clone(&running), Arc::clone(&most));
        tokio::spawn(async move {
            let options = ServeOptions {
                concurrency: 3,
                grace: Duration::ZERO,
            };
            service
                .serve(subscription, options, stop, |message| {
                    let (gate, running, most) = (Arc::clone(&gate), Arc::clone(&running), Arc::clone(&most));
                    async move {
                        let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                        most.fetch_max(now, Ordering::SeqCst);
                        gate.acquire().await.unwrap().forget();
                        running.fetch_sub(1, Ordering::SeqCst);
                        Some((Headers::new(), message.payload))
                    }
                })
                .await
        })
    };
    let calls: Vec<_> = (0..10)
        .map(|_| {
            let caller = caller.clone();
            tokio::spawn(async move { caller.request("work", Headers::new(), Bytes::new(), LONG).await })
        })
        .collect();
    eventually("three are in hand", LONG, || async {
        running.load(Ordering::SeqCst) == 3
    })
    .await;
    // The first finishes, and the others go on while the loop is being stopped.
    gate.add_permits(7);
    eventually("the last three are in hand", LONG, || async {
        gate.available_permits() == 0 && running.load(Ordering::SeqCst) == 3
    })
    .await;
    stop.cancel();
    gate.add_permits(3);
    let summary = tokio::time::timeout(LONG, serving).await.unwrap().unwrap();
    assert_eq!((summary.handled, summary.unanswered), (10, 0));
    assert_eq!(most.load(Ordering::SeqCst), 3, "never more than the bound");
    for call in calls {
        call.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn an_inbox_takes_everything_under_its_prefix() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    let mut inbox = bus.inbox("replies.gw1").await.unwrap();
    bus.publish("replies.gw1.7", Headers::new(), Bytes::from_static(b"a"))
        .await
        .unwrap();
    bus.publish("replies.gw2.7", Headers::new(), Bytes::from_static(b"b"))
        .await
        .unwrap();
    bus.publish_with_reply("nobody.there", "replies.gw1.8.ack", Headers::new(), Bytes::new())
        .await
        .unwrap();
    let first = tokio::time::timeout(LONG, inbox.next()).await.unwrap().unwrap();
    assert_eq!((first.subject(), &first.payload[..]), ("replies.gw1.7", &b"a"[..]));
    let second = tokio::time::timeout(LONG, inbox.next()).await.unwrap().unwrap();
    assert_eq!(second.subject(), "replies.gw1.8.ack");
    assert!(second.is_no_responders());
    assert!(inbox.try_next().is_none());
}
