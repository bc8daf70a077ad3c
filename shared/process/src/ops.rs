//! The operator's HTTP server: contexts in; `/health/live`, `/health/ready` and `/metrics` out, for one service or several in one process.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::proto::MetricFamily;
use prometheus::{TEXT_FORMAT, TextEncoder};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::health::{HealthReport, Status};
use crate::process_metrics;

/// Why the server does not run.
#[derive(Debug, thiserror::Error)]
pub enum OpsError {
    /// The address is taken or not ours.
    #[error(
        "cannot serve health and metrics on {address}: set process.ops_address to a free HOST:PORT, or to \"\" for none"
    )]
    Bind {
        /// The address.
        address: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The listener broke.
    #[error("the health and metrics server on {address} stopped")]
    Serve {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A server that has its port and does not answer yet.
#[derive(Debug)]
pub struct OpsServer {
    listener: TcpListener,
    address: SocketAddr,
}

impl OpsServer {
    /// Takes the port.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub async fn bind(address: &str) -> Result<Self, OpsError> {
        let failed = |source| OpsError::Bind {
            address: address.to_owned(),
            source,
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// Where it listens; tells the port that the system chose.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until the token is cancelled.
    ///
    /// # Errors
    /// When the listener breaks.
    pub async fn serve(self, contexts: Vec<Context>, stop: CancellationToken) -> Result<(), OpsError> {
        let address = self.address;
        tracing::info!(%address, "serving health and metrics");
        let serving = axum::serve(self.listener, router(contexts)).with_graceful_shutdown(stop.cancelled_owned());
        serving.await.map_err(|source| OpsError::Serve { address, source })
    }
}

/// Binds and answers until the token is cancelled.
///
/// # Errors
/// When the address cannot be had or the listener breaks.
pub async fn serve_ops(address: &str, contexts: Vec<Context>, stop: CancellationToken) -> Result<(), OpsError> {
    OpsServer::bind(address).await?.serve(contexts, stop).await
}

/// The three routes, for a service that serves them on a listener of its own.
pub fn router(contexts: Vec<Context>) -> Router {
    Router::new()
        .route(
            "/health/live",
            get(async || json(StatusCode::OK, &Live { status: "live" })),
        )
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(Arc::from(contexts))
}

/// The metrics of all contexts and of the process in Prometheus text; families of one name are one family.
///
/// # Errors
/// When two contexts register one name with different types, or a metric cannot be written.
pub fn metrics_text(contexts: &[Context]) -> Result<String, prometheus::Error> {
    let mut families: BTreeMap<String, MetricFamily> = BTreeMap::new();
    let registered = contexts.iter().flat_map(|context| context.registry.gather());
    for mut family in registered.chain(process_metrics::gather(contexts)?) {
        match families.get_mut(family.name()) {
            None => {
                families.insert(family.name().to_owned(), family);
            }
            Some(known) if known.get_field_type() == family.get_field_type() => {
                known.mut_metric().append(&mut family.take_metric());
            }
            Some(known) => {
                let text = format!("metric {} has two types in one process", known.name());
                return Err(prometheus::Error::Msg(text));
            }
        }
    }
    let families: Vec<MetricFamily> = families.into_values().collect();
    TextEncoder::new().encode_to_string(&families)
}

#[derive(Serialize)]
struct Live {
    status: &'static str,
}

#[derive(Serialize)]
struct Ready<'a> {
    status: Status,
    services: Vec<ServiceHealth<'a>>,
}

#[derive(Serialize)]
struct ServiceHealth<'a> {
    service: &'static str,
    instance: &'a str,
    #[serde(flatten)]
    health: HealthReport,
}

impl<'a> ServiceHealth<'a> {
    fn of(context: &'a Context) -> Self {
        Self {
            service: context.service,
            instance: &context.instance,
            health: context.health.report(),
        }
    }
}

async fn ready(State(contexts): State<Arc<[Context]>>) -> Response {
    let services: Vec<_> = contexts.iter().map(ServiceHealth::of).collect();
    let any = |status| services.iter().any(|service| service.health.status == status);
    let status = if any(Status::Draining) {
        Status::Draining
    } else if any(Status::Unready) || services.is_empty() {
        Status::Unready
    } else {
        Status::Ready
    };
    let code = if status == Status::Ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    json(code, &Ready { status, services })
}

async fn metrics(State(contexts): State<Arc<[Context]>>) -> Response {
    match metrics_text(&contexts) {
        Ok(text) => ([(header::CONTENT_TYPE, TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics cannot be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

fn json(status: StatusCode, body: &impl Serialize) -> Response {
    match serde_json::to_string(body) {
        Ok(text) => (status, [(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "health cannot be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
