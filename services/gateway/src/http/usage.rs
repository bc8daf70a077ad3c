//! `GET /v1/usage`. Input: the caller's key, perhaps a time range. Output: what the key used and what it cost.

use std::sync::Arc;

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use bus::Headers;
use schemas::civil_date::CivilDate;
use schemas::cost::{UsageGet, UsageReport};
use schemas::error::{ErrorCode, Failure};
use schemas::http::UsageBody;
use schemas::policy::Scope;
use schemas::{headers, subjects, wire};

use super::error::HttpError;
use crate::Gateway;

/// Milliseconds of a day.
const DAY_MS: u64 = 86_400_000;

/// What the caller's key used.
pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    RawQuery(query): RawQuery,
    request_headers: HeaderMap,
) -> Result<Json<UsageBody>, HttpError> {
    let caller = gateway.authorizer.authorize(&request_headers).await?;
    if !caller.grant.scopes.contains(&Scope::UsageRead) {
        return Err(HttpError(Failure::new(
            ErrorCode::Forbidden,
            "this key may not read usage",
        )));
    }
    let (start_s, end_s) = range(query.as_deref().unwrap_or_default())?;
    let ask = UsageGet {
        key_id: Some(caller.grant.kid.clone()),
        tenant: caller.grant.tenant.clone(),
        start_s,
        end_s,
    };
    let payload = wire::encode(&ask).map_err(|_| away())?;
    let message_headers = Headers::new().with(headers::IDENTITY, &caller.grant.identity);
    let timeout = gateway.bus.request_timeout();
    let reply = gateway
        .bus
        .request(subjects::USAGE_GET, message_headers, payload.into(), timeout)
        .await;
    let reply = reply.map_err(|error| {
        tracing::warn!(%error, "usage not answered");
        away()
    })?;
    let report: UsageReport = wire::decode(&reply.payload).map_err(|error| {
        tracing::warn!(%error, "usage cannot be read");
        away()
    })?;
    Ok(Json(body(&report)))
}

fn away() -> Failure {
    crate::dispatch::unavailable("the ledger does not answer")
}

/// `start_time` and `end_time`, Unix seconds.
fn range(query: &str) -> Result<(Option<u64>, Option<u64>), Failure> {
    let (mut start_s, mut end_s) = (None, None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let slot = match name {
            "start_time" => &mut start_s,
            "end_time" => &mut end_s,
            _ => {
                let shown: String = name.chars().take(64).collect();
                let message = format!("unknown query parameter '{shown}'; start_time and end_time are known");
                return Err(Failure::new(ErrorCode::InvalidField, message).param(shown));
            }
        };
        let seconds: u64 = value
            .parse()
            .map_err(|_| Failure::new(ErrorCode::InvalidField, format!("'{name}' must be Unix seconds")).param(name))?;
        *slot = Some(seconds);
    }
    if let (Some(start_s), Some(end_s)) = (start_s, end_s)
        && start_s > end_s
    {
        return Err(Failure::new(ErrorCode::InvalidField, "'start_time' is after 'end_time'").param("start_time"));
    }
    Ok((start_s, end_s))
}

fn body(report: &UsageReport) -> UsageBody {
    UsageBody {
        requests: report.requests,
        computed: report.computed,
        cached: report.cached,
        input_tokens: report.input_tokens,
        output_tokens: report.output_tokens,
        compute_seconds: report.compute_ns as f64 / 1e9,
        cost_usd: report.cost.as_usd(),
        saved_usd: report.saved.as_usd(),
        as_of: rfc3339(report.as_of_ms),
    }
}

/// UTC time as RFC 3339 with milliseconds.
fn rfc3339(unix_ms: u64) -> String {
    let (days, ms) = (unix_ms / DAY_MS, unix_ms % DAY_MS);
    let date = CivilDate::from_days(i64::try_from(days).unwrap_or(i64::MAX));
    let (hours, minutes, seconds) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60);
    format!("{date}T{hours:02}:{minutes:02}:{seconds:02}.{:03}Z", ms % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_ranges() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(951_827_696_789), "2000-02-29T12:34:56.789Z");
        assert_eq!(rfc3339(1_795_305_599_999), "2026-11-21T23:59:59.999Z");
        assert_eq!(range("").unwrap(), (None, None));
        assert_eq!(range("start_time=1&end_time=2").unwrap(), (Some(1), Some(2)));
        for (query, param) in [
            ("start_time=x", "start_time"),
            ("from=1", "from"),
            ("start_time=3&end_time=2", "start_time"),
        ] {
            assert_eq!(range(query).unwrap_err().param.as_deref(), Some(param));
        }
    }
}
