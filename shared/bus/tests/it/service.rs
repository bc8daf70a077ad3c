//! What every service does with its connection: it obeys orders and shows in its health whether it is connected.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bus::{Headers, control};
use process::{CancellationToken, Context};
use schemas::fleet::{Control, ControlReply};
use schemas::headers::CONTENT_TYPE;
use schemas::subjects;
use schemas::wire::{self, Format};
use testkit::{NatsServer, eventually};

use crate::{LONG, connect, is_lost};

#[tokio::test]
async fn orders_are_obeyed_in_the_format_they_come_in() {
    let server = NatsServer::start().await;
    let (bus, client) = (connect(&server).await, connect(&server).await);
    let context = Context::new("test");
    let malformed = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&malformed);
    let count = move || {
        counted.fetch_add(1, Ordering::Relaxed);
    };
    let stop = context.shutdown.soft().clone();
    // Heard before it is obeyed: the first order finds somebody.
    let orders = control::listen(&bus, &context).await.unwrap();
    let obeying = tokio::spawn(orders.obey(count, stop));
    let subject = subjects::control("test", &context.instance);
    let ask = async |format: &str, body: Vec<u8>| {
        let headers = Headers::new().with(CONTENT_TYPE, format);
        client.request(&subject, headers, body.into(), LONG).await.unwrap()
    };

    let order = wire::encode_as(Format::Json, &Control::DescribePool).unwrap();
    let answer = ask(Format::JSON, order.clone()).await;
    assert_eq!(answer.headers.get(CONTENT_TYPE), Some(Format::JSON));
    let answer: ControlReply = wire::decode_as(Format::Json, &answer.payload).unwrap();
    assert_eq!(answer, ControlReply::Refused("test takes only drain".to_owned()));
    for (format, body) in [(Format::MESSAGE_PACK, vec![0xc1]), ("text/plain", order)] {
        let answer: ControlReply = wire::decode(&ask(format, body).await.payload).unwrap();
        assert_eq!(answer, ControlReply::Refused("the order cannot be read".to_owned()));
    }
    assert_eq!(malformed.load(Ordering::Relaxed), 2);

    assert!(!context.shutdown.is_stopping());
    let order = wire::encode(&Control::Drain).unwrap();
    let answer: ControlReply = wire::decode(&ask(Format::MESSAGE_PACK, order).await.payload).unwrap();
    assert_eq!(answer, ControlReply::Accepted);
    assert!(context.shutdown.is_stopping());
    tokio::time::timeout(LONG, obeying).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn health_follows_the_connection_until_the_stop() {
    let mut server = NatsServer::start().await;
    let bus = connect(&server).await;
    let context = Context::new("test");
    let stop = CancellationToken::new();
    let following = bus::connected::follow(bus.clone(), context.health.component("bus"), stop.clone());
    let following = tokio::spawn(following);
    context.health.wait_ready(LONG).await.unwrap();
    let elsewhere = Context::new("test");
    let connections = || bus.connections(elsewhere.health.component("bus"), stop.clone());
    assert!(connections().next().await.is_some(), "the present one comes first");
    let mut later = connections().skip_present();

    server.kill();
    is_lost(&bus).await;
    eventually("the loss is shown", LONG, || async { !context.health.is_ready() }).await;
    server.restart().await;
    context.health.wait_ready(LONG).await.unwrap();
    // It has left out the first connection, and says of the second only that it is there.
    let component = tokio::time::timeout(LONG, later.next()).await.unwrap().unwrap();
    assert!(!elsewhere.health.is_ready());
    component.set_ready();
    assert!(elsewhere.health.is_ready());

    stop.cancel();
    tokio::time::timeout(LONG, following).await.unwrap().unwrap().unwrap();
    assert!(later.next().await.is_none());
}
