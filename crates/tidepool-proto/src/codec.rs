//! prost's codec with a bound on what a message can grow to when it is decoded.
//!
//! An empty repeated message takes two bytes on the wire and a hundred times that in memory, so a limit on
//! the bytes of a message alone would let a peer fill the memory. The fields are therefore counted before
//! any is decoded: they are walked over by key and length, which touches a few bytes of each. The texts of a
//! ranking's features are messages' worth of memory too, so in those the fields below are counted as well.

use std::{any::TypeId, marker::PhantomData};

use bytes::{Buf, Bytes};
use prost::{
    Message,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};
use tonic_prost::ProstDecoder;

use crate::{WireError, v1};

/// The most fields that a message may have at its top level, each repetition counted: four tables of the
/// largest layout fit a node's report. At 184 bytes for the feature of a lookup, the largest repeated
/// message that strangers send, they take 46 MiB beside the message itself.
pub const MAX_FIELDS: usize = 1 << 18;

/// prost's codec that refuses a message of more than [`MAX_FIELDS`] fields. The generated code uses it for
/// every method, in both directions.
#[derive(Debug)]
pub struct BoundedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for BoundedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for BoundedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ReservingEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ReservingEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder(ProstDecoder::default())
    }
}

/// prost's encoding into a buffer that has room for all of it: it does not grow, and move, on the way.
#[derive(Debug)]
pub struct ReservingEncoder<T>(PhantomData<T>);

impl<T> Default for ReservingEncoder<T> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Message> Encoder for ReservingEncoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.reserve(item.encoded_len());
        item.encode_raw(buf);
        Ok(())
    }
}

/// [`ProstDecoder`], after the fields have been counted.
#[derive(Debug)]
pub struct BoundedDecoder<U>(ProstDecoder<U>);

impl<U: Message + Default + 'static> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // A message lies in one piece: tonic collects it before it is decoded.
        if has_too_many_fields(buf.chunk(), counted_below::<U>()) {
            // As tonic says of a message with too many bytes.
            return Err(Status::out_of_range(format!(
                "message of more than {MAX_FIELDS} fields at its top level, or texts of features"
            )));
        }
        self.0.decode(buf)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

/// Decodes a message that did not come over gRPC, by the same bound.
///
/// # Errors
/// [`WireError::Malformed`], [`WireError::TooManyFields`].
pub fn decode_bounded<M: Message + Default + 'static>(message: Bytes) -> Result<M, WireError> {
    if has_too_many_fields(&message, counted_below::<M>()) {
        return Err(WireError::TooManyFields);
    }
    Ok(M::decode(message)?)
}

/// Whether there are more than [`MAX_FIELDS`]. Bytes that are no message are left to the decoder, which
/// stops where this does.
fn has_too_many_fields(message: &[u8], below: &[u32]) -> bool {
    count_fields(message, below) > MAX_FIELDS
}

/// The fields of a message whose own fields are counted too: the features of a ranking, for their texts.
fn counted_below<M: 'static>() -> &'static [u32] {
    if TypeId::of::<M>() == TypeId::of::<v1::RankRequest>() { &[7, 8] } else { &[] }
}

fn count_fields(mut message: &[u8], below: &[u32]) -> usize {
    let mut fields = 0;
    while message.has_remaining() {
        let Ok((tag, wire_type)) = decode_key(&mut message) else { break };
        if wire_type == WireType::LengthDelimited && below.contains(&tag) {
            let len = decode_varint(&mut message).ok().and_then(|len| usize::try_from(len).ok());
            let Some((field, rest)) = len.and_then(|len| message.split_at_checked(len)) else { break };
            fields += count_fields(field, &[]);
            message = rest;
        } else if skip_field(wire_type, tag, &mut message, DecodeContext::default()).is_err() {
            break;
        }
        fields += 1;
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_as_far_as_the_bytes_are_a_message() {
        let of = |features: usize| {
            let feature = v1::FeatureRequest::default();
            v1::LookupRequest { features: vec![feature; features], ..Default::default() }.encode_to_vec()
        };
        let has_too_many_fields = |message: &[u8]| has_too_many_fields(message, &[]);
        assert!(!has_too_many_fields(&[]));
        assert!(!has_too_many_fields(&of(MAX_FIELDS)));
        assert!(has_too_many_fields(&of(MAX_FIELDS + 1)));
        let decode = decode_bounded::<v1::LookupRequest>;
        assert_eq!(decode(of(MAX_FIELDS + 1).into()), Err(WireError::TooManyFields));
        assert_eq!(decode(of(3).into()).map(|request| request.features.len()), Ok(3));
        assert!(matches!(decode(vec![0x2a, 0x7f].into()), Err(WireError::Malformed(_))));
        let mut cut = of(MAX_FIELDS);
        cut.extend([0x2a, 0x7f]);
        assert!(!has_too_many_fields(&cut), "the last field is cut off");
        let mut other = of(MAX_FIELDS);
        v1::LookupRequest { deadline_us: 1, ..Default::default() }.encode(&mut other).unwrap();
        assert!(has_too_many_fields(&other), "every field counts");
        // What a feature has in it does not count.
        let whole = v1::FeatureRequest { ids: vec![0x2a; 8 * MAX_FIELDS].into(), ..Default::default() };
        let request = v1::LookupRequest { features: vec![whole], ..Default::default() };
        assert!(!has_too_many_fields(&request.encode_to_vec()));
    }

    #[test]
    fn the_texts_of_a_ranking_are_counted_and_its_numbers_are_not() {
        let of = |texts: usize| {
            let texts = vec![String::new(); texts];
            let feature = v1::Feature { texts, ids: vec![0x32; 8 * MAX_FIELDS].into(), ..Default::default() };
            let request = v1::RankRequest { candidate: vec![feature], top_k: 1, ..Default::default() };
            decode_bounded::<v1::RankRequest>(request.encode_to_vec().into())
        };
        // The feature, its ids and the request's own number are fields as well.
        assert_eq!(of(MAX_FIELDS - 3).map(|request| request.candidate[0].texts.len()), Ok(MAX_FIELDS - 3));
        assert_eq!(of(MAX_FIELDS - 2), Err(WireError::TooManyFields));
    }

    #[test]
    fn the_bound_in_memory_is_as_stated() {
        assert!(size_of::<v1::Feature>() <= 184, "{}", size_of::<v1::Feature>());
        assert!(size_of::<v1::FeatureRequest>() <= 184, "{}", size_of::<v1::FeatureRequest>());
        assert!(size_of::<v1::FeatureRequest>() * MAX_FIELDS <= 46 << 20);
    }
}
