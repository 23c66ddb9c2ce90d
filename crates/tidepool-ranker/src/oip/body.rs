//! The bodies of HTTP: a JSON document, and after it the elements of the tensors that are sent as bytes.
//!
//! How long the document is, says the header `Inference-Header-Content-Length`; without it the document is all there
//! is. Elements are read into flat lists as they are parsed, at 16 bytes a number: how many there are is counted
//! before, in the whole document.

use std::fmt;

use axum::body::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeSeed, SeqAccess, Visitor},
};
use tidepool_proto::MAX_NUMBERS;

use super::{
    Infer,
    parameters::{Named, Parameters, Value, check_of_tensor},
    tensors::{Frame, MAX_TEXTS, Number, Tensor, told},
};
use crate::RankError;

/// The parameter of a tensor that is sent as bytes: how many.
const BINARY_DATA_SIZE: &str = "binary_data_size";
/// The parameter of an output that is wanted as bytes.
const BINARY_DATA: &str = "binary_data";
/// The parameter of a request whose outputs are wanted as bytes, unless they say otherwise.
const BINARY_DATA_OUTPUT: &str = "binary_data_output";

/// A request as it was written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    id: String,
    #[serde(default)]
    parameters: Named,
    inputs: Vec<Input>,
    #[serde(default)]
    outputs: Vec<Output>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    name: String,
    shape: Vec<i64>,
    datatype: String,
    #[serde(default)]
    parameters: Named,
    data: Option<Elements>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Output {
    name: String,
    #[serde(default)]
    parameters: Named,
}

/// Which outputs are wanted as bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Binary {
    by_default: bool,
    by_name: Vec<(String, bool)>,
}

impl Binary {
    /// Whether this output is.
    pub(super) fn is(&self, output: &str) -> bool {
        let named = self.by_name.iter().find(|(name, _)| name == output);
        named.map_or(self.by_default, |(_, binary)| *binary)
    }
}

/// Reads a body; `header` is how long its document is, where it is not all of it.
pub(super) fn read(
    model: String,
    version: String,
    header: Option<usize>,
    body: Bytes,
) -> Result<(Infer, Binary), RankError> {
    let invalid = |problem: String| RankError::Invalid(problem);
    let mut bytes = body;
    let document = match header {
        Some(len) if len > bytes.len() => {
            return Err(invalid(format!(
                "Inference-Header-Content-Length is {len}, the body has {} bytes",
                bytes.len()
            )));
        }
        Some(len) => bytes.split_to(len),
        None => std::mem::take(&mut bytes),
    };
    check_counts(&document)?;
    let document: Document =
        serde_json::from_slice(&document).map_err(|e| invalid(format!("the request does not parse: {e}")))?;
    let Document { id, mut parameters, inputs, outputs } = document;
    let by_default = match parameters.remove(BINARY_DATA_OUTPUT) {
        None => false,
        Some(Value::Bool(binary)) => binary,
        Some(_) => return Err(invalid(format!("parameter {BINARY_DATA_OUTPUT:?}: true or false is wanted"))),
    };
    let mut binary = Binary { by_default, by_name: Vec::new() };
    let inputs = inputs.into_iter().map(|input| tensor(input, &mut bytes)).collect::<Result<Vec<_>, _>>()?;
    if !bytes.is_empty() {
        return Err(invalid(format!("{} bytes after the last input that is sent as bytes", bytes.len())));
    }
    let mut names = Vec::with_capacity(outputs.len());
    for Output { name, parameters } in outputs {
        check_of_tensor("output", &name, &parameters, &[BINARY_DATA])?;
        match parameters.get(BINARY_DATA) {
            None => {}
            Some(Value::Bool(is)) => binary.by_name.push((name.clone(), *is)),
            Some(_) => {
                let name = told(&name);
                return Err(invalid(format!("output {name:?}: {BINARY_DATA:?}: true or false is wanted")));
            }
        }
        names.push(name);
    }
    let parameters = Parameters::read(&parameters)?;
    Ok((Infer { model, version, id, parameters, inputs, outputs: names }, binary))
}

/// Refuses a document of more numbers or texts than are read into memory, whichever inputs they are of.
fn check_counts(document: &[u8]) -> Result<(), RankError> {
    let (numbers, texts) = count(document);
    for (what, found, most) in [("numbers", numbers, MAX_NUMBERS), ("texts", texts, MAX_TEXTS)] {
        if found > most {
            return Err(RankError::Invalid(format!(
                "the document has {found} {what}, it may have {most}: send the elements as bytes"
            )));
        }
    }
    Ok(())
}

/// Numbers and texts of a document, those of its shapes, names and keys included. Of what is no JSON it may count too
/// few or too many, but only after the place where the parser ends.
fn count(document: &[u8]) -> (usize, usize) {
    let (mut numbers, mut texts) = (0usize, 0usize);
    let mut in_number = false;
    let mut bytes = document.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'0'..=b'9' | b'-' => {
                numbers += usize::from(!in_number);
                in_number = true;
            }
            b'+' | b'.' | b'e' | b'E' => {}
            _ => in_number = false,
        }
        if byte == b'"' {
            texts += 1;
            while let Some(byte) = bytes.next() {
                match byte {
                    b'"' => break,
                    // What comes after it ends no text.
                    b'\\' => {
                        bytes.next();
                    }
                    _ => {}
                }
            }
        }
    }
    (numbers, texts)
}

/// An input, with its part of the bytes after the document if that is where its elements are.
fn tensor(input: Input, bytes: &mut Bytes) -> Result<Tensor, RankError> {
    let Input { name, shape, datatype, parameters, data } = input;
    check_of_tensor("input", &name, &parameters, &[BINARY_DATA_SIZE])?;
    let frame = Frame::new(name, &datatype, &shape)?;
    match (data, parameters.get(BINARY_DATA_SIZE)) {
        (Some(_), Some(_)) => {
            Err(frame.wrong("it has both data and binary_data_size: one of them is wanted"))
        }
        (None, None) => Err(frame.wrong("it has neither data nor binary_data_size")),
        (None, Some(size)) => {
            let size = size.whole().and_then(|size| usize::try_from(size).ok());
            match size.filter(|size| *size <= bytes.len()) {
                Some(size) => frame.with_raw(bytes.split_to(size)),
                None => Err(frame.wrong(format!(
                    "binary_data_size is no whole number up to {}, the bytes that are left",
                    bytes.len()
                ))),
            }
        }
        (Some(elements), None) => {
            // A list of lists must have the shape; a flat one stands for any.
            if elements.sizes.len() > 1 && elements.sizes != frame.shape {
                return Err(frame.wrong(format!(
                    "lists of shape {:?}, the shape says {:?}",
                    elements.sizes, frame.shape
                )));
            }
            match elements.values {
                Values::Numbers(numbers) => frame.with_json(&numbers),
                Values::Texts(texts) if frame.datatype.is_text() => frame.with_texts(&texts),
                Values::Texts(_) => {
                    let word = frame.datatype.as_str();
                    Err(frame.wrong(format!("its data are texts, the datatype says {word}")))
                }
            }
        }
    }
}

/// What `data` has, flat and in row order.
#[derive(Debug, PartialEq)]
struct Elements {
    values: Values,
    /// How long the lists of each depth are.
    sizes: Vec<usize>,
}

#[derive(Debug, PartialEq)]
enum Values {
    Numbers(Vec<Number>),
    Texts(Vec<String>),
}

impl<'de> Deserialize<'de> for Elements {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut collected =
            Collected { values: Values::Numbers(Vec::new()), sizes: Vec::new(), leaves: None };
        Level { into: &mut collected, depth: 0 }.deserialize(from)?;
        let sizes = collected.sizes.into_iter().map(Option::unwrap_or_default).collect();
        Ok(Self { values: collected.values, sizes })
    }
}

struct Collected {
    values: Values,
    /// Per depth, once a list of it has ended.
    sizes: Vec<Option<usize>>,
    /// The depth at which elements are.
    leaves: Option<usize>,
}

/// One value of `data`: an element, or a list. How deep lists may be in each other, serde_json bounds.
struct Level<'c> {
    into: &'c mut Collected,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Level<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl Level<'_> {
    fn leaf<E: de::Error>(&mut self) -> Result<(), E> {
        if self.depth == 0 {
            return Err(E::custom("data: a list is wanted"));
        }
        if *self.into.leaves.get_or_insert(self.depth) != self.depth {
            return Err(E::custom("data: elements and lists stand side by side"));
        }
        Ok(())
    }

    fn number<E: de::Error>(mut self, number: Number) -> Result<(), E> {
        self.leaf()?;
        match &mut self.into.values {
            Values::Numbers(numbers) => numbers.push(number),
            Values::Texts(_) => return Err(E::custom("data: numbers and texts stand side by side")),
        }
        Ok(())
    }
}

impl<'de> Visitor<'de> for Level<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("data: numbers, texts, or lists of them")
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<(), E> {
        self.number(Number::Whole(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<(), E> {
        let number = u64::try_from(value).map_or(Number::Negative(value), Number::Whole);
        self.number(number)
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<(), E> {
        self.number(Number::Broken(value))
    }

    fn visit_str<E: de::Error>(mut self, value: &str) -> Result<(), E> {
        self.leaf()?;
        match &mut self.into.values {
            Values::Texts(texts) => texts.push(value.to_owned()),
            Values::Numbers(none) if none.is_empty() => {
                self.into.values = Values::Texts(vec![value.to_owned()])
            }
            Values::Numbers(_) => return Err(E::custom("data: numbers and texts stand side by side")),
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Self { into, depth } = self;
        if into.sizes.len() == depth {
            into.sizes.push(None);
        }
        let mut len = 0usize;
        while list.next_element_seed(Level { into, depth: depth + 1 })?.is_some() {
            len += 1;
        }
        match into.sizes[depth] {
            Some(size) if size != len => {
                Err(de::Error::custom(format!("data: a list of {len} stands beside one of {size}")))
            }
            _ => {
                into.sizes[depth] = Some(len);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(text: &str) -> Result<Elements, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    fn body(document: &str, header: Option<usize>, tail: &[u8]) -> Result<(Infer, Binary), String> {
        let body = [document.as_bytes(), tail].concat();
        read("m".into(), String::new(), header, body.into()).map_err(|error| error.to_string())
    }

    #[test]
    fn lists_become_flat_and_their_sizes_are_kept() {
        use Number::{Broken, Negative, Whole};
        let of = |text| elements(text).unwrap();
        assert_eq!(of("[]"), Elements { values: Values::Numbers(vec![]), sizes: vec![0] });
        let nested = of("[[1, -2, 0.5], [18446744073709551615, 4, 5]]");
        let flat = vec![Whole(1), Negative(-2), Broken(0.5), Whole(u64::MAX), Whole(4), Whole(5)];
        assert_eq!(nested, Elements { values: Values::Numbers(flat), sizes: vec![2, 3] });
        assert_eq!(of(r#"["a", "b"]"#).values, Values::Texts(vec!["a".into(), "b".into()]));
        assert_eq!(of("[[], []]").sizes, [2, 0]);
    }

    #[test]
    fn what_is_no_tensor_is_refused() {
        let cases = [
            ("1", "a list is wanted"),
            ("[1, [2]]", "elements and lists stand side by side"),
            ("[[2], 1]", "elements and lists stand side by side"),
            ("[[1, 2], [3]]", "a list of 1 stands beside one of 2"),
            (r#"[1, "a"]"#, "numbers and texts stand side by side"),
            (r#"["a", 1]"#, "numbers and texts stand side by side"),
            ("[true]", "expected data: numbers"),
            ("[null]", "expected data: numbers"),
            ("[{}]", "expected data: numbers"),
            ("[1e999]", "number out of range"),
        ];
        for (text, problem) in cases {
            let found = elements(text).unwrap_err();
            assert!(found.contains(problem), "{text}: {found}");
        }
        let deep = "[".repeat(100_000);
        assert!(elements(&deep).unwrap_err().contains("recursion limit"));
    }

    #[test]
    fn numbers_and_texts_are_counted_in_the_whole_document() {
        let cases = [
            ("", (0, 0)),
            ("[true, -1.5e+3, [2],[3 ,4]]", (4, 0)),
            (r#"{"a\"1,2": "\\", "b": {"c": [0e1]}}"#, (1, 4)),
            (r#""1"#, (0, 1)),
            (r#""\"#, (0, 1)),
        ];
        for (text, counts) in cases {
            assert_eq!(count(text.as_bytes()), counts, "{text}");
        }
        let of = |data: String| {
            let input = format!(r#"{{"name": "a", "shape": [1], "datatype": "FP32", "data": {data}}}"#);
            body(&format!(r#"{{"inputs": [{input}, {input}]}}"#), None, &[]).unwrap_err()
        };
        // No input has too many by itself.
        let numbers = of(format!("[{}0]", "0,".repeat(MAX_NUMBERS / 2)));
        assert!(numbers.starts_with("the document has 4194308 numbers, it may have 4194304"), "{numbers}");
        let texts = of(format!(r#"[{}""]"#, r#""","#.repeat(MAX_TEXTS / 2)));
        assert!(texts.starts_with("the document has 262159 texts, it may have 262144"), "{texts}");
    }

    #[test]
    fn bytes_after_the_document_go_to_the_inputs_in_order() {
        let document = r#"{"id": "7", "inputs": [
            {"name": "a", "shape": [2], "datatype": "INT32", "parameters": {"binary_data_size": 8}},
            {"name": "b", "shape": [1, 1], "datatype": "FP32", "data": [[0.5]]},
            {"name": "c", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 5}}],
            "outputs": [{"name": "p", "parameters": {"binary_data": false}}, {"name": "q"}],
            "parameters": {"binary_data_output": true, "top_k": 2}}"#;
        let tail = [1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, b'x'];
        let (infer, binary) = body(document, Some(document.len()), &tail).unwrap();
        assert_eq!((infer.id.as_str(), infer.parameters.top_k, infer.outputs.len()), ("7", Some(2), 2));
        assert_eq!(infer.inputs[0].raw, tail[..8]);
        assert_eq!(infer.inputs[1].raw, 0.5f32.to_le_bytes()[..]);
        assert_eq!(infer.inputs[2].strings().unwrap(), ["x"]);
        assert!(!binary.is("p") && binary.is("q"));

        let found = body(document, Some(document.len()), &tail[..12]).unwrap_err();
        assert!(found.contains("input \"c\": binary_data_size is no whole number up to 4"), "{found}");
        let found = body(document, Some(document.len()), &[&tail[..], b"!"].concat()).unwrap_err();
        assert!(found.contains("1 bytes after the last input"), "{found}");
        let found = body(document, Some(document.len() + 100), &tail).unwrap_err();
        assert!(found.contains("Inference-Header-Content-Length is"), "{found}");
        let found = body(document, None, &tail).unwrap_err();
        assert!(found.contains("does not parse"), "{found}");
        assert!(body(document, Some(usize::MAX), &[]).is_err());
    }

    #[test]
    fn inputs_and_keys_are_checked() {
        let of = |input: &str| body(&format!(r#"{{"inputs": [{input}]}}"#), None, &[]).unwrap_err();
        assert!(of(r#"{"name": "a", "shape": [1], "datatype": "FP32"}"#).contains("neither data nor"));
        assert!(
            of(r#"{"name": "a", "shape": [1], "datatype": "FP32", "data": [1], "parameters": {"binary_data_size": 0}}"#)
                .contains("both data and")
        );
        assert!(
            of(r#"{"name": "a", "shape": [1], "datatype": "FP32", "data": ["x"]}"#).contains("are texts")
        );
        assert!(
            of(r#"{"name": "a", "shape": [1], "datatype": "BYTES", "data": [1]}"#).contains("is no BYTES")
        );
        assert!(
            of(r#"{"name": "a", "shape": [1, 2], "datatype": "FP32", "data": [[1], [2]]}"#)
                .contains("lists of shape [2, 1]")
        );
        assert!(
            of(r#"{"name": "a", "shape": [1], "datatype": "FP32", "daten": [1]}"#)
                .contains("unknown field `daten`")
        );
        assert!(
            of(r#"{"name": "a", "shape": [1], "datatype": "FP32", "parameters": {"shared_memory_region": "r"}}"#)
                .contains("shared memory is not served")
        );
        assert!(body("{}", None, &[]).unwrap_err().contains("missing field `inputs`"));
        let huge = r#"{"inputs": [{"name": "a", "shape": [9223372036854775807, 9], "datatype": "FP32", "data": []}]}"#;
        assert!(body(huge, None, &[]).unwrap_err().contains("more elements than can be counted"));
    }
}
