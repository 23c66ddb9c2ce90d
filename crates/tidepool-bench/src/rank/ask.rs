//! Who answers rankings in a bench, each asked in its own way; requests are made before they are due.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::try_join_all;
use tidepool_proto::{
    code_of,
    inference::{
        InferParameter, ModelInferRequest, ModelInferResponse,
        grpc_inference_service_client::GrpcInferenceServiceClient, infer_parameter::ParameterChoice,
    },
    pack::unpack,
    v1::{self, embedding_client::EmbeddingClient, ranker_client::RankerClient},
};
use tidepool_ranker::{
    InputRows,
    batch::{BatchModel, Batcher, Job},
    chain,
};
use tonic::{Status, transport::Channel};

use super::{TIMER, requests::Requests, stages::Stage};

/// What of a request is known when it is answered.
#[derive(Debug, Default)]
pub(super) struct Took {
    pub(super) lookup: Duration,
    pub(super) dense: Duration,
    pub(super) queue: Duration,
    pub(super) batch_requests: u32,
    pub(super) rows: u64,
    /// The first output, by candidate.
    pub(super) scores: Vec<f32>,
    /// Where the ranker says that its time went, and how much it was in all.
    pub(super) stages: Option<(Vec<(Stage, Duration)>, Duration)>,
}

/// Somebody who answers.
pub(super) trait Ask: Send + Sync + 'static {
    /// What is asked, ready to be sent.
    type Asked: Send + 'static;

    /// Makes request `number`.
    fn prepare(&self, number: u64) -> Self::Asked;

    /// Sends it, and reads the answer.
    fn ask(&self, asked: Self::Asked) -> impl Future<Output = Result<Took, String>> + Send;
}

/// A ranker, over gRPC.
pub(super) struct Remote {
    pub(super) ranker: RankerClient<Channel>,
    pub(super) requests: Requests,
    pub(super) deadline: Duration,
}

impl Ask for Remote {
    type Asked = v1::RankRequest;

    fn prepare(&self, number: u64) -> v1::RankRequest {
        let mut message = self.requests.message(number);
        message.deadline_us = self.deadline.as_micros() as u64;
        message.outputs = vec![self.requests.spec.outputs[0].name.clone()];
        message
    }

    async fn ask(&self, message: v1::RankRequest) -> Result<Took, String> {
        let answer = self.ranker.clone().rank(message).await;
        let answer: v1::RankResponse = answer.map_err(said)?.into_inner();
        let values = answer.outputs.first().map(|output| &output.values[..]);
        let scores = scores(self.requests.candidates, &answer.indexes, values)?;
        let micros = Duration::from_micros;
        Ok(Took {
            lookup: micros(answer.lookup_us),
            dense: micros(answer.dense_us),
            queue: micros(answer.queue_us + answer.batch_wait_us),
            batch_requests: answer.batch_requests,
            rows: answer.rows_looked_up.into(),
            scores,
            stages: Some(stages(&answer)),
        })
    }
}

/// Where a ranker says that its time went; what it says nothing of is the rest.
fn stages(answer: &v1::RankResponse) -> (Vec<(Stage, Duration)>, Duration) {
    let told = answer.stages.unwrap_or_default();
    let timer = TIMER.as_micros() as u64;
    let known = [
        (Stage::Check, told.check_us),
        (Stage::BatchWait, answer.batch_wait_us),
        (Stage::Split, told.split_us),
        (Stage::NodesWire, told.wait_us.saturating_sub(told.node_us)),
        (Stage::Nodes, told.node_us.min(told.wait_us)),
        (Stage::Merge, told.merge_us),
        (Stage::HandOver, answer.queue_us),
        (Stage::Late, answer.dense_us.saturating_sub(told.finish_us).saturating_sub(timer)),
        (Stage::Finish, told.finish_us),
    ];
    let sum = known.iter().map(|(_, us)| us).sum::<u64>() + timer;
    let rest = (Stage::HandBack, told.took_us.saturating_sub(sum));
    let times = known.into_iter().chain([rest]).map(|(stage, us)| (stage, Duration::from_micros(us)));
    (times.collect(), Duration::from_micros(told.took_us))
}

/// The output of each candidate, where the best come first.
fn scores(candidates: u32, indexes: &[u8], values: Option<&[u8]>) -> Result<Vec<f32>, String> {
    let places = unpack::<u32>(indexes).ok_or("indexes that are no numbers")?;
    let values = values.and_then(unpack::<f32>).ok_or("no output was answered")?;
    let mut scores = vec![f32::NAN; candidates as usize];
    for (place, value) in places.zip(values) {
        *scores.get_mut(place as usize).ok_or("a candidate that nobody asked for")? = value;
    }
    Ok(scores)
}

fn said(status: Status) -> String {
    format!("{}: {}", code_of(&status), status.message())
}

/// The same ranker, asked as clients of the Open Inference Protocol do: tensors, their elements raw.
pub(super) struct Inference {
    pub(super) ranker: GrpcInferenceServiceClient<Channel>,
    pub(super) requests: Requests,
    pub(super) deadline: Duration,
}

impl Ask for Inference {
    type Asked = ModelInferRequest;

    fn prepare(&self, number: u64) -> ModelInferRequest {
        let mut request = self.requests.tensors(number);
        let deadline = i64::try_from(self.deadline.as_micros()).unwrap_or(i64::MAX);
        let deadline = InferParameter { parameter_choice: Some(ParameterChoice::Int64Param(deadline)) };
        request.parameters.insert("deadline_us".into(), deadline);
        request
    }

    async fn ask(&self, request: ModelInferRequest) -> Result<Took, String> {
        let answer = self.ranker.clone().model_infer(request).await;
        let answer: ModelInferResponse = answer.map_err(said)?.into_inner();
        let values = answer.raw_output_contents.first();
        let values = values.and_then(|values| unpack::<f32>(values)).ok_or("no output was answered")?;
        Ok(Took { scores: values.collect(), ..Took::default() })
    }
}

/// What a request would take if nothing were in it: a ranking of no candidates by the ranker, then a lookup of no ids by
/// all nodes at once.
pub(super) struct Floor {
    pub(super) ranker: RankerClient<Channel>,
    pub(super) nodes: Vec<EmbeddingClient<Channel>>,
    pub(super) requests: Requests,
}

impl Ask for Floor {
    type Asked = v1::RankRequest;

    fn prepare(&self, number: u64) -> v1::RankRequest {
        Requests { candidates: 0, ..self.requests.clone() }.message(number)
    }

    async fn ask(&self, message: v1::RankRequest) -> Result<Took, String> {
        self.ranker.clone().rank(message).await.map_err(said)?;
        let lookups = self.nodes.iter().map(|node| {
            let mut node = node.clone();
            async move { node.lookup(v1::LookupRequest::default()).await.map_err(said) }
        });
        try_join_all(lookups).await?;
        Ok(Took::default())
    }
}

/// The batcher of this process.
pub(super) struct Own {
    pub(super) batcher: Batcher,
    pub(super) model: Arc<BatchModel>,
    pub(super) requests: Requests,
    pub(super) deadline: Duration,
}

impl Ask for Own {
    type Asked = Vec<InputRows>;

    fn prepare(&self, number: u64) -> Vec<InputRows> {
        self.requests.rows(number)
    }

    async fn ask(&self, inputs: Vec<InputRows>) -> Result<Took, String> {
        let job = Job {
            model: self.model.clone(),
            rows: self.requests.candidates,
            inputs,
            finishing: Arc::default(),
            tenant: None,
            deadline: Instant::now() + self.deadline,
            budget: self.deadline,
            request_id: String::new(),
            traceparent: None,
            background: false,
            noted: false,
        };
        let ticket = self.batcher.submit(job, Ok).map_err(|error| chain(&error))?;
        let progress = ticket.progress().clone();
        let results = ticket.wait().await.map_err(|error| chain(&error))?;
        let outputs =
            results.into_outputs().ok_or("the model of this process is on the CPU, and gave no outputs")?;
        let share = progress.share();
        Ok(Took {
            lookup: share.lookup.unwrap_or_default(),
            dense: share.dense.unwrap_or_default(),
            queue: share.queued.unwrap_or_default() + share.waited.unwrap_or_default(),
            batch_requests: share.batch_requests,
            rows: share.counts.rows,
            scores: outputs.into_iter().next().unwrap_or_default(),
            stages: None,
        })
    }
}
