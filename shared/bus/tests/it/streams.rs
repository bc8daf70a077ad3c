//! Streams: settings that are proved, limits that are named.

use bus::{FullLimit, Headers, JetStreamError, PublishError, parse_publish_ack};
use bytes::Bytes;
use schemas::streams::{Retention, Storage, StreamSpec};
use testkit::NatsServer;

use crate::{LONG, connect, consumer, log, queue, store};

#[tokio::test]
async fn many_processes_may_ask_for_the_same_stream_at_once() {
    let server = NatsServer::start().await;
    let mut processes = Vec::new();
    for _ in 0..8 {
        let bus = connect(&server).await;
        processes.push(tokio::spawn(async move {
            bus.ensure_stream(&queue("WORK", Storage::Memory)).await?;
            bus.ensure_consumer(&consumer("WORK", "all")).await
        }));
    }
    for process in processes {
        process.await.unwrap().unwrap();
    }
    let bus = connect(&server).await;
    store(&bus, "work.a", "kept").await;
    bus.ensure_stream(&queue("WORK", Storage::Memory)).await.unwrap();
    let info = bus.stream_info("WORK").await.unwrap();
    assert_eq!((info.messages, info.consumers, info.last_sequence), (1, 1, 1));
    assert!(info.first_time.is_some());
    assert_eq!(bus.stream_names("WO").await.unwrap(), ["WORK"]);
    assert!(bus.stream_names("X").await.unwrap().is_empty());
}

#[tokio::test]
async fn the_specs_of_the_mesh_are_taken_as_they_are() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    use schemas::streams;
    for spec in [
        streams::work("m", 64),
        streams::cost(),
        streams::dead(),
        streams::advisories(),
        streams::events(),
    ] {
        bus.ensure_stream(&spec).await.unwrap();
        bus.ensure_stream(&spec).await.unwrap();
    }
    for lane in [
        schemas::work::Lane::Interactive,
        schemas::work::Lane::Batch,
        schemas::work::Lane::Background,
    ] {
        bus.ensure_consumer(&streams::work_lane("m", lane)).await.unwrap();
    }
    bus.ensure_consumer(&streams::dead_letter_mover()).await.unwrap();
    bus.kv(&streams::jwks_bucket()).await.unwrap();
    bus.kv(&streams::models_bucket()).await.unwrap();
}

#[tokio::test]
async fn what_can_change_is_changed_and_what_cannot_is_named() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    let spec = queue("WORK", Storage::Memory);
    bus.ensure_stream(&spec).await.unwrap();
    bus.ensure_stream(&StreamSpec {
        max_messages: Some(5),
        ..spec.clone()
    })
    .await
    .unwrap();

    let fields = |error| match error {
        JetStreamError::Mismatch { object, field, .. } => (object, field),
        other => panic!("{other:?}"),
    };
    let error = bus
        .ensure_stream(&StreamSpec {
            storage: Storage::File,
            max_messages: Some(5),
            ..spec.clone()
        })
        .await;
    assert_eq!(
        fields(error.expect_err("storage cannot change")),
        ("stream WORK".to_owned(), "storage".to_owned())
    );

    let spec = consumer("WORK", "all");
    bus.ensure_consumer(&spec).await.unwrap();
    let mut changed = spec.clone();
    changed.ack_wait_ms = 5_000;
    bus.ensure_consumer(&changed).await.unwrap();
    changed.deliver_from_sequence = Some(3);
    let error = bus.ensure_consumer(&changed).await.expect_err("start cannot change");
    assert_eq!(fields(error).0, "consumer all of WORK");

    let error = bus
        .ensure_consumer(&consumer("NONE", "all"))
        .await
        .expect_err("no such stream");
    assert!(matches!(error, JetStreamError::NotFound { .. }), "{error:?}");
}

#[tokio::test]
async fn every_limit_has_its_name() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    let publish = |subject: &'static str, headers: Headers, bytes: usize| {
        let bus = bus.clone();
        async move {
            bus.publish_acked(subject, headers, vec![b'x'; bytes].into(), LONG)
                .await
        }
    };
    let error = publish("work.a", Headers::new(), 1).await.expect_err("no stream");
    assert_eq!(
        error,
        PublishError::NoStream {
            subject: "work.a".to_owned()
        }
    );

    let mut spec = queue("WORK", Storage::Memory);
    (spec.max_messages, spec.max_messages_per_subject) = (Some(3), Some(2));
    bus.ensure_stream(&spec).await.unwrap();
    let id = |id: &str| Headers::new().with("Nats-Msg-Id", id);
    assert_eq!(publish("work.a", id("1"), 1).await.unwrap().sequence, 1);
    let again = publish("work.a", id("1"), 1).await.unwrap();
    assert!(again.duplicate && again.sequence == 1);
    publish("work.a", id("2"), 1).await.unwrap();

    let full = |limit| {
        Err(PublishError::Full {
            stream: "WORK".to_owned(),
            limit,
        })
    };
    assert_eq!(publish("work.a", id("3"), 1).await, full(FullLimit::SubjectMessages));
    publish("work.b", id("4"), 1).await.unwrap();
    assert_eq!(publish("work.c", id("5"), 1).await, full(FullLimit::StreamMessages));
    assert_eq!(
        publish("work.d", id("6"), 2_000).await,
        Err(PublishError::TooLarge {
            stream: "WORK".to_owned()
        })
    );
    let wrong = publish("work.b", Headers::new().with("Nats-Expected-Last-Sequence", 1), 1).await;
    assert!(
        matches!(
            wrong,
            Err(PublishError::WrongSequence {
                last_sequence: Some(3),
                ..
            })
        ),
        "{wrong:?}"
    );

    spec.name = "BYTES".to_owned();
    spec.subjects = vec!["bytes.>".to_owned()];
    (spec.max_messages, spec.max_bytes) = (None, Some(500));
    bus.ensure_stream(&spec).await.unwrap();
    publish("bytes.a", Headers::new(), 400).await.unwrap();
    let error = publish("bytes.b", Headers::new(), 400).await;
    assert_eq!(
        error,
        Err(PublishError::Full {
            stream: "BYTES".to_owned(),
            limit: FullLimit::StreamBytes
        })
    );

    // A refused id is not remembered: once there is room, the same message is taken.
    assert!(bus.delete_message("WORK", 1).await.unwrap());
    assert!(!publish("work.a", id("3"), 1).await.unwrap().duplicate);
}

#[tokio::test]
async fn acknowledgements_may_come_to_an_inbox_of_the_callers_own() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    let mut inbox = bus.inbox("replies.gw1").await.unwrap();
    bus.publish_with_reply("work.a", "replies.gw1.0", Headers::new(), Bytes::new())
        .await
        .unwrap();
    let answer = tokio::time::timeout(LONG, inbox.next()).await.unwrap().unwrap();
    assert_eq!(
        parse_publish_ack(&answer),
        Err(PublishError::NoStream {
            subject: "work.a".to_owned()
        })
    );

    bus.ensure_stream(&queue("WORK", Storage::Memory)).await.unwrap();
    bus.publish_with_reply("work.a", "replies.gw1.1", Headers::new(), Bytes::new())
        .await
        .unwrap();
    let answer = tokio::time::timeout(LONG, inbox.next()).await.unwrap().unwrap();
    let ack = parse_publish_ack(&answer).unwrap();
    assert_eq!(
        (answer.subject(), ack.stream.as_str(), ack.sequence),
        ("replies.gw1.1", "WORK", 1)
    );
}

#[tokio::test]
async fn single_messages_are_read_and_deleted() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    bus.ensure_stream(&queue("WORK", Storage::Memory)).await.unwrap();
    let headers = Headers::new().with("Portalis-Deadline", 7);
    bus.publish_acked("work.a", headers, Bytes::from_static(b"\0\xffbytes"), LONG)
        .await
        .unwrap();
    let message = bus.get_message("WORK", 1).await.unwrap();
    assert_eq!(
        (message.sequence, message.subject.as_str(), &message.payload[..]),
        (1, "work.a", &b"\0\xffbytes"[..])
    );
    assert_eq!(message.headers.get_u64("Portalis-Deadline"), Some(7));
    assert!(message.time.is_some());

    assert!(bus.delete_message("WORK", 1).await.unwrap());
    assert!(!bus.delete_message("WORK", 1).await.unwrap());
    assert!(!bus.delete_message("WORK", 99).await.unwrap());
    assert!(matches!(
        bus.get_message("WORK", 1).await,
        Err(JetStreamError::NotFound { .. })
    ));
    assert!(matches!(
        bus.stream_info("NONE").await,
        Err(JetStreamError::NotFound { .. })
    ));
    assert!(matches!(
        bus.consumer_info("WORK", "none").await,
        Err(JetStreamError::NotFound { .. })
    ));
    assert!(bus.delete_stream("WORK").await.unwrap());
    assert!(!bus.delete_stream("WORK").await.unwrap());
}

#[tokio::test]
async fn a_log_cannot_be_deleted_from_when_it_says_so() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    let spec = StreamSpec {
        deny_delete: true,
        compression: true,
        retention: Retention::Limits,
        ..log(Storage::File)
    };
    bus.ensure_stream(&spec).await.unwrap();
    store(&bus, "log.a", 1).await;
    assert!(matches!(
        bus.delete_message("LOG", 1).await,
        Err(JetStreamError::Refused { .. })
    ));
}
