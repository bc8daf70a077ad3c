//! A key's life: made, used, disabled, enabled, expired, deleted, listed; and orders to the instance.

use std::time::Duration;

use bus::Headers;
use schemas::error::ErrorCode;
use schemas::fleet::{Beat, Control, ControlReply, InstanceState};
use schemas::policy::{CreateKey, KeyState, KeysReply, ListKeys, Resolve, Resolved, Revoked, Scope, check_key};
use schemas::wire::{self, Format};
use schemas::{headers, subjects};
use testkit::NatsServer;

use crate::mesh::{AuthService, Client, PATIENCE, ordinary, question};

#[tokio::test]
async fn a_key_from_birth_to_death() {
    let server = NatsServer::start().await;
    let auth = AuthService::start(&server, &[]).await;
    let client = Client::connect(&server).await;
    let mut revoked = client.bus.subscribe(subjects::REVOKED, None).await.unwrap();

    let (key, info) = client.create(&ordinary("acme")).await;
    assert_eq!(check_key(&key), Ok(info.kid.as_str()));
    assert_eq!((info.state, info.policy_version), (KeyState::Active, 1));
    let grant = client.granted(&key).await;
    assert_eq!((grant.kid.as_str(), grant.tenant.as_str()), (info.kid.as_str(), "acme"));
    assert_eq!(grant.scopes, [Scope::Inference, Scope::UsageRead]);
    assert!(grant.allows_model("all-minilm-l6-v2") && !grant.allows_model("other"));

    for (verb, state, version) in [
        ("disable", KeyState::Disabled, 2),
        ("enable", KeyState::Active, 3),
        ("disable", KeyState::Disabled, 4),
        // Repeated, it changes nothing and is told again.
        ("disable", KeyState::Disabled, 4),
        ("delete", KeyState::Deleted, 5),
    ] {
        match client.change(verb, &info.kid).await {
            KeysReply::Changed(changed) => {
                assert_eq!((changed.state, changed.policy_version), (state, version), "{verb}");
            }
            other => panic!("{verb}: {other:?}"),
        }
        // Told before it was answered, so it is there without waiting for more than the socket.
        let told = tokio::time::timeout(PATIENCE, revoked.next()).await;
        let told: Revoked = wire::decode(&told.unwrap().unwrap().payload).unwrap();
        assert_eq!((&told.kid, told.policy_version), (&info.kid, version));
        match client.resolve(&key).await {
            Resolved::Granted(grant) => {
                assert_eq!((state, grant.policy_version), (KeyState::Active, version));
            }
            Resolved::Denied(failure) => {
                assert_ne!(state, KeyState::Active);
                assert_eq!(failure.code, ErrorCode::InvalidKey);
            }
        }
    }
    match client.change("enable", &info.kid).await {
        KeysReply::Failed(failure) => {
            assert_eq!(
                (failure.code, failure.param.as_deref()),
                (ErrorCode::InvalidField, Some("kid"))
            );
        }
        other => panic!("a deleted key came back: {other:?}"),
    }
    auth.stop().await;
}

#[tokio::test]
async fn every_bad_key_is_told_the_same() {
    let server = NatsServer::start().await;
    let auth = AuthService::start(&server, &[]).await;
    let client = Client::connect(&server).await;
    let end_ms = auth.context.clock.now_unix_ms() + 5_000;
    let short = CreateKey {
        expires_at_ms: Some(end_ms),
        ..ordinary("acme")
    };
    let (expired, _) = client.create(&short).await;
    let (disabled, disabled_info) = client.create(&ordinary("acme")).await;
    let (deleted, deleted_info) = client.create(&ordinary("acme")).await;
    let (good, good_info) = client.create(&ordinary("acme")).await;
    assert!(client.granted(&expired).await.identity_expires_at_ms <= end_ms + 1_000);
    client.granted(&disabled).await;
    client.change("disable", &disabled_info.kid).await;
    client.change("delete", &deleted_info.kid).await;
    auth.clock.advance(Duration::from_secs(5));

    let wrong_secret = Resolve {
        key_sha256: question(&disabled).key_sha256,
        ..question(&good)
    };
    let unknown = Resolve {
        kid: "0".repeat(12),
        ..question(&good)
    };
    let no_hash = Resolve {
        key_sha256: "x".to_owned(),
        ..question(&good)
    };
    let strange = Resolve {
        kid: "' OR 1=1 --".to_owned(),
        ..question(&good)
    };
    let mut told = Vec::new();
    for (reason, asked) in [
        ("expired", question(&expired)),
        ("disabled", question(&disabled)),
        ("deleted", question(&deleted)),
        ("wrong_secret", wrong_secret),
        ("unknown", unknown),
        ("malformed", no_hash),
        ("malformed", strange),
    ] {
        let before = auth.counted("portalis_auth_denials_total", &[("reason", reason)]);
        let answer = client.ask::<_, Resolved>(&subjects::resolve(&asked.kid), &asked).await;
        told.push(answer);
        let after = auth.counted("portalis_auth_denials_total", &[("reason", reason)]);
        assert_eq!(after, before + 1, "{reason}");
    }
    assert!(matches!(&told[0], Resolved::Denied(failure) if failure.code == ErrorCode::InvalidKey));
    assert!(told.iter().all(|one| *one == told[0]), "{told:?}");
    assert_eq!(client.granted(&good).await.kid, good_info.kid);
    for kid in [&disabled_info.kid, "0000000000000", "a.b"] {
        assert_eq!(client.hold(kid, 1, 10).await.granted, 0, "{kid}");
    }
    auth.stop().await;
}

#[tokio::test]
async fn pages_formats_and_refusals() {
    let server = NatsServer::start().await;
    let auth = AuthService::start(&server, &["store.page_keys=2"]).await;
    let client = Client::connect(&server).await;
    let mut made = Vec::new();
    for tenant in ["a", "b", "a", "a"] {
        made.push(client.create(&ordinary(tenant)).await.1.kid);
    }
    made.remove(1);
    made.sort();
    let mut listed = Vec::new();
    let mut asked = ListKeys {
        tenant: Some("a".to_owned()),
        after: None,
    };
    loop {
        match client.ask(&subjects::keys("list"), &asked).await {
            KeysReply::Listed { keys, more } => {
                listed.extend(keys.into_iter().map(|key| key.kid));
                asked.after = listed.last().cloned();
                if !more {
                    break;
                }
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(listed, made);

    // The same in JSON, which is answered in JSON.
    let json = Headers::new().with(headers::CONTENT_TYPE, Format::JSON);
    let body = serde_json::to_vec(&ListKeys::default()).unwrap();
    let answer = client.ask_raw(&subjects::keys("list"), json, body).await;
    assert_eq!(answer.headers.get(headers::CONTENT_TYPE), Some(Format::JSON));
    let reply: KeysReply = serde_json::from_slice(&answer.payload).unwrap();
    assert!(matches!(reply, KeysReply::Listed { keys, more: true } if keys.len() == 2));

    for (verb, param) in [("explode", "verb"), ("disable", "kid")] {
        match client.change(verb, "nosuchkey000").await {
            KeysReply::Failed(failure) => assert_eq!(failure.param.as_deref(), Some(param)),
            other => panic!("{verb}: {other:?}"),
        }
    }
    let nameless = CreateKey {
        name: String::new(),
        ..ordinary("a")
    };
    let reply = client.ask(&subjects::keys("create"), &nameless).await;
    assert!(matches!(reply, KeysReply::Failed(failure) if failure.param.as_deref() == Some("name")));
    auth.stop().await;
}

#[tokio::test]
async fn it_beats_and_drains_when_told() {
    let server = NatsServer::start().await;
    let auth = AuthService::start(&server, &[]).await;
    let client = Client::connect(&server).await;
    let mut beats = client.bus.subscribe(subjects::BEATS, None).await.unwrap();
    let mut next = async || {
        let beat = tokio::time::timeout(PATIENCE, beats.next()).await;
        wire::decode::<Beat>(&beat.unwrap().unwrap().payload).unwrap()
    };
    let beat = next().await;
    assert_eq!(
        (beat.service.as_str(), &beat.instance),
        ("auth", &auth.context.instance)
    );
    assert_eq!(beat.state, InstanceState::Ready);

    let subject = subjects::control("auth", &auth.context.instance);
    let refused = client.ask(&subject, &Control::DescribePool).await;
    assert!(matches!(refused, ControlReply::Refused(_)));
    let accepted: ControlReply = client.ask(&subject, &Control::Drain).await;
    assert_eq!(accepted, ControlReply::Accepted);
    auth.ended().await;
    while next().await.state != InstanceState::Draining {}
}
