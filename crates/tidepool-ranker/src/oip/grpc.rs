//! The protocol over gRPC: tonic in, domain out. tonic's types stop here.
//!
//! Elements that came raw are answered raw, and typed ones typed.

use std::time::Instant;

use axum::body::Bytes;
use tidepool_client::TraceParent;
use tidepool_proto::{
    inference::{
        InferTensorContents, ModelInferRequest, ModelInferResponse, ModelMetadataRequest,
        ModelMetadataResponse, ModelReadyRequest, ModelReadyResponse, RepositoryIndexRequest,
        RepositoryIndexResponse, RepositoryModelLoadRequest, RepositoryModelLoadResponse,
        RepositoryModelUnloadRequest, RepositoryModelUnloadResponse, ServerLiveRequest, ServerLiveResponse,
        ServerMetadataRequest, ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse,
        grpc_inference_service_server::GrpcInferenceService, model_infer_request::InferInputTensor,
        model_infer_response::InferOutputTensor, model_metadata_response::TensorMetadata,
        repository_index_response::ModelIndex,
    },
    pack::unpack,
    status_of, v1,
};
use tidepool_runtime::{auth::Caller, error::chain};
use tonic::{Request, Response, Status, metadata::MetadataValue};

use super::{
    Infer, Inference,
    answer::Inferred,
    contract::Described,
    metadata,
    parameters::{self, Parameters, check_of_tensor},
    tensors::{Datatype, Frame, Tensor, wrong},
};
use crate::RankError;

#[tonic::async_trait]
impl GrpcInferenceService for Inference {
    async fn server_live(
        &self,
        _: Request<ServerLiveRequest>,
    ) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: self.health.live().is_ok() }))
    }

    async fn server_ready(
        &self,
        _: Request<ServerReadyRequest>,
    ) -> Result<Response<ServerReadyResponse>, Status> {
        Ok(Response::new(ServerReadyResponse { ready: self.health.is_ready() }))
    }

    async fn model_ready(
        &self,
        request: Request<ModelReadyRequest>,
    ) -> Result<Response<ModelReadyResponse>, Status> {
        let ModelReadyRequest { name, version } = request.into_inner();
        // Which models there are is no secret of the tenants, and why one is not ready says `ModelMetadata`.
        Ok(Response::new(ModelReadyResponse { ready: self.model(&name, &version).is_ok() }))
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        let extensions = metadata::EXTENSIONS.iter().map(|word| (*word).to_owned()).collect();
        let (name, version) = (metadata::NAME.to_owned(), metadata::VERSION.to_owned());
        Ok(Response::new(ServerMetadataResponse { name, version, extensions }))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let ModelMetadataRequest { name, version } = request.into_inner();
        let found = self.metadata(&name, &version).map_err(status)?;
        let tensors = |list: Vec<Described>| {
            let tensor = |Described { name, datatype, shape }| TensorMetadata {
                name,
                datatype: Datatype::as_str(datatype).to_owned(),
                shape,
            };
            list.into_iter().map(tensor).collect()
        };
        Ok(Response::new(ModelMetadataResponse {
            name: found.name,
            versions: found.versions,
            platform: metadata::PLATFORM.to_owned(),
            inputs: tensors(found.inputs),
            outputs: tensors(found.outputs),
        }))
    }

    async fn model_infer(
        &self,
        request: Request<ModelInferRequest>,
    ) -> Result<Response<ModelInferResponse>, Status> {
        let arrived = Instant::now();
        let traceparents = request.metadata().get_all(TraceParent::HEADER).iter();
        let traceparent = TraceParent::only(traceparents.map(MetadataValue::as_bytes));
        let (_, extensions, message) = request.into_parts();
        let typed = message.raw_input_contents.is_empty();
        let asked = v1::RankRequest {
            request_id: message.id.clone(),
            model: message.model_name.clone(),
            release: message.model_version.clone(),
            ..v1::RankRequest::default()
        };
        let infer = read(message).map_err(|error| (error, Box::new(asked)));
        let inferred = self.infer(&Caller::of(&extensions), infer, traceparent, arrived).await;
        Ok(Response::new(write(inferred?, typed)))
    }

    async fn repository_index(
        &self,
        request: Request<RepositoryIndexRequest>,
    ) -> Result<Response<RepositoryIndexResponse>, Status> {
        let RepositoryIndexRequest { repository_name, ready } = request.into_inner();
        let found = self.index(&repository_name, ready).map_err(status)?;
        let models = found.into_iter().map(|entry| ModelIndex {
            name: entry.name,
            version: entry.version,
            state: entry.state.to_owned(),
            reason: entry.reason,
        });
        Ok(Response::new(RepositoryIndexResponse { models: models.collect() }))
    }

    async fn repository_model_load(
        &self,
        request: Request<RepositoryModelLoadRequest>,
    ) -> Result<Response<RepositoryModelLoadResponse>, Status> {
        let (_, extensions, message) = request.into_parts();
        let RepositoryModelLoadRequest { repository_name, model_name, parameters } = message;
        let words: Vec<_> = parameters.into_keys().collect();
        let loaded = self.load(Caller::of(&extensions), &repository_name, &model_name, &words).await;
        loaded.map(|()| Response::new(RepositoryModelLoadResponse {})).map_err(status)
    }

    async fn repository_model_unload(
        &self,
        request: Request<RepositoryModelUnloadRequest>,
    ) -> Result<Response<RepositoryModelUnloadResponse>, Status> {
        let RepositoryModelUnloadRequest { repository_name, model_name, .. } = request.into_inner();
        Err(status(self.unload(&repository_name, &model_name)))
    }
}

fn status(error: RankError) -> Status {
    status_of(error.code(), chain(&error), error.epoch())
}

/// What a message asks for.
fn read(message: ModelInferRequest) -> Result<Infer, RankError> {
    let ModelInferRequest { model_name, model_version, id, parameters, inputs, outputs, raw_input_contents } =
        message;
    let parameters = Parameters::read(&parameters::from_message(parameters)?)?;
    let (found, raw) = (inputs.len(), raw_input_contents.len());
    if raw != 0 && raw != found {
        return Err(RankError::Invalid(format!(
            "{raw} raw input contents for {found} inputs: one for each is wanted, or none at all"
        )));
    }
    let raws = raw_input_contents.into_iter().map(Some).chain(std::iter::repeat(None));
    let inputs = inputs.into_iter().zip(raws).map(|(input, raw)| tensor(input, raw));
    let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
    let mut names = Vec::with_capacity(outputs.len());
    for output in outputs {
        let parameters = parameters::from_message(output.parameters)?;
        check_of_tensor("output", &output.name, &parameters, &[])?;
        names.push(output.name);
    }
    let (model, version) = (model_name, model_version);
    Ok(Infer { model, version, id, parameters, inputs, outputs: names })
}

fn tensor(input: InferInputTensor, raw: Option<Bytes>) -> Result<Tensor, RankError> {
    let InferInputTensor { name, datatype, shape, parameters, contents } = input;
    check_of_tensor("input", &name, &parameters::from_message(parameters)?, &[])?;
    let frame = Frame::new(name, &datatype, &shape)?;
    match (raw, contents) {
        (Some(_), Some(_)) => Err(frame.wrong("it has both raw and typed contents: one of them is wanted")),
        (Some(raw), None) => frame.with_raw(raw),
        (None, contents) => typed(frame, &contents.unwrap_or_default()),
    }
}

/// The tensor with its typed contents, which stand in the list of its datatype and in no other.
fn typed(frame: Frame, contents: &InferTensorContents) -> Result<Tensor, RankError> {
    let lists = [
        ("bool_contents", contents.bool_contents.len()),
        ("int_contents", contents.int_contents.len()),
        ("int64_contents", contents.int64_contents.len()),
        ("uint_contents", contents.uint_contents.len()),
        ("uint64_contents", contents.uint64_contents.len()),
        ("fp32_contents", contents.fp32_contents.len()),
        ("fp64_contents", contents.fp64_contents.len()),
        ("bytes_contents", contents.bytes_contents.len()),
    ];
    let wanted = match frame.datatype {
        Datatype::Int32 => "int_contents",
        Datatype::Int64 => "int64_contents",
        Datatype::Uint32 => "uint_contents",
        Datatype::Uint64 => "uint64_contents",
        Datatype::Fp32 => "fp32_contents",
        Datatype::Bytes => "bytes_contents",
    };
    if let Some((list, _)) = lists.iter().find(|(list, len)| *len > 0 && *list != wanted) {
        let word = frame.datatype.as_str();
        return Err(wrong(&frame.name, format!("it has {list}, datatype {word} stands in {wanted}")));
    }
    match frame.datatype {
        Datatype::Int32 => frame.with_numbers(&contents.int_contents, |n| n.to_le_bytes()),
        Datatype::Int64 => frame.with_numbers(&contents.int64_contents, |n| n.to_le_bytes()),
        Datatype::Uint32 => frame.with_numbers(&contents.uint_contents, |n| n.to_le_bytes()),
        Datatype::Uint64 => frame.with_numbers(&contents.uint64_contents, |n| n.to_le_bytes()),
        Datatype::Fp32 => frame.with_numbers(&contents.fp32_contents, |n| n.to_le_bytes()),
        Datatype::Bytes => frame.with_texts(&contents.bytes_contents),
    }
}

/// The answer as a message.
fn write(inferred: Inferred, is_typed: bool) -> ModelInferResponse {
    let Inferred { model, version, id, parameters, outputs } = inferred;
    let mut response = ModelInferResponse {
        model_name: model,
        model_version: version,
        id,
        parameters: parameters::to_message(parameters),
        ..ModelInferResponse::default()
    };
    for Tensor { frame, raw } in outputs {
        let contents = is_typed.then(|| match frame.datatype {
            Datatype::Uint32 => InferTensorContents {
                uint_contents: unpack(&raw).into_iter().flatten().collect(),
                ..InferTensorContents::default()
            },
            // Every other output is made of scores.
            _ => InferTensorContents {
                fp32_contents: unpack(&raw).into_iter().flatten().collect(),
                ..InferTensorContents::default()
            },
        });
        response.outputs.push(InferOutputTensor {
            name: frame.name,
            datatype: frame.datatype.as_str().to_owned(),
            // Rows of one request: they fit.
            shape: frame.shape.iter().map(|size| i64::try_from(*size).unwrap_or(i64::MAX)).collect(),
            contents,
            ..InferOutputTensor::default()
        });
        if !is_typed {
            response.raw_output_contents.push(raw);
        }
    }
    response
}
