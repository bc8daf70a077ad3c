//! Steady load. Input: a client and how many ask at once. Output: every answer, in the order of arrival.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use testkit::eventually;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::DEADLINE;
use super::http::{Answer, Client};

/// Time between two requests of one asker at least: refusals come at once and would be asked for in a circle.
const PACE: Duration = Duration::from_millis(4);

/// Clients that ask for something new all the time, one request after the other each.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    answers: Arc<Mutex<Vec<Answer>>>,
    askers: Vec<JoinHandle<()>>,
}

impl Load {
    pub(crate) fn start(client: &Client, model: &'static str, askers: usize) -> Self {
        let (stop, answers) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<Answer>>>::default());
        let asker = |name: usize| {
            let (client, stop, answers) = (client.clone(), Arc::clone(&stop), Arc::clone(&answers));
            tokio::spawn(async move {
                let mut pace = tokio::time::interval(PACE);
                pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    pace.tick().await;
                    number += 1;
                    let answer = client.embed(model, format!("asker {name} text {number}")).await;
                    answers.lock().unwrap().push(answer);
                }
            })
        };
        let askers = (0..askers).map(asker).collect();
        Self { stop, answers, askers }
    }

    /// Answers with this status so far.
    pub(crate) fn count(&self, status: u16) -> usize {
        let answers = self.answers.lock().unwrap();
        answers.iter().filter(|answer| answer.status == status).count()
    }

    /// Waits for so many more answers with this status.
    pub(crate) async fn more(&self, status: u16, count: usize) {
        let wanted = self.count(status) + count;
        eventually(&format!("{count} more answers with status {status}"), DEADLINE, || {
            std::future::ready(self.count(status) >= wanted)
        })
        .await;
    }

    /// Lets everybody finish; nobody may have gone without an answer.
    pub(crate) async fn finish(self) -> Vec<Answer> {
        self.stop.store(true, Ordering::Relaxed);
        for asker in self.askers {
            asker.await.unwrap();
        }
        std::mem::take(&mut *self.answers.lock().unwrap())
    }
}

/// Every answer is a success; gives the ids of the requests.
#[track_caller]
pub(crate) fn all_answered(answers: &[Answer]) -> BTreeSet<String> {
    for answer in answers {
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.cache(), "miss", "every text is new");
    }
    let ids: BTreeSet<String> = answers.iter().map(Answer::request_id).collect();
    assert_eq!(ids.len(), answers.len(), "request ids are unique");
    ids
}
