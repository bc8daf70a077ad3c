//! Permits over the bus: whoever asks, together they get what the limit allows.

use std::sync::Arc;
use std::time::Duration;

use testkit::NatsServer;

use crate::mesh::{AuthService, Client, limited, ordinary};

#[tokio::test(flavor = "multi_thread")]
async fn all_gateways_together_never_get_more_than_the_limit() {
    let server = NatsServer::start().await;
    let auth = AuthService::start(&server, &[]).await;
    let client = Client::connect(&server).await;
    let (_, info) = client.create(&limited(600, 50)).await;
    let kid: Arc<str> = info.kid.into();

    let everybody_asks = async || {
        let mut gateways = tokio::task::JoinSet::new();
        for gateway in 0..6 {
            let (client, kid) = (Client::connect(&server).await, Arc::clone(&kid));
            gateways.spawn(async move {
                let mut granted = 0;
                for ask in 0..20 {
                    let held = client.hold(&kid, 1, 1 + (gateway + ask) % 5).await;
                    assert_eq!(held.granted == 0, held.retry_after_ms > 0);
                    assert!(held.valid_ms > 0);
                    granted += held.granted;
                }
                granted
            });
        }
        gateways.join_all().await.into_iter().sum::<u32>()
    };
    // The clock stands still, so the burst is all there is, to the last permit.
    assert_eq!(everybody_asks().await, 50);
    assert_eq!(everybody_asks().await, 0);
    // 600 a minute are ten a second.
    auth.clock.advance(Duration::from_millis(1_250));
    assert_eq!(everybody_asks().await, 12);
    assert_eq!(auth.counted("portalis_auth_permits_total", &[]), 62);

    // Off and on again does not fill the bucket, and while it is off there is nothing.
    client.change("disable", &kid).await;
    auth.clock.advance(Duration::from_secs(1));
    assert_eq!(client.hold(&kid, 1, 5).await.granted, 0);
    client.change("enable", &kid).await;
    assert_eq!(client.hold(&kid, 1, 100).await.granted, 10);

    let (_, free) = client.create(&ordinary("free")).await;
    assert_eq!(client.hold(&free.kid, 1, 100).await.granted, 100);
    auth.stop().await;
}
