//! A worker that does what a test says. Input: steps. Output: frames on the bus, as a real worker sends them.

use std::time::Duration;

use bus::{Bus, ConsumerRef, Headers, Job, PullEvent, Puller};
use schemas::error::Failure;
use schemas::fleet::{Beat, InstanceState, ModelCard, WorkerBeat};
use schemas::generate::{FinishReason, GenerateTask, TextPart};
use schemas::ids::RequestId;
use schemas::reply::{Accepted, Done, Frame, ReplyBatch, ReplyFrame, Usage};
use schemas::streams::{self, MAX_QUEUED_PER_TENANT_LANE, lane_consumer_name};
use schemas::work::{Lane, Task, Work};
use schemas::{headers, subjects, wire};
use serde_json::json;
use testkit::eventually;
use tokio::task::JoinHandle;

use crate::mesh::{DEADLINE, Mesh};

/// The model that scripted workers serve.
pub(crate) const MODEL: &str = "writer";
/// A model that has a card and embeds only.
pub(crate) const EMBEDDER: &str = "embedder";

/// A worker; dropping it silences it, as SIGKILL does.
pub(crate) struct Worker {
    pub(crate) name: String,
    bus: Bus,
    puller: Puller,
    beating: JoinHandle<()>,
}

/// A request in a worker's hands.
pub(crate) struct Taken {
    pub(crate) work: Work,
    job: Option<Job>,
    worker: String,
    reply: String,
    bus: Bus,
    sequence: u32,
}

fn card(name: &str, operation: &str) -> ModelCard {
    let json = json!({
        "name": name, "slug": name, "operations": [operation], "family": "llama", "dimensions": 0, "max_tokens": 64,
        "max_context": 64, "revision": "r", "precision": "f32", "parameters": 1, "created_s": 1
    });
    serde_json::from_value(json).unwrap()
}

impl Worker {
    /// Starts a worker of [`MODEL`] and waits until the gateway knows the models and has heard it.
    pub(crate) async fn start(mesh: &Mesh, name: &str) -> Self {
        let bus = mesh.bus.clone();
        bus.ensure_stream(&streams::work(MODEL, MAX_QUEUED_PER_TENANT_LANE))
            .await
            .unwrap();
        bus.ensure_consumer(&streams::work_lane(MODEL, Lane::Interactive))
            .await
            .unwrap();
        let models = bus.kv(&streams::models_bucket()).await.unwrap();
        for card in [card(MODEL, "generate"), card(EMBEDDER, "embed")] {
            let value = wire::encode(&card).unwrap();
            models.put(&card.slug, value.into()).await.unwrap();
        }
        let beating = tokio::spawn(beat(bus.clone(), name.to_owned()));
        let client = mesh.client();
        eventually("the gateway knows the models", DEADLINE, || async {
            // Unknown models are refused before their fields are looked at.
            let probe = json!({"model": EMBEDDER, "messages": []});
            client.post("/v1/chat/completions", &probe).await.status == 400
        })
        .await;
        Self {
            name: name.to_owned(),
            puller: Puller::new(&bus).await.unwrap(),
            bus,
            beating,
        }
    }

    /// Takes the next request and says so.
    pub(crate) async fn take(&mut self) -> Taken {
        let queue = ConsumerRef::new(&streams::work_stream_name(MODEL), lane_consumer_name(Lane::Interactive));
        let job = loop {
            if self.puller.outstanding_total() == 0 {
                let (expires, heartbeat) = (Duration::from_secs(10), Duration::from_secs(2));
                self.puller.request(&queue, 1, expires, heartbeat).await.unwrap();
            }
            let event = tokio::time::timeout(DEADLINE, self.puller.next()).await;
            if let PullEvent::Job(job) = event.expect("work in the queue").unwrap() {
                break job;
            }
        };
        let mut taken = Taken {
            work: wire::decode(&job.payload).unwrap(),
            reply: job.headers.get(headers::REPLY).unwrap().to_owned(),
            worker: self.name.clone(),
            bus: self.bus.clone(),
            job: Some(job),
            sequence: 0,
        };
        let accepted = Accepted {
            worker: taken.worker.clone(),
            ack_subject: taken.job().ack_subject().to_owned(),
        };
        taken.frame(Frame::Accepted(accepted)).await;
        taken
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.beating.abort();
    }
}

async fn beat(bus: Bus, instance: String) {
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    let beat = Beat {
        service: "gpu-worker".to_owned(),
        instance: instance.clone(),
        version: "0".to_owned(),
        started_at_ms: 1,
        state: InstanceState::Ready,
        worker: Some(WorkerBeat {
            model: MODEL.to_owned(),
            slots: 8,
            in_hand: 0,
            waiting_tokens: 0,
            finished_total: 0,
            tokens_total: 0,
            busy_ns_total: 0,
            batch_us: 0,
            device: "cpu".to_owned(),
            pid: 1,
        }),
    };
    let payload = wire::encode(&beat).unwrap();
    loop {
        tick.tick().await;
        let subject = subjects::beat("gpu-worker", &instance);
        let _ = bus.publish(&subject, Headers::new(), payload.clone().into()).await;
    }
}

impl Taken {
    pub(crate) fn request_id(&self) -> RequestId {
        self.work.request_id
    }

    pub(crate) fn task(&self) -> &GenerateTask {
        match &self.work.task {
            Task::Generate(task) => task,
            other => panic!("not a generation: {other:?}"),
        }
    }

    fn job(&self) -> &Job {
        self.job.as_ref().unwrap()
    }

    /// Sends the next frame of this attempt.
    pub(crate) async fn frame(&mut self, frame: Frame) {
        let attempt = self.task().attempts_before + u32::try_from(self.job().delivered()).unwrap();
        let frame = ReplyFrame {
            request_id: self.request_id(),
            attempt,
            sequence: self.sequence,
            frame,
        };
        self.sequence += 1;
        let batch = wire::encode(&ReplyBatch { frames: vec![frame] }).unwrap();
        self.bus
            .publish(&self.reply, Headers::new(), batch.into())
            .await
            .unwrap();
    }

    /// One step of one choice.
    pub(crate) async fn say(&mut self, choice: u32, text: &str, tokens: &[u32]) {
        self.frame(Frame::Text(vec![part(choice, text, tokens)])).await;
    }

    /// The end: acknowledged after it was said.
    pub(crate) async fn done(mut self, text: Vec<TextPart>, input_tokens: u64, output_tokens: u64) {
        let usage = Usage {
            input_tokens,
            output_tokens,
            ..Usage::default()
        };
        let done = Done {
            text,
            usage,
            ..Done::default()
        };
        self.frame(Frame::Done(done)).await;
        self.job.take().unwrap().ack().await.unwrap();
    }

    /// Fails for good.
    pub(crate) async fn fail(mut self, failure: Failure) {
        self.frame(Frame::Failed(failure)).await;
        self.job.take().unwrap().term("refused").await.unwrap();
    }

    /// Loses a frame on the way.
    pub(crate) fn skip(&mut self) {
        self.sequence += 1;
    }

    /// Gives the message back to the queue.
    pub(crate) async fn give_back(mut self) {
        self.job.take().unwrap().nak(None).await.unwrap();
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        // A worker that dies says nothing.
        if let Some(job) = self.job.take() {
            job.forget();
        }
    }
}

/// A part in the middle of a text.
pub(crate) fn part(choice: u32, text: &str, tokens: &[u32]) -> TextPart {
    TextPart {
        choice,
        text: text.to_owned(),
        tokens: tokens.to_vec(),
        ..TextPart::default()
    }
}

/// The last part of a choice.
pub(crate) fn last(choice: u32, text: &str, tokens: &[u32]) -> TextPart {
    TextPart {
        finish: Some(FinishReason::Stop),
        ..part(choice, text, tokens)
    }
}
