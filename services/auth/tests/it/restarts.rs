//! What survives: keys survive the service, the service survives the broker, secrets are nowhere on the disk.

use std::fs;
use std::path::Path;
use std::process::Command;

use schemas::policy::{KeysReply, Resolved, SECRET_CHARS, hex};
use sha2::{Digest, Sha256};
use testkit::{NatsServer, eventually};

use crate::mesh::{AuthService, Client, PATIENCE, ordinary, store_in};

/// Whether any file of the folder holds these bytes.
fn found(folder: &Path, needle: &[u8]) -> bool {
    fs::read_dir(folder).unwrap().any(|entry| {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        bytes.windows(needle.len()).any(|window| window == needle)
    })
}

#[tokio::test]
async fn keys_outlive_the_service_and_secrets_are_not_stored() {
    let server = NatsServer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let store = store_in(folder.path());
    let client = Client::connect(&server).await;

    let auth = AuthService::start(&server, &[&store]).await;
    let (key, info) = client.create(&ordinary("acme")).await;
    let (disabled, disabled_info) = client.create(&ordinary("acme")).await;
    client.granted(&key).await;
    client.change("disable", &disabled_info.kid).await;

    let secret_at = key.len() - SECRET_CHARS - 6;
    let digest = Sha256::digest(key.as_bytes());
    for live in [true, false] {
        let folder = folder.path();
        assert!(found(folder, info.kid.as_bytes()), "we look at the right files");
        assert!(!found(folder, &key.as_bytes()[secret_at..secret_at + SECRET_CHARS]));
        assert!(!found(folder, &digest), "digest, live: {live}");
        assert!(!found(folder, hex(&digest).as_bytes()), "digest as text, live: {live}");
        if live {
            // The write-ahead log was looked at; once more when it is folded into the file.
            auth.context.shutdown.start();
            eventually("it has stopped", PATIENCE, || async {
                !folder.join("auth.sqlite3-wal").exists()
            })
            .await;
        }
    }
    auth.ended().await;

    let auth = AuthService::start(&server, &[&store]).await;
    assert_eq!(client.granted(&key).await.kid, info.kid);
    assert!(matches!(client.resolve(&disabled).await, Resolved::Denied(_)));
    let changed = client.change("enable", &disabled_info.kid).await;
    assert!(matches!(changed, KeysReply::Changed(info) if info.policy_version == 3));
    client.granted(&disabled).await;
    auth.stop().await;
}

#[tokio::test]
async fn the_service_survives_its_broker() {
    let mut server = NatsServer::start().await;
    let auth = AuthService::start(&server, &[]).await;
    let client = Client::connect(&server).await;
    let (key, _) = client.create(&ordinary("acme")).await;
    client.granted(&key).await;
    server.kill();
    eventually("it says that it is cut off", PATIENCE, || async {
        !auth.context.health.is_ready()
    })
    .await;
    server.restart().await;
    auth.context.health.wait_ready(PATIENCE).await.unwrap();
    let again = Client::connect(&server).await;
    eventually("it answers again", PATIENCE, || async {
        let asked = crate::mesh::question(&key);
        let body = schemas::wire::encode(&asked).unwrap();
        let subject = schemas::subjects::resolve(&asked.kid);
        let headers = bus::Headers::new();
        let answer = again.bus.request(&subject, headers, body.into(), PATIENCE);
        answer.await.is_ok()
    })
    .await;
    assert_eq!(again.granted(&key).await.tenant, "acme");
    auth.stop().await;
}

#[test]
fn the_binary_shows_its_settings_without_a_broker() {
    let output = Command::new(env!("CARGO_BIN_EXE_portalis-auth"))
        .args(["--print-config", "--set", "bus.url=nats://me:hidden@h:1"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("rotation_s"), "{text}");
    assert!(!text.contains("hidden"), "{text}");

    let output = Command::new(env!("CARGO_BIN_EXE_portalis-auth"))
        .args(["--set", "identity.lifetime_s=61"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains("identity.lifetime_s = 61 is not between 2 and 60"),
        "{text}"
    );
}
