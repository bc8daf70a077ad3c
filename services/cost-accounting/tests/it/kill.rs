//! The program killed with SIGKILL again and again while facts, some of them twice, are published. Input: random points.
//! Output: totals that are exact at the end.

use std::collections::HashSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use bus::{Bus, BusConfig, Headers};
use cost_accounting::usage::UsageStore;
use cost_accounting::verify;
use schemas::cost::{CostEvent, UsageGet};
use schemas::streams;
use testkit::{NatsServer, eventually};

use crate::example::event;
use crate::mesh::{DEADLINE, SUBJECT, ask, batch};

/// Unique facts; with small transactions they take the program a second or two.
const FACTS: u64 = 16_000;
/// Facts of one message.
const FACTS_PER_MESSAGE: usize = 20;
/// Kills; a fault that needs an unlucky moment gets many.
const KILLS: usize = 16;

/// A small generator (xorshift) whose seed is printed with a failure.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// The program; killed when dropped.
struct Program(Child);

impl Program {
    fn start(url: &str, ledger: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portalis-cost-accounting"));
        command
            .env("PORTALIS__BUS__URL", url)
            .env("PORTALIS__LEDGER__PATH", ledger)
            // Small transactions: many moments at which a kill can strike.
            .env("PORTALIS__BOOKING__MAX_EVENTS", "50")
            .env("PORTALIS__BOOKING__MAX_DELAY_MS", "1")
            .env("PORTALIS__PROCESS__OPS_ADDRESS", "127.0.0.1:0")
            .env("PORTALIS__PROCESS__LOG", "error")
            .stdin(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Facts booked so far, read beside the program; 0 while there is no ledger.
async fn booked(ledger: &Path) -> u64 {
    let Ok(store) = UsageStore::open(ledger).await else {
        return 0;
    };
    let everything = UsageGet {
        key_id: None,
        tenant: "demo".to_owned(),
        start_s: None,
        end_s: None,
    };
    let usage = store.usage(&everything, 0).await;
    store.close().await;
    usage.map_or(0, |usage| usage.computed)
}

/// All facts, one in twenty of them again somewhere later, in messages.
fn messages(random: &mut Random) -> Vec<Vec<CostEvent>> {
    let mut facts = Vec::new();
    for number in 0..FACTS {
        facts.push(event(number));
        if random.below(20) == 0 {
            facts.push(event(random.below(number + 1)));
        }
    }
    facts.chunks(FACTS_PER_MESSAGE).map(<[CostEvent]>::to_vec).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn totals_are_exact_however_often_the_program_is_killed() {
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64 | 1;
    println!("seed {seed}");
    let mut random = Random(seed);
    let server = NatsServer::start().await;
    let bus = Bus::connect(&BusConfig::for_url(&server.url()), "test", None)
        .await
        .unwrap();
    bus.ensure_stream(&streams::cost()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("ledger.db");
    let messages = messages(&mut random);
    let unique: HashSet<_> = messages.iter().flatten().map(|event| event.event_id.clone()).collect();
    assert_eq!(unique.len() as u64, FACTS);
    let count = messages.len() as u64;
    let mut published = HashSet::new();
    for round in messages.chunks(messages.len().div_ceil(KILLS)) {
        published.extend(round.iter().flatten().map(|event| event.event_id.clone()));
        let before = booked(&ledger).await;
        // Anywhere between what the last program left and all that there will be; the program starts while it is published.
        let point = before + random.below(published.len() as u64 - before + 1);
        let mut program = Program::start(&server.url(), &ledger);
        for facts in round {
            let body = batch(facts).into();
            bus.publish_acked(SUBJECT, Headers::new(), body, DEADLINE)
                .await
                .unwrap();
        }
        eventually("the program books up to a random point", DEADLINE, || async {
            booked(&ledger).await >= point
        })
        .await;
        program.kill();
    }
    let last = Program::start(&server.url(), &ledger);
    eventually("all messages are booked", DEADLINE, || async {
        // A ledger that a killed program left is whole at any moment.
        verify(&ledger)
            .await
            .unwrap()
            .position
            .is_some_and(|position| position.sequence >= count)
    })
    .await;
    // Answered by the last program, so it is the one that runs.
    eventually("usage is answered", DEADLINE, || async {
        ask(&bus, None).await.is_some()
    })
    .await;
    let usage = ask(&bus, None).await.unwrap();
    drop(last);
    let sums = (
        usage.requests,
        usage.input_tokens,
        usage.compute_ns,
        usage.cost.0,
        usage.wasted_ns,
    );
    assert_eq!(sums, (FACTS, FACTS * 10, FACTS * 1_000, 200 * FACTS as i64, 0));
    let report = verify(&ledger).await.unwrap();
    assert!(report.is_sound(), "{report:?}");
    assert_eq!((report.journal_rows, report.rejected_rows), (FACTS, 0));
}
