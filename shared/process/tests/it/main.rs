//! Tests of `process` as a user sees it: a real service process, its exit code, its log, its health over HTTP, and its answer to signals.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod child;
mod ops;

use child::Child;

#[test]
fn sigterm_drains_and_exits_0() {
    for signal in ["TERM", "INT"] {
        let mut child = Child::start(&["--set", "sample.mode=polite"]);
        child.wait_for_step("serving");
        let ops = child.ops_address();
        let (status, body) = child::get(&ops, "/health/ready");
        assert_eq!((status, body["status"].as_str()), (200, Some("ready")), "{body}");

        child.signal(signal);
        child.wait_for_step("draining");
        let (status, body) = child::get(&ops, "/health/ready");
        assert_eq!((status, body["status"].as_str()), (503, Some("draining")), "{body}");
        assert_eq!(child::get(&ops, "/health/live").0, 200);

        child.let_go();
        let end = child.wait();
        assert_eq!(end.code, Some(0), "{}", end.log);
        assert!(end.log.contains("\"drained\""), "{}", end.log);
    }
}

#[test]
fn a_service_that_does_not_stop_is_stopped_by_the_deadline_or_a_second_signal() {
    let mut late = Child::start(&["--set", "sample.mode=stuck", "--set", "process.drain_ms=50"]);
    late.wait_for_step("serving");
    late.signal("TERM");
    let end = late.wait();
    assert_eq!(end.code, Some(1), "{}", end.log);
    assert!(end.log.contains("drain deadline passed"), "{}", end.log);

    let mut impatient = Child::start(&["--set", "sample.mode=stuck", "--set", "process.drain_ms=600000"]);
    impatient.wait_for_step("serving");
    impatient.signal("INT");
    impatient.wait_for_step("draining");
    impatient.signal("INT");
    let end = impatient.wait();
    assert_eq!(end.code, Some(1), "{}", end.log);
    assert!(end.log.contains("second signal received"), "{}", end.log);
}

#[test]
fn a_stuck_task_is_named() {
    let mut child = Child::start(&["--set", "sample.mode=stuck_task", "--set", "process.drain_ms=50"]);
    child.wait_for_step("serving");
    child.signal("TERM");
    let end = child.wait();
    assert_eq!(end.code, Some(1), "{}", end.log);
    assert!(
        end.log.contains("did not end") && end.log.contains("stuck-task"),
        "{}",
        end.log
    );
}

#[test]
fn a_failure_stops_the_process_with_1_and_says_why() {
    let reasons = [
        ("task_fails", "told to fail"),
        ("task_panics", "told to panic"),
        ("panics", "the service panicked"),
        ("returns", "without being asked to stop"),
    ];
    for (mode, reason) in reasons {
        let end = Child::start(&["--set", &format!("sample.mode={mode}")]).wait();
        assert_eq!(end.code, Some(1), "{mode}: {}", end.log);
        assert!(end.log.contains(reason), "{mode}: {}", end.log);
        // Every line is JSON, the panic's too.
        for line in end.log.lines() {
            serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        }
    }
}

#[test]
fn a_busy_port_is_one_clear_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let end = Child::start(&["--set", &format!("process.ops_address={address}")]).wait();
    assert_eq!(end.code, Some(1));
    let lines: Vec<&str> = end.log.lines().collect();
    assert_eq!(lines.len(), 1, "{}", end.log);
    assert!(
        lines[0].contains(&address) && lines[0].contains("process.ops_address"),
        "{}",
        end.log
    );
}

#[test]
fn the_configuration_is_printed_without_secrets_or_refused_with_a_reason() {
    let environment = [("PORTALIS__SAMPLE__PASSWORD", "hunter2"), ("PORTALIS__OTHER__KEY", "1")];
    let end = Child::start_with(&["--print-config", "--set", "process.drain_ms=7"], &environment).wait();
    assert_eq!(end.code, Some(0), "{}", end.log);
    assert!(
        end.output.contains("drain_ms = 7") && end.output.contains("password = \"[redacted]\""),
        "{}",
        end.output
    );
    assert!(!end.output.contains("hunter2"));

    let end = Child::start_with(&[], &[("PORTALIS__SAMPLE__MODUS", "polite")]).wait();
    assert_eq!(end.code, Some(1));
    let expected =
        "portalis-sample: configuration key `sample.modus` from environment variable PORTALIS__SAMPLE__MODUS";
    assert!(end.log.starts_with(expected), "{}", end.log);

    let end = Child::start(&["--version"]).wait();
    assert_eq!(
        (end.code, end.output.as_str()),
        (Some(0), concat!("portalis-sample ", env!("CARGO_PKG_VERSION"), "\n"))
    );
    assert_eq!(Child::start(&["--nope"]).wait().code, Some(2));
}
