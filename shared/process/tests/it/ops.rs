//! Tests of the ops server with several services on one listener.

use process::{CancellationToken, Context, OpsServer, Shutdown, metrics};

use crate::child::get;

async fn ask(address: &str, path: &'static str) -> (u16, serde_json::Value) {
    let address = address.to_owned();
    tokio::task::spawn_blocking(move || get(&address, path)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn several_services_share_a_listener() {
    let shutdown = Shutdown::new();
    let contexts = ["auth", "cache"].map(|service| Context::with_shutdown(service, shutdown.clone()));
    for (context, count) in contexts.iter().zip([3, 4]) {
        metrics::int_counter(&context.registry, "portalis_shared_total", "Shared.")
            .unwrap()
            .inc_by(count);
        metrics::histogram(
            &context.registry,
            "portalis_wait_seconds",
            "Wait.",
            metrics::SECONDS_BUCKETS,
        )
        .unwrap()
        .observe(0.2);
    }
    let [auth, cache] = contexts.each_ref().map(|context| context.health.component("bus"));
    auth.set_ready();

    let server = OpsServer::bind("127.0.0.1:0").await.unwrap();
    let address = server.address().to_string();
    let stop = CancellationToken::new();
    let serving = tokio::spawn(server.serve(contexts.to_vec(), stop.clone()));

    let (status, body) = ask(&address, "/health/ready").await;
    assert_eq!(
        (status, body["status"].as_str()),
        (503, Some("unready")),
        "one of two is not enough"
    );
    cache.set_ready();
    let (status, body) = ask(&address, "/health/ready").await;
    assert_eq!(status, 200, "{body}");
    let services: Vec<_> = body["services"]
        .as_array()
        .unwrap()
        .iter()
        .map(|service| &service["service"])
        .collect();
    assert_eq!(services, ["auth", "cache"]);
    assert_eq!(body["services"][0]["components"][0]["name"], "bus");

    let (status, text) = ask(&address, "/metrics").await;
    let text = text.as_str().unwrap();
    assert_eq!(status, 200);
    let count = |line: &str| text.lines().filter(|found| *found == line).count();
    assert_eq!(count("# TYPE portalis_shared_total counter"), 1, "{text}");
    assert_eq!(count("# TYPE portalis_wait_seconds histogram"), 1);
    assert_eq!(
        (
            count("portalis_shared_total{service=\"auth\"} 3"),
            count("portalis_shared_total{service=\"cache\"} 4")
        ),
        (1, 1)
    );
    for name in [
        "process_cpu_seconds_total ",
        "process_resident_memory_bytes ",
        "process_open_fds ",
        "process_start_time_seconds ",
    ] {
        assert_eq!(text.lines().filter(|line| line.starts_with(name)).count(), 1, "{name}");
    }
    assert!(text.contains("portalis_build_info{service=\"auth\",version="));

    assert_eq!(ask(&address, "/health/live").await.0, 200);
    assert_eq!(ask(&address, "/nothing").await.0, 404);
    shutdown.start();
    assert_eq!(ask(&address, "/health/ready").await.0, 503);
    stop.cancel();
    serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn one_name_with_two_types_is_refused() {
    let contexts = ["auth", "cache"].map(Context::new);
    metrics::int_counter(&contexts[0].registry, "portalis_both", "Both.").unwrap();
    metrics::int_gauge(&contexts[1].registry, "portalis_both", "Both.").unwrap();
    let error = process::ops::metrics_text(&contexts).unwrap_err();
    assert!(error.to_string().contains("portalis_both"), "{error}");
}
