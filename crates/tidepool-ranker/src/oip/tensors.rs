//! A tensor of the inference protocol: its elements raw, as many as its shape says.
//!
//! However the elements came (raw, in typed lists, as JSON), they are brought into one form here: little-endian, one
//! after the other, which is also how a ranker's own messages have ids and numbers.

use axum::body::Bytes;
use tidepool_proto::MAX_FIELDS;

use crate::RankError;

/// The most sizes that a shape has; no tensor here has more than two that are not 1.
const MAX_RANK: usize = 8;
/// The most texts of a request: in memory each takes six times the four bytes that it takes at least on the wire.
pub(super) const MAX_TEXTS: usize = MAX_FIELDS;
/// Letters of a name that a refusal repeats.
const MAX_TOLD_CHARS: usize = 64;

/// The datatypes that a ranker takes or gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Datatype {
    Int32,
    Int64,
    Uint32,
    Uint64,
    Fp32,
    /// Texts: each with its length before it, as a u32.
    Bytes,
}

impl Datatype {
    const ALL: [Self; 6] = [Self::Int32, Self::Int64, Self::Uint32, Self::Uint64, Self::Fp32, Self::Bytes];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Uint32 => "UINT32",
            Self::Uint64 => "UINT64",
            Self::Fp32 => "FP32",
            Self::Bytes => "BYTES",
        }
    }

    pub(super) const fn is_text(self) -> bool {
        matches!(self, Self::Bytes)
    }

    /// Bytes of an element; `None` where each has its own length.
    const fn width(self) -> Option<usize> {
        match self {
            Self::Int32 | Self::Uint32 | Self::Fp32 => Some(4),
            Self::Int64 | Self::Uint64 => Some(8),
            Self::Bytes => None,
        }
    }
}

/// What is said of a tensor beside its elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) name: String,
    pub(super) datatype: Datatype,
    pub(super) shape: Vec<usize>,
    /// The product of the shape.
    pub(super) elements: usize,
}

/// A tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tensor {
    pub(super) frame: Frame,
    pub(super) raw: Bytes,
}

/// A number as JSON has it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number {
    Whole(u64),
    Negative(i64),
    Broken(f64),
}

/// As much of a name as a refusal repeats.
pub(super) fn told(name: &str) -> String {
    name.chars().take(MAX_TOLD_CHARS).collect()
}

/// A refusal that names the tensor.
pub(super) fn wrong(name: &str, problem: impl AsRef<str>) -> RankError {
    RankError::Invalid(format!("input {:?}: {}", told(name), problem.as_ref()))
}

impl Frame {
    /// Checks what is said of a tensor.
    pub(super) fn new(name: String, datatype: &str, shape: &[i64]) -> Result<Self, RankError> {
        let Some(datatype) = Datatype::ALL.into_iter().find(|known| known.as_str() == datatype) else {
            let words: Vec<_> = Datatype::ALL.iter().map(|known| known.as_str()).collect();
            let datatype = told(datatype);
            return Err(wrong(
                &name,
                format!("datatype {datatype:?} is not taken here: {}", words.join(", ")),
            ));
        };
        if shape.len() > MAX_RANK {
            return Err(wrong(&name, format!("a shape of {} sizes, it may have {MAX_RANK}", shape.len())));
        }
        let mut sizes = Vec::with_capacity(shape.len());
        let mut elements = Some(1usize);
        for size in shape {
            let Ok(size) = usize::try_from(*size) else {
                return Err(wrong(&name, format!("shape {shape:?}: {size} is no size")));
            };
            sizes.push(size);
            elements = elements.and_then(|elements| elements.checked_mul(size));
        }
        let Some(elements) = elements else {
            return Err(wrong(&name, format!("shape {shape:?} has more elements than can be counted")));
        };
        Ok(Self { name, datatype, shape: sizes, elements })
    }

    /// A refusal that names this tensor.
    pub(super) fn wrong(&self, problem: impl AsRef<str>) -> RankError {
        wrong(&self.name, problem)
    }

    /// The tensor with these elements.
    pub(super) fn with_raw(self, raw: Bytes) -> Result<Tensor, RankError> {
        let tensor = Tensor { frame: self, raw };
        match tensor.frame.datatype.width() {
            Some(width) => {
                let (found, elements) = (tensor.raw.len(), tensor.frame.elements);
                if elements.checked_mul(width) != Some(found) {
                    let word = tensor.frame.datatype.as_str();
                    return Err(tensor.frame.wrong(format!(
                        "{found} raw bytes, shape {:?} of {word} has {elements} elements of {width} bytes",
                        tensor.frame.shape
                    )));
                }
            }
            None => tensor.texts()?.for_each(drop),
        }
        Ok(tensor)
    }

    /// The tensor with numbers of a type that has the datatype's bytes.
    pub(super) fn with_numbers<T, const N: usize>(
        self,
        numbers: &[T],
        bytes: impl Fn(&T) -> [u8; N],
    ) -> Result<Tensor, RankError> {
        self.is_full(numbers.len())?;
        self.with_raw(numbers.iter().flat_map(bytes).collect())
    }

    /// The tensor with texts.
    pub(super) fn with_texts<T: AsRef<[u8]>>(self, texts: &[T]) -> Result<Tensor, RankError> {
        self.is_full(texts.len())?;
        let mut raw = Vec::with_capacity(texts.iter().map(|text| text.as_ref().len() + 4).sum());
        for text in texts {
            let text = text.as_ref();
            let len = u32::try_from(text.len()).map_err(|_| self.wrong("a text of 4 GiB or more"))?;
            raw.extend(len.to_le_bytes());
            raw.extend(text);
        }
        self.with_raw(raw.into())
    }

    /// The tensor with numbers as JSON has them.
    pub(super) fn with_json(self, numbers: &[Number]) -> Result<Tensor, RankError> {
        self.is_full(numbers.len())?;
        let word = self.datatype.as_str();
        let mut raw = Vec::with_capacity(numbers.len() * self.datatype.width().unwrap_or(1));
        for (at, number) in numbers.iter().enumerate() {
            let fits = match (self.datatype, *number) {
                (Datatype::Int32, Number::Whole(n)) => put(&mut raw, i32::try_from(n).map(i32::to_le_bytes)),
                (Datatype::Int32, Number::Negative(n)) => {
                    put(&mut raw, i32::try_from(n).map(i32::to_le_bytes))
                }
                (Datatype::Int64, Number::Whole(n)) => put(&mut raw, i64::try_from(n).map(i64::to_le_bytes)),
                (Datatype::Int64, Number::Negative(n)) => put(&mut raw, Ok::<_, ()>(n.to_le_bytes())),
                (Datatype::Uint32, Number::Whole(n)) => put(&mut raw, u32::try_from(n).map(u32::to_le_bytes)),
                (Datatype::Uint64, Number::Whole(n)) => put(&mut raw, Ok::<_, ()>(n.to_le_bytes())),
                (Datatype::Fp32, number) => put(&mut raw, single(number).map(f32::to_le_bytes).ok_or(())),
                (_, Number::Negative(_) | Number::Broken(_)) | (Datatype::Bytes, _) => false,
            };
            if !fits {
                let number = match number {
                    Number::Whole(n) => n.to_string(),
                    Number::Negative(n) => n.to_string(),
                    Number::Broken(n) => n.to_string(),
                };
                return Err(self.wrong(format!("element {at}, {number}, is no {word}")));
            }
        }
        self.with_raw(raw.into())
    }

    fn is_full(&self, found: usize) -> Result<(), RankError> {
        if found == self.elements {
            return Ok(());
        }
        Err(self.wrong(format!("{found} elements, shape {:?} has {}", self.shape, self.elements)))
    }
}

fn put<const N: usize, E>(raw: &mut Vec<u8>, bytes: Result<[u8; N], E>) -> bool {
    bytes.map(|bytes| raw.extend(bytes)).is_ok()
}

/// The nearest f32, if there is one that is not infinite.
fn single(number: Number) -> Option<f32> {
    let single = match number {
        Number::Whole(n) => n as f32,
        Number::Negative(n) => n as f32,
        Number::Broken(n) => n as f32,
    };
    single.is_finite().then_some(single)
}

impl Tensor {
    pub(super) fn wrong(&self, problem: impl AsRef<str>) -> RankError {
        self.frame.wrong(problem)
    }

    /// Refuses it unless it has one of these datatypes.
    pub(super) fn must_be(&self, wanted: &[Datatype]) -> Result<(), RankError> {
        if wanted.contains(&self.frame.datatype) {
            return Ok(());
        }
        let words: Vec<_> = wanted.iter().map(|datatype| datatype.as_str()).collect();
        let found = self.frame.datatype.as_str();
        Err(self.wrong(format!("datatype {found}, the model takes {} here", words.join(" or "))))
    }

    /// Ids, u64 each. As INT64 they are below 2^63.
    pub(super) fn ids(&self) -> Result<Bytes, RankError> {
        self.must_be(&[Datatype::Int64, Datatype::Uint64])?;
        if self.frame.datatype == Datatype::Int64 {
            let negative = |bytes: &[u8]| bytes[7] >= 0x80;
            if let Some(at) = self.raw.chunks_exact(8).position(negative) {
                let bytes = &self.raw[8 * at..];
                let id = i64::from_le_bytes(std::array::from_fn(|byte| bytes[byte]));
                return Err(
                    self.wrong(format!("element {at}, {id}, is no id: those from 2^63 on come as UINT64"))
                );
            }
        }
        Ok(self.raw.clone())
    }

    /// Lengths, u32 each.
    pub(super) fn lengths(&self) -> Result<Bytes, RankError> {
        use Datatype::{Int32, Int64, Uint32, Uint64};
        self.must_be(&[Int32, Int64, Uint32, Uint64])?;
        let wide = matches!(self.frame.datatype, Int64 | Uint64);
        if wide {
            let mut narrow = Vec::with_capacity(self.raw.len() / 2);
            for (at, bytes) in self.raw.chunks_exact(8).enumerate() {
                if bytes[4..] != [0; 4] {
                    return Err(self.wrong(format!("element {at} is no length: from 0 to 4294967295")));
                }
                narrow.extend(&bytes[..4]);
            }
            return Ok(narrow.into());
        }
        let negative = |bytes: &[u8]| self.frame.datatype == Int32 && bytes[3] >= 0x80;
        match self.raw.chunks_exact(4).position(negative) {
            Some(at) => Err(self.wrong(format!("element {at} is no length: it is negative"))),
            None => Ok(self.raw.clone()),
        }
    }

    /// Numbers, f32 each.
    pub(super) fn numbers(&self) -> Result<Bytes, RankError> {
        self.must_be(&[Datatype::Fp32])?;
        Ok(self.raw.clone())
    }

    /// Texts, which are checked to be as many as the shape says, and nothing after them.
    fn texts(&self) -> Result<std::vec::IntoIter<&[u8]>, RankError> {
        if self.frame.elements > MAX_TEXTS {
            return Err(self.wrong(format!("{} texts, a request may have {MAX_TEXTS}", self.frame.elements)));
        }
        // Each has four bytes before it, so more than that cannot come of the bytes that are there.
        let mut texts = Vec::with_capacity(self.frame.elements.min(self.raw.len() / 4));
        let mut rest = &self.raw[..];
        for at in 0..self.frame.elements {
            let whole = rest.split_first_chunk::<4>().and_then(|(len, rest)| {
                rest.split_at_checked(usize::try_from(u32::from_le_bytes(*len)).ok()?)
            });
            let Some((text, after)) = whole else {
                return Err(
                    self.wrong(format!("the raw bytes end in element {at} of {}", self.frame.elements))
                );
            };
            texts.push(text);
            rest = after;
        }
        if !rest.is_empty() {
            return Err(self.wrong(format!("{} raw bytes after the last element", rest.len())));
        }
        Ok(texts.into_iter())
    }

    /// Texts as they are written.
    pub(super) fn strings(&self) -> Result<Vec<String>, RankError> {
        self.must_be(&[Datatype::Bytes])?;
        let texts = self.texts()?.enumerate().map(|(at, text)| {
            let text = std::str::from_utf8(text).map(str::to_owned);
            text.map_err(|_| self.wrong(format!("element {at} is no UTF-8 text")))
        });
        texts.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(datatype: &str, shape: &[i64]) -> Frame {
        Frame::new("x".into(), datatype, shape).unwrap()
    }

    fn raw(datatype: &str, shape: &[i64], raw: &[u8]) -> Result<Tensor, RankError> {
        frame(datatype, shape).with_raw(raw.to_vec().into())
    }

    fn problem<T: std::fmt::Debug>(result: Result<T, RankError>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn what_is_said_of_a_tensor_is_checked() {
        let new = |datatype, shape: &[i64]| problem(Frame::new("x".into(), datatype, shape));
        assert!(
            new("FP64", &[1]).starts_with("input \"x\": datatype \"FP64\" is not taken here: INT32, INT64")
        );
        assert!(new("fp32", &[1]).contains("not taken"));
        assert_eq!(new("FP32", &[2, -1]), "input \"x\": shape [2, -1]: -1 is no size");
        assert!(new("FP32", &[i64::MAX, i64::MAX]).contains("more elements than can be counted"));
        assert!(new("FP32", &[i64::MAX, 3, 0]).contains("more elements than can be counted"));
        assert!(new("FP32", &[1; 9]).contains("a shape of 9 sizes, it may have 8"));
        assert_eq!((frame("FP32", &[]).elements, frame("FP32", &[0, 5]).elements), (1, 0));
        let long = problem(Frame::new("y".repeat(1 << 20), &"z".repeat(1 << 20), &[1]));
        assert!(long.len() < 300, "{long}");
    }

    #[test]
    fn raw_bytes_are_as_many_as_the_shape_says() {
        assert!(raw("INT64", &[2], &[0; 16]).is_ok());
        assert_eq!(
            problem(raw("INT64", &[2], &[0; 15])),
            "input \"x\": 15 raw bytes, shape [2] of INT64 has 2 elements of 8 bytes"
        );
        assert!(problem(raw("FP32", &[i64::MAX], &[])).contains("0 raw bytes"));
        assert!(raw("BYTES", &[2], &[1, 0, 0, 0, b'a', 0, 0, 0, 0]).is_ok());
        assert!(problem(raw("BYTES", &[2], &[1, 0, 0, 0, b'a', 0, 0])).contains("end in element 1 of 2"));
        assert!(problem(raw("BYTES", &[1], &[255; 8])).contains("end in element 0 of 1"));
        assert!(problem(raw("BYTES", &[1], &[0; 5])).contains("1 raw bytes after the last"));
        assert!(problem(raw("BYTES", &[9], &[0; 8])).contains("end in element 2 of 9"));
        assert!(
            problem(raw("BYTES", &[i64::MAX], &[0; 8])).ends_with("775807 texts, a request may have 262144")
        );
    }

    #[test]
    fn ids_and_lengths_are_never_negative() {
        let ids = |numbers: &[i64]| {
            frame("INT64", &[numbers.len() as i64]).with_numbers(numbers, |n| n.to_le_bytes()).unwrap().ids()
        };
        assert_eq!(ids(&[0, i64::MAX]).unwrap().len(), 16);
        assert!(problem(ids(&[3, -4])).contains("element 1, -4, is no id"));
        let large = raw("UINT64", &[1], &[255; 8]).unwrap();
        assert_eq!(large.ids().unwrap().as_ref(), [255; 8]);
        assert!(problem(large.lengths()).contains("element 0 is no length"));
        assert!(problem(raw("INT32", &[1], &[255; 4]).unwrap().lengths()).contains("it is negative"));
        assert_eq!(raw("UINT32", &[1], &[255; 4]).unwrap().lengths().unwrap().as_ref(), [255; 4]);
        assert_eq!(
            raw("INT64", &[1], &[7, 0, 0, 0, 0, 0, 0, 0]).unwrap().lengths().unwrap().as_ref(),
            [7, 0, 0, 0]
        );
        assert!(problem(raw("FP32", &[1], &[0; 4]).unwrap().ids()).contains("takes INT64 or UINT64 here"));
    }

    #[test]
    fn numbers_of_json_become_what_the_datatype_says() {
        use Number::{Broken, Negative, Whole};
        let json = |datatype, numbers: &[Number]| frame(datatype, &[numbers.len() as i64]).with_json(numbers);
        assert_eq!(
            json("INT32", &[Whole(1), Negative(-1)]).unwrap().raw.as_ref(),
            [1, 0, 0, 0, 255, 255, 255, 255]
        );
        assert_eq!(json("UINT64", &[Whole(u64::MAX)]).unwrap().raw.as_ref(), [255; 8]);
        assert_eq!(json("FP32", &[Whole(1), Broken(0.5)]).unwrap().raw.as_ref()[..4], 1f32.to_le_bytes());
        assert!(problem(json("INT64", &[Whole(u64::MAX)])).contains("is no INT64"));
        assert!(problem(json("INT64", &[Broken(1.5)])).contains("element 0, 1.5, is no INT64"));
        assert!(problem(json("UINT32", &[Negative(-1)])).contains("element 0, -1, is no UINT32"));
        assert!(problem(json("FP32", &[Broken(1e39)])).contains("is no FP32"));
        assert!(problem(json("BYTES", &[Whole(1)])).contains("is no BYTES"));
        assert!(problem(frame("INT64", &[3]).with_json(&[Whole(1)])).contains("1 elements, shape [3] has 3"));
    }

    #[test]
    fn texts_come_back_as_they_were() {
        let tensor = frame("BYTES", &[2]).with_texts(&["ü", ""]).unwrap();
        assert_eq!(tensor.strings().unwrap(), ["ü", ""]);
        let odd = frame("BYTES", &[1]).with_texts(&[[0xff]]).unwrap();
        assert!(problem(odd.strings()).contains("element 0 is no UTF-8 text"));
        assert!(problem(tensor.numbers()).contains("datatype BYTES, the model takes FP32 here"));
    }
}
