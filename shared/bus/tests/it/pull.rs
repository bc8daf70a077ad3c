//! Pulling: exact credits, nothing lost, nothing given out twice.

use std::collections::BTreeSet;
use std::time::Duration;

use bus::{Bus, ConsumerRef, EndReason, Job, PullEvent, Puller};
use schemas::streams::Storage;
use testkit::{NatsServer, eventually};

use crate::{LONG, connect, consumer, is_connected, is_lost, queue, store};

const EXPIRES: Duration = Duration::from_secs(30);
const BEAT: Duration = Duration::from_secs(1);

async fn with_queue(server: &NatsServer, storage: Storage) -> (Bus, ConsumerRef) {
    let bus = connect(server).await;
    bus.ensure_stream(&queue("WORK", storage)).await.unwrap();
    bus.ensure_consumer(&consumer("WORK", "all")).await.unwrap();
    (bus, ConsumerRef::new("WORK", "all"))
}

async fn next(puller: &mut Puller) -> PullEvent {
    tokio::time::timeout(LONG, puller.next())
        .await
        .expect("an event")
        .expect("the bus is open")
}

async fn job(puller: &mut Puller) -> Job {
    match next(puller).await {
        PullEvent::Job(job) => job,
        PullEvent::Ended { reason, .. } => panic!("pull ended: {reason:?}"),
    }
}

fn number(job: &Job) -> u64 {
    std::str::from_utf8(&job.payload).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_slow_worker_never_holds_more_than_it_asked_for() {
    let server = NatsServer::start().await;
    let (bus, all) = with_queue(&server, Storage::Memory).await;
    for number in 0..200 {
        store(&bus, &format!("work.{}", number % 3), number).await;
    }
    let mut puller = Puller::new(&bus).await.unwrap();
    let mut in_hand = Vec::new();
    let mut done = BTreeSet::new();
    let mut received = 0;
    // Eight slots; after each step three become free and are asked for again.
    puller.request(&all, 8, EXPIRES, BEAT).await.unwrap();
    while done.len() < 200 {
        let job = job(&mut puller).await;
        assert_eq!(job.delivered(), 1, "nothing is delivered twice");
        in_hand.push(job);
        received += 1;
        let owed = puller.outstanding(&all);
        assert!(
            in_hand.len() as u64 + owed <= 8,
            "{} in hand, {owed} owed",
            in_hand.len()
        );
        let held = bus.consumer_info("WORK", "all").await.unwrap().ack_pending;
        assert!(held <= 8, "the broker has given out {held}");
        if owed == 0 || received == 200 {
            let freed_slots = if received == 200 { in_hand.len() } else { 3 };
            let freed: Vec<_> = in_hand.drain(..freed_slots).collect();
            let count = u32::try_from(freed.len()).unwrap();
            for job in freed {
                assert!(done.insert(number(&job)));
                job.ack().await.unwrap();
            }
            bus.round_trip(LONG).await.unwrap();
            puller.request(&all, count, EXPIRES, BEAT).await.unwrap();
        }
    }
    assert_eq!(puller.given_back(), 0);
    bus.round_trip(LONG).await.unwrap();
    eventually("the queue is empty", LONG, || async {
        bus.stream_info("WORK").await.unwrap().messages == 0
    })
    .await;
}

#[tokio::test]
async fn unused_credits_come_back_when_a_pull_expires() {
    let server = NatsServer::start().await;
    let (bus, all) = with_queue(&server, Storage::Memory).await;
    store(&bus, "work.a", 1).await;
    let mut puller = Puller::new(&bus).await.unwrap();
    // Two pulls at once: which one the message answers is not known, the sum is.
    puller
        .request(&all, 5, Duration::from_millis(200), Duration::from_millis(100))
        .await
        .unwrap();
    puller
        .request(&all, 3, Duration::from_millis(400), Duration::from_millis(200))
        .await
        .unwrap();
    job(&mut puller).await.ack().await.unwrap();
    assert_eq!(puller.outstanding(&all), 7);
    let mut back = 0;
    while back < 7 {
        match next(&mut puller).await {
            PullEvent::Ended {
                unused_credits,
                reason,
                consumer,
            } => {
                assert_eq!((reason, consumer), (EndReason::Expired, all.clone()));
                back += unused_credits;
            }
            PullEvent::Job(job) => panic!("{job:?}"),
        }
    }
    assert_eq!((back, puller.outstanding_total()), (7, 0));
}

#[tokio::test]
async fn a_consumer_that_is_not_there_is_named() {
    let server = NatsServer::start().await;
    let (bus, all) = with_queue(&server, Storage::Memory).await;
    let mut puller = Puller::new(&bus).await.unwrap();
    let none = ConsumerRef::new("WORK", "none");
    puller.request(&none, 4, EXPIRES, BEAT).await.unwrap();
    let PullEvent::Ended {
        consumer,
        unused_credits,
        reason,
    } = next(&mut puller).await
    else {
        panic!("no job")
    };
    assert_eq!((consumer, unused_credits, reason), (none, 4, EndReason::NoConsumer));

    puller.request(&all, 4, EXPIRES, BEAT).await.unwrap();
    eventually("the pull waits", LONG, || async {
        bus.consumer_info("WORK", "all").await.unwrap().waiting == 1
    })
    .await;
    assert!(bus.delete_stream("WORK").await.unwrap());
    let PullEvent::Ended {
        unused_credits, reason, ..
    } = next(&mut puller).await
    else {
        panic!("no job")
    };
    assert_eq!((unused_credits, reason), (4, EndReason::NoConsumer));
}

#[tokio::test]
async fn a_dropped_job_comes_again_at_once() {
    let server = NatsServer::start().await;
    let (bus, all) = with_queue(&server, Storage::Memory).await;
    let sequence = store(&bus, "work.a", 1).await;
    let mut puller = Puller::new(&bus).await.unwrap();
    puller.request(&all, 4, EXPIRES, BEAT).await.unwrap();
    // The ack wait is a minute, far beyond this test's patience.
    drop(job(&mut puller).await);
    let again = job(&mut puller).await;
    assert_eq!(
        (again.delivered(), again.stream_sequence(), again.subject()),
        (2, sequence, "work.a")
    );
    again.nak(None).await.unwrap();
    let again = job(&mut puller).await;
    assert_eq!(again.delivered(), 3);
    again.in_progress().await.unwrap();
    again.term("poison").await.unwrap();
    eventually("it is out of the queue", LONG, || async {
        bus.stream_info("WORK").await.unwrap().messages == 0
    })
    .await;
}

#[tokio::test]
async fn somebody_else_can_give_a_dead_workers_job_back() {
    let server = NatsServer::start().await;
    let (bus, all) = with_queue(&server, Storage::Memory).await;
    store(&bus, "work.a", 1).await;
    let (worker, gateway) = (connect(&server).await, connect(&server).await);
    let mut dead = Puller::new(&worker).await.unwrap();
    dead.request(&all, 1, EXPIRES, BEAT).await.unwrap();
    let lost = job(&mut dead).await;
    let ack_subject = lost.ack_subject().to_owned();
    // The worker dies: it can say nothing any more.
    lost.forget();
    drop((dead, worker));

    let mut living = Puller::new(&bus).await.unwrap();
    living.request(&all, 1, EXPIRES, BEAT).await.unwrap();
    gateway.nak_at(&ack_subject).await.unwrap();
    let again = job(&mut living).await;
    assert_eq!(again.delivered(), 2);
    gateway.term_at(again.ack_subject(), "cancelled").await.unwrap();
    again.forget();
    eventually("it is out of the queue", LONG, || async {
        bus.stream_info("WORK").await.unwrap().messages == 0
    })
    .await;
    assert!(
        gateway.nak_at("portalis.v1.control.auth.1").await.is_err(),
        "only ack subjects are settled"
    );
}

#[tokio::test]
async fn pulls_survive_a_restart_of_the_server() {
    let mut server = NatsServer::start().await;
    let (bus, all) = with_queue(&server, Storage::File).await;
    for number in 0..10 {
        store(&bus, "work.a", number).await;
    }
    let mut puller = Puller::new(&bus).await.unwrap();
    puller.request(&all, 4, EXPIRES, BEAT).await.unwrap();
    let mut done = BTreeSet::new();
    for _ in 0..4 {
        let job = job(&mut puller).await;
        done.insert(number(&job));
        job.ack().await.unwrap();
    }
    // Until the broker has written the acks down a restart may bring those jobs again.
    eventually("six are left", LONG, || async {
        bus.stream_info("WORK").await.unwrap().messages == 6
    })
    .await;
    let idle = ConsumerRef::new("WORK", "idle");
    let mut spec = consumer("WORK", "idle");
    spec.filter_subjects = vec!["work.none".to_owned()];
    let mut rest = consumer("WORK", "all");
    rest.filter_subjects = vec!["work.a".to_owned()];
    bus.ensure_consumer(&rest).await.unwrap();
    bus.ensure_consumer(&spec).await.unwrap();
    puller.request(&idle, 5, EXPIRES, BEAT).await.unwrap();

    server.kill();
    is_lost(&bus).await;
    assert!(puller.request(&all, 1, EXPIRES, BEAT).await.is_err());
    let PullEvent::Ended {
        consumer,
        unused_credits,
        reason,
    } = next(&mut puller).await
    else {
        panic!("no job")
    };
    assert_eq!((consumer, unused_credits, reason), (idle, 5, EndReason::Disconnected));
    assert_eq!(puller.outstanding_total(), 0);

    server.restart().await;
    is_connected(&bus).await;
    puller.request(&all, 20, EXPIRES, BEAT).await.unwrap();
    while done.len() < 10 {
        let job = job(&mut puller).await;
        done.insert(number(&job));
        job.ack().await.unwrap();
    }
    assert_eq!(done, (0..10).collect());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_under_load_loses_nothing() {
    let server = NatsServer::start().await;
    let (bus, all) = with_queue(&server, Storage::Memory).await;
    // Each of the six may give the same job back once; none may do so twice.
    let mut spec = consumer("WORK", "all");
    spec.max_deliver = Some(7);
    bus.ensure_consumer(&spec).await.unwrap();
    let total = 600_u64;
    let publishing = {
        let bus = bus.clone();
        tokio::spawn(async move {
            for number in 0..total {
                store(&bus, "work.a", number).await;
            }
        })
    };
    // Workers come, take a few and leave with pulls open; the last one stays.
    let mut done = BTreeSet::new();
    for _ in 0..6 {
        let worker = connect(&server).await;
        let mut puller = Puller::new(&worker).await.unwrap();
        puller
            .request(&all, 40, Duration::from_millis(300), Duration::from_millis(100))
            .await
            .unwrap();
        for _ in 0..5 {
            if let PullEvent::Job(job) = next(&mut puller).await {
                assert!(done.insert(number(&job)));
                job.ack().await.unwrap();
            }
        }
        puller.close(LONG).await;
        worker.close(LONG).await;
    }
    publishing.await.unwrap();
    let mut last = Puller::new(&bus).await.unwrap();
    while (done.len() as u64) < total {
        if last.outstanding(&all) == 0 {
            last.request(&all, 50, EXPIRES, BEAT).await.unwrap();
        }
        // What a leaving worker did not start is here at once: the ack wait is a minute.
        let job = job(&mut last).await;
        assert!(done.insert(number(&job)), "{} came twice", number(&job));
        job.ack().await.unwrap();
    }
    eventually("the queue is empty", LONG, || async {
        bus.stream_info("WORK").await.unwrap().messages == 0
    })
    .await;
}
