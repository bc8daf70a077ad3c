//! Identities as a verifier sees them: only with the key from the bucket, only for their time, only unchanged.

use std::time::Duration;

use bus::{Bucket, Bus};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use schemas::identity::{AUDIENCE, Claims, ISSUER, Jwk, MAX_LIFETIME_S};
use schemas::policy::Grant;
use schemas::{streams, wire};
use testkit::{NatsServer, eventually};

use crate::mesh::{AuthService, Client, PATIENCE, ordinary};

async fn bucket(bus: &Bus) -> Bucket {
    bus.kv(&streams::jwks_bucket()).await.unwrap()
}

async fn public_key(bucket: &Bucket, kid: &str) -> Jwk {
    let entry = bucket.get(kid).await.unwrap().expect("it is published");
    wire::decode(&entry.value).unwrap()
}

fn kid_of(token: &str) -> String {
    jsonwebtoken::decode_header(token).unwrap().kid.unwrap()
}

fn verify(token: &str, public: &Jwk) -> Result<Claims, ErrorKind> {
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.set_audience(&[AUDIENCE]);
    validation.set_issuer(&[ISSUER]);
    validation.leeway = 0;
    let proof = DecodingKey::from_ed_components(&public.x).unwrap();
    jsonwebtoken::decode::<Claims>(token, &proof, &validation)
        .map(|data| data.claims)
        .map_err(|error| error.into_kind())
}

/// The token with one character of a part changed.
fn tampered(token: &str, part: usize) -> String {
    let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
    let middle = parts[part].len() / 2;
    let other = if &parts[part][middle..=middle] == "A" { "B" } else { "A" };
    parts[part].replace_range(middle..=middle, other);
    parts.join(".")
}

#[tokio::test]
async fn only_the_true_token_is_believed() {
    let server = NatsServer::start().await;
    let auth = AuthService::start(&server, &[]).await;
    let client = Client::connect(&server).await;
    let (key, info) = client.create(&ordinary("acme")).await;
    let Grant {
        identity: token,
        identity_expires_at_ms,
        ..
    } = client.granted(&key).await;
    let public = public_key(&bucket(&client.bus).await, &kid_of(&token)).await;
    assert_eq!(
        (public.kty.as_str(), public.crv.as_str(), public.alg.as_str()),
        ("OKP", "Ed25519", "EdDSA")
    );

    let claims = verify(&token, &public).unwrap();
    assert_eq!((&claims.sub, claims.tnt.as_str()), (&info.kid, "acme"));
    assert_eq!((claims.ver, &claims.mdl), (1, &info.models));
    assert_eq!(claims.exp * 1_000, identity_expires_at_ms);
    assert!(claims.exp - claims.iat <= MAX_LIFETIME_S);
    assert!(claims.exp < public.expires_at_s);

    // Asked again, the same token; it says nothing of the key itself.
    assert_eq!(client.granted(&key).await.identity, token);
    assert_eq!(auth.counted("portalis_auth_identities_total", &[]), 1);

    for part in 0..3 {
        assert!(verify(&tampered(&token, part), &public).is_err(), "{part}");
    }
    let unsigned = {
        use base64::Engine as _;
        let head = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        let body = token.split('.').nth(1).unwrap();
        format!("{head}.{body}.")
    };
    assert!(verify(&unsigned, &public).is_err(), "alg none");
    // The public key as a shared secret, the classic confusion.
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some(public.kid.clone());
    let secret = EncodingKey::from_secret(public.x.as_bytes());
    let forged = jsonwebtoken::encode(&header, &claims, &secret).unwrap();
    assert!(verify(&forged, &public).is_err(), "HS256");

    let other_server = NatsServer::start().await;
    let other = AuthService::start(&other_server, &[]).await;
    let other_client = Client::connect(&other_server).await;
    let (other_key, _) = other_client.create(&ordinary("acme")).await;
    let foreign = other_client.granted(&other_key).await.identity;
    assert_eq!(verify(&foreign, &public), Err(ErrorKind::InvalidSignature));
    other.stop().await;
    auth.stop().await;
}

#[tokio::test]
async fn a_token_of_an_hour_ago_is_dead() {
    let server = NatsServer::start().await;
    let now_ms = process::Clock::real().now_unix_ms();
    let auth = AuthService::start_at(&server, now_ms - 3_600_000, &[]).await;
    let client = Client::connect(&server).await;
    let (key, _) = client.create(&ordinary("acme")).await;
    let token = client.granted(&key).await.identity;
    let public = public_key(&bucket(&client.bus).await, &kid_of(&token)).await;
    assert_eq!(verify(&token, &public), Err(ErrorKind::ExpiredSignature));
    auth.stop().await;
}

#[tokio::test]
async fn signing_keys_come_and_go() {
    let server = NatsServer::start().await;
    let settings = ["identity.rotation_s=600", "upkeep.interval_ms=20"];
    let auth = AuthService::start(&server, &settings).await;
    let client = Client::connect(&server).await;
    let bucket = bucket(&client.bus).await;
    let (key, _) = client.create(&ordinary("acme")).await;
    let first = kid_of(&client.granted(&key).await.identity);

    // Lost from the bucket, it comes back.
    bucket.delete(&first).await.unwrap();
    eventually("the public key is published again", PATIENCE, || async {
        bucket.get(&first).await.unwrap().is_some()
    })
    .await;

    auth.clock.advance(Duration::from_secs(601));
    eventually("a second key is published", PATIENCE, || async {
        bucket.keys().await.unwrap().len() == 2
    })
    .await;
    eventually("the second key signs", PATIENCE, || async {
        let token = client.granted(&key).await.identity;
        public_key(&bucket, &kid_of(&token)).await;
        kid_of(&token) != first
    })
    .await;

    // Tokens of the first key may live for its grace and a minute; then it goes.
    let first_ends_s = public_key(&bucket, &first).await.expires_at_s;
    let left_ms = first_ends_s * 1_000 - auth.context.clock.now_unix_ms();
    auth.clock.advance(Duration::from_millis(left_ms + 2_000));
    eventually("the first key is removed", PATIENCE, || async {
        bucket.get(&first).await.unwrap().is_none()
    })
    .await;
    let token = client.granted(&key).await.identity;
    public_key(&bucket, &kid_of(&token)).await;
    auth.stop().await;
}
