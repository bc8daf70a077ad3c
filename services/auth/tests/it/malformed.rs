//! Garbage on every subject: logged, counted, answered, survived.

use bus::Headers;
use bytes::Bytes;
use schemas::error::ErrorCode;
use schemas::fleet::{Control, ControlReply};
use schemas::policy::{Held, KeysReply, Resolved};
use schemas::{headers, subjects, wire};
use testkit::{NatsServer, eventually};

use crate::mesh::{AuthService, Client, PATIENCE, ordinary, question};

#[tokio::test]
async fn garbage_on_every_subject() {
    let server = NatsServer::start().await;
    let auth = AuthService::start(&server, &[]).await;
    let client = Client::connect(&server).await;
    let (key, _) = client.create(&ordinary("acme")).await;
    let resolve = subjects::resolve("k");
    let hold = subjects::hold("k");
    let control = subjects::control("auth", &auth.context.instance);
    let whole = wire::encode(&question(&key)).unwrap();

    let mut trailing = whole.clone();
    trailing.push(0);
    let bodies: [(&str, Vec<u8>); 7] = [
        ("empty", Vec::new()),
        ("reserved byte", vec![0xc1]),
        ("cut off", whole[..whole.len() - 5].to_vec()),
        ("trailing byte", trailing),
        ("another type", wire::encode(&7).unwrap()),
        ("a bomb: an array of 4 billion", vec![0xdd, 0xff, 0xff, 0xff, 0xff]),
        ("nested deeper than any stack", vec![0x91; 100_000]),
    ];
    let kinds = ["create", "list", "disable", "enable", "delete"];
    for (what, body) in &bodies {
        let ask = async |subject: &str| client.ask_raw(subject, Headers::new(), body.clone()).await;
        let answer: Resolved = wire::decode(&ask(&resolve).await.payload).unwrap();
        assert!(
            matches!(&answer, Resolved::Denied(failure) if failure.code == ErrorCode::UnsupportedWork),
            "{what}: {answer:?}"
        );
        let answer: Held = wire::decode(&ask(&hold).await.payload).unwrap();
        assert_eq!(answer.granted, 0, "{what}");
        for verb in kinds {
            let answer = ask(&subjects::keys(verb)).await;
            let answer: KeysReply = wire::decode(&answer.payload).unwrap();
            assert!(
                matches!(&answer, KeysReply::Failed(failure) if failure.code == ErrorCode::UnsupportedWork),
                "{what} {verb}: {answer:?}"
            );
        }
        let answer: ControlReply = wire::decode(&ask(&control).await.payload).unwrap();
        assert!(matches!(answer, ControlReply::Refused(_)), "{what}");
    }
    let rounds = bodies.len() as u64;
    let malformed = |kind| {
        let labels = [("outcome", "malformed"), ("kind", kind)];
        auth.counted("portalis_auth_requests_total", &labels)
    };
    assert_eq!(malformed("resolve"), rounds);
    assert_eq!(malformed("hold"), rounds);
    assert_eq!(malformed("keys"), rounds * kinds.len() as u64);
    assert_eq!(malformed("control"), rounds);

    // A format we do not speak, and garbage that nobody waits for.
    let xml = Headers::new().with(headers::CONTENT_TYPE, "text/xml");
    let answer = client.ask_raw(&resolve, xml, whole).await;
    assert!(matches!(wire::decode(&answer.payload).unwrap(), Resolved::Denied(_)));
    for subject in [&resolve, &hold, &subjects::keys("delete"), &control] {
        let body = Bytes::from_static(&[0xc1]);
        client.bus.publish(subject, Headers::new(), body).await.unwrap();
    }
    // A key for nobody is not made.
    let body = Bytes::from(wire::encode(&ordinary("nobody")).unwrap());
    let create = subjects::keys("create");
    client.bus.publish(&create, Headers::new(), body).await.unwrap();
    eventually("all of it is counted", PATIENCE, || async {
        malformed("resolve") == rounds + 2
            && malformed("hold") == rounds + 1
            && malformed("control") == rounds + 1
            && auth.counted(
                "portalis_auth_requests_total",
                &[("kind", "keys"), ("outcome", "denied")],
            ) == 1
    })
    .await;

    assert_eq!(client.granted(&key).await.tenant, "acme");
    assert!(auth.context.health.is_ready());
    let accepted: ControlReply = client.ask(&control, &Control::Drain).await;
    assert_eq!(accepted, ControlReply::Accepted);
    auth.ended().await;
}
