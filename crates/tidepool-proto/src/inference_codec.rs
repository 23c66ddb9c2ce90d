//! The codec of the inference protocol. Its tensors are messages in a message, so what a request may grow to is
//! counted to the depth of their elements: fields, and numbers that take one byte on the wire and eight in memory.

use std::marker::PhantomData;

use bytes::Buf;
use prost::{
    Message,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder},
};
use tonic_prost::ProstDecoder;

use crate::{MAX_FIELDS, ReservingEncoder};

/// The most numbers of variable length that a message may have: as `int64` they take 32 MiB. Whoever sends more of
/// them sends them raw.
pub const MAX_NUMBERS: usize = 1 << 22;

/// prost's codec that refuses a message of more than [`MAX_FIELDS`] fields, those of its tensors and outputs included,
/// or of more than [`MAX_NUMBERS`]. A tensor of no fields takes 288 bytes or less, and the first parameter of one some
/// 550 more, so that tensors of a parameter each take the most: about 105 MiB beside their bytes and numbers.
#[derive(Debug)]
pub struct InferenceCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for InferenceCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for InferenceCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ReservingEncoder<T>;
    type Decoder = InferenceDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ReservingEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        InferenceDecoder(ProstDecoder::default())
    }
}

/// [`ProstDecoder`], after fields and numbers have been counted.
#[derive(Debug)]
pub struct InferenceDecoder<U>(ProstDecoder<U>);

impl<U: Message + Default> Decoder for InferenceDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // A message lies in one piece: tonic collects it before it is decoded.
        let mut found = Found::default();
        found.count(Level::Message, buf.chunk());
        if found.fields > MAX_FIELDS {
            return Err(Status::out_of_range(format!(
                "message of more than {MAX_FIELDS} fields: send the elements of tensors raw"
            )));
        }
        if found.numbers > MAX_NUMBERS {
            return Err(Status::out_of_range(format!(
                "message of more than {MAX_NUMBERS} numbers: send the elements of tensors raw"
            )));
        }
        self.0.decode(buf)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

/// Where in a request for an inference the count is. In the other messages of the protocol the same field numbers
/// are not there, or are texts and raw elements, in which at worst too much is counted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Message,
    Tensor,
    Contents,
    Output,
}

impl Level {
    /// Tensors of a request (5) and the outputs that it asks for (6), the contents of a tensor (5). Their parameters
    /// are a field each.
    const fn below(self, tag: u32) -> Option<Self> {
        match (self, tag) {
            (Self::Message, 5) => Some(Self::Tensor),
            (Self::Message, 6) => Some(Self::Output),
            (Self::Tensor, 5) => Some(Self::Contents),
            _ => None,
        }
    }

    /// The shape of a tensor (3), lists of whole numbers (1 to 5).
    const fn is_numbers(self, tag: u32) -> bool {
        matches!((self, tag), (Self::Tensor, 3) | (Self::Contents, 1..=5))
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    fields: usize,
    numbers: usize,
}

impl Found {
    /// Counts as far as the bytes are a message. The rest is left to the decoder, which stops there too.
    fn count(&mut self, level: Level, mut message: &[u8]) {
        while message.has_remaining() {
            let Ok((tag, wire_type)) = decode_key(&mut message) else { return };
            self.fields += 1;
            if wire_type != WireType::LengthDelimited {
                if skip_field(wire_type, tag, &mut message, DecodeContext::default()).is_err() {
                    return;
                }
                continue;
            }
            let Some(len) = decode_varint(&mut message).ok().and_then(|len| usize::try_from(len).ok()) else {
                return;
            };
            let Some((field, rest)) = message.split_at_checked(len) else { return };
            message = rest;
            if let Some(below) = level.below(tag) {
                self.count(below, field);
            } else if level.is_numbers(tag) {
                // The last byte of each has its highest bit clear.
                self.numbers += field.iter().filter(|byte| **byte < 0x80).count();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::{
        InferParameter, InferTensorContents, ModelInferRequest,
        infer_parameter::ParameterChoice,
        model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
    };

    fn found(request: &ModelInferRequest) -> Found {
        let mut found = Found::default();
        found.count(Level::Message, &request.encode_to_vec());
        found
    }

    fn of(contents: InferTensorContents) -> ModelInferRequest {
        let tensor = InferInputTensor { contents: Some(contents), ..Default::default() };
        ModelInferRequest { inputs: vec![tensor], ..Default::default() }
    }

    #[test]
    fn fields_and_numbers_are_counted_to_the_depth_of_elements() {
        assert_eq!(found(&ModelInferRequest::default()), Found::default());
        let texts = InferTensorContents { bytes_contents: vec!["".into(); 1000], ..Default::default() };
        assert_eq!(found(&of(texts)), Found { fields: 1002, numbers: 0 });
        let numbers = InferTensorContents {
            int64_contents: vec![-1, 0, 1],
            uint64_contents: vec![u64::MAX; 7],
            bool_contents: vec![true],
            fp32_contents: vec![0.5; 9],
            ..Default::default()
        };
        assert_eq!(found(&of(numbers)), Found { fields: 6, numbers: 11 });
        let shaped = InferInputTensor { shape: vec![1, 300], ..Default::default() };
        let value = InferParameter { parameter_choice: Some(ParameterChoice::BoolParam(true)) };
        let request = ModelInferRequest {
            inputs: vec![shaped; 3],
            parameters: [("a".to_owned(), value)].into(),
            raw_input_contents: vec![vec![0x2a; 1000].into(); 2],
            ..Default::default()
        };
        assert_eq!(found(&request), Found { fields: 3 + 3 + 1 + 2, numbers: 6 });
    }

    #[test]
    fn parameters_are_counted_wherever_they_stand() {
        let parameters = || (0..1000).map(|at| (at.to_string(), InferParameter::default())).collect();
        let tensor = InferInputTensor { parameters: parameters(), ..Default::default() };
        let output = InferRequestedOutputTensor { name: "p".into(), parameters: parameters() };
        let request = ModelInferRequest {
            parameters: parameters(),
            inputs: vec![tensor; 2],
            outputs: vec![output; 3],
            ..Default::default()
        };
        let fields = 1000 + 2 * (1 + 1000) + 3 * (1 + 1 + 1000);
        assert_eq!(found(&request), Found { fields, numbers: 0 });
    }

    #[test]
    fn what_is_cut_off_is_counted_as_far_as_it_goes() {
        let mut bytes =
            of(InferTensorContents { int64_contents: vec![1; 10], ..Default::default() }).encode_to_vec();
        bytes.extend([0x2a, 0x7f]);
        let mut found = Found::default();
        found.count(Level::Message, &bytes);
        assert_eq!(found, Found { fields: 4, numbers: 10 });
    }

    #[test]
    fn the_bound_in_memory_is_as_stated() {
        assert!(size_of::<InferInputTensor>() <= 288, "{}", size_of::<InferInputTensor>());
        assert!(size_of::<InferInputTensor>() * MAX_FIELDS <= 72 << 20);
    }
}
