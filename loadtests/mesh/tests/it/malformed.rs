//! Nonsense on every subject: counted, logged, and nothing else.

use bus::Headers;
use schemas::subjects::{self, TABLE};
use schemas::wire::Format;
use schemas::{headers, streams, wire};
use testkit::eventually;

use crate::mesh::worker::{ECHO, WorkerSpec};
use crate::mesh::{DEADLINE, Mesh, MeshOptions};

/// Bodies that no type of ours reads, each with its content type.
fn nonsense() -> Vec<(&'static str, Vec<u8>)> {
    let packed = |value: &serde_json::Value| wire::encode(value).unwrap();
    vec![
        (Format::MESSAGE_PACK, Vec::new()),
        (Format::MESSAGE_PACK, vec![0xc1]),
        (Format::MESSAGE_PACK, (0..=255).collect()),
        (
            Format::MESSAGE_PACK,
            packed(&serde_json::json!({"unknown": {"field": 1}})),
        ),
        (Format::MESSAGE_PACK, packed(&serde_json::json!([1, 2, 3]))),
        (Format::MESSAGE_PACK, packed(&serde_json::json!("text"))),
        // A map that promises 4 billion entries, a string of 4 GiB, arrays a hundred thousand deep.
        (Format::MESSAGE_PACK, vec![0xdf, 0xff, 0xff, 0xff, 0xff]),
        (Format::MESSAGE_PACK, vec![0xdb, 0xff, 0xff, 0xff, 0xff]),
        (Format::MESSAGE_PACK, vec![0x91; 100_000]),
        (Format::JSON, b"{".to_vec()),
        (Format::JSON, b"{\"request_id\":7}".to_vec()),
        (Format::JSON, vec![b'['; 100_000]),
        ("text/plain", b"hello".to_vec()),
    ]
}

/// Every subject that a row stands for in this mesh.
fn expand(mesh: &Mesh, row: &str) -> Vec<String> {
    let worker = mesh.instance(0);
    let gateway = &mesh.gateways[0].service.context;
    if row.contains("<service>") {
        let contexts = mesh.services.iter().map(|service| &service.context).chain([gateway]);
        let known = contexts.map(|context| (context.service, context.instance.clone()));
        let all = known.chain([("gpu-worker", worker), ("gpu-worker", "nobody".to_owned())]);
        return all
            .map(|(service, instance)| row.replace("<service>", service).replace("<instance>", &instance))
            .collect();
    }
    let filled = row
        .replace("<model>", ECHO)
        .replace("<lane>", "interactive")
        .replace("<tenant>", "t")
        .replace("<gateway>", &gateway.instance)
        .replace("<worker>", &worker);
    let variants = |name: &str, values: &[&str]| -> Vec<String> {
        values.iter().map(|value| filled.replace(name, value)).collect()
    };
    match filled.split_once('<').map(|(_, rest)| rest) {
        None => vec![filled],
        Some("slot>") => variants("<slot>", &["b", "p0", "px", "other"]),
        Some("partition>") => variants("<partition>", &["0", "63", "64", "x"]),
        Some("verb>") => variants("<verb>", &["create", "list", "disable", "enable", "delete", "nothing"]),
        Some("shard>") => variants("<shard>", &["0", "15", "16", "x"]),
        Some(other) => panic!("a placeholder this test does not know: <{other} in {row}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_on_every_subject_is_counted_and_stops_nobody() {
    let mut mesh = Mesh::start(MeshOptions {
        workers: vec![WorkerSpec::echo(&[])],
        ..MeshOptions::default()
    })
    .await;
    let client = mesh.client(&mesh.key("t").await);
    client.embed(ECHO, "before").await.ok();
    let advisory = subjects::MAX_DELIVERIES_ADVISORIES.replace('*', "x");
    let mut subjects: Vec<String> = TABLE.iter().flat_map(|row| expand(&mesh, row.subject)).collect();
    subjects.push(advisory);
    for subject in &subjects {
        for (content_type, body) in nonsense() {
            let with = Headers::new().with(headers::CONTENT_TYPE, content_type);
            mesh.bus
                .publish_with_reply(subject, "test.nobody", with, body.into())
                .await
                .unwrap();
        }
    }
    for bucket in [streams::models_bucket(), streams::jwks_bucket()] {
        let bucket = mesh.bus.kv(&bucket).await.unwrap();
        for (number, (_, body)) in nonsense().into_iter().enumerate() {
            bucket.put(&format!("nonsense-{number}"), body.into()).await.unwrap();
        }
    }
    mesh.bus.round_trip(DEADLINE).await.unwrap();

    for family in ["reply", "beat", "revoked", "held", "purge", "models"] {
        let label = format!("subject=\"{family}\"");
        eventually(
            &format!("the gateway counts nonsense on {family}"),
            DEADLINE,
            || async { mesh.gateway_metric("portalis_gateway_malformed_messages_total", &label) > 0.0 },
        )
        .await;
    }
    for family in ["work", "cancel", "advisory", "tokens"] {
        let label = format!("subject=\"{family}\"");
        eventually(&format!("the worker counts nonsense on {family}"), DEADLINE, || async {
            mesh.workers[0]
                .metric("portalis_worker_malformed_messages_total", &label)
                .await
                > 0.0
        })
        .await;
    }
    for (place, metric, label) in [
        (0, "portalis_auth_", "malformed"),
        (1, "portalis_cache_malformed_messages_total", ""),
        (2, "portalis_ledger_rejected_total", ""),
    ] {
        let service = &mesh.services[place];
        eventually(
            &format!("{} counts nonsense", service.context.service),
            DEADLINE,
            || async {
                let page = process::ops::metrics_text(std::slice::from_ref(&service.context)).unwrap();
                let counted = |line: &&str| line.starts_with(metric) && line.contains(label) && !line.ends_with(" 0");
                page.lines().filter(counted).count() > 0
            },
        )
        .await;
    }
    // What cannot be booked is kept as it came.
    let rejected = nonsense().len() as u64;
    eventually("the ledger keeps what it cannot read", DEADLINE, || async {
        cost_accounting::verify(&mesh.ledger())
            .await
            .is_ok_and(|report| report.rejected_rows == rejected)
    })
    .await;
    mesh.rejected = rejected;
    client.embed(ECHO, "after").await.ok();
    for service in mesh.services.iter().chain([&mesh.gateways[0].service]) {
        assert!(service.is_well(), "{} is not well", service.context.service);
        assert!(
            service.context.health.is_ready(),
            "{}: {:?}",
            service.context.service,
            service.context.health.report()
        );
    }
    assert!(mesh.workers[0].ended().is_none());
    assert_eq!(mesh.books("t").await.usage.computed, 2);
    mesh.finish().await;
}
