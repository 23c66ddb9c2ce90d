//! Reads the part of an ONNX file that reference models are made of, byte by byte: fields of protocol buffers, with the
//! numbers of the public `onnx.proto`. Nothing here is shared with the engine that it is to be held against.

use std::collections::BTreeMap;

/// A tensor: numbers, row-major.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Tensor {
    pub(super) shape: Vec<usize>,
    pub(super) values: Vec<f64>,
}

/// One operation.
#[derive(Clone, Debug, Default)]
pub(super) struct Node {
    pub(super) op: String,
    pub(super) inputs: Vec<String>,
    pub(super) output: String,
    /// Attributes that are whole numbers, or lists of them.
    pub(super) attributes: BTreeMap<String, Vec<i64>>,
}

/// Operations in an order in which each comes after those that it needs, and constants.
#[derive(Clone, Debug, Default)]
pub(super) struct Graph {
    pub(super) nodes: Vec<Node>,
    pub(super) constants: BTreeMap<String, Tensor>,
}

/// `TensorProto.DataType`.
const FLOAT: u64 = 1;
const INT64: u64 = 7;

/// What a field has.
#[derive(Clone, Copy, Debug)]
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message, with their numbers, one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(bytes)
    }

    /// The next field; `None` at the end, and an error where the message is cut off.
    fn next(&mut self) -> Result<Option<(u64, Field<'a>)>, &'static str> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let cut = "an ONNX message that is cut off";
        let key = self.varint().ok_or(cut)?;
        let field = match key & 7 {
            0 => Field::Number(self.varint().ok_or(cut)?),
            1 => Field::Bytes(self.bytes(8).ok_or(cut)?),
            5 => Field::Bytes(self.bytes(4).ok_or(cut)?),
            2 => {
                let count = usize::try_from(self.varint().ok_or(cut)?).map_err(|_| cut)?;
                Field::Bytes(self.bytes(count).ok_or(cut)?)
            }
            _ => return Err("an ONNX message with a field of an unknown kind"),
        };
        Ok(Some((key >> 3, field)))
    }
}

/// Calls `look` for each field of a message.
fn each<'a>(
    message: &'a [u8],
    mut look: impl FnMut(u64, Field<'a>) -> Result<(), &'static str>,
) -> Result<(), &'static str> {
    let mut fields = Fields(message);
    while let Some((number, field)) = fields.next()? {
        look(number, field)?;
    }
    Ok(())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Whole numbers of a repeated field, packed or one by one.
fn whole(field: Field<'_>, into: &mut Vec<i64>) -> Result<(), &'static str> {
    match field {
        Field::Number(number) => into.push(number.cast_signed()),
        Field::Bytes(bytes) => {
            let mut packed = Fields(bytes);
            while !packed.0.is_empty() {
                into.push(packed.varint().ok_or("a list of numbers that is cut off")?.cast_signed());
            }
        }
    }
    Ok(())
}

/// The graph of a file.
///
/// # Errors
/// What is wrong with it.
pub(super) fn read(file: &[u8]) -> Result<Graph, &'static str> {
    let mut graph = Graph::default();
    each(file, |number, field| match (number, field) {
        (7, Field::Bytes(bytes)) => each(bytes, |number, field| {
            match (number, field) {
                (1, Field::Bytes(bytes)) => graph.nodes.push(node(bytes)?),
                (5, Field::Bytes(bytes)) => {
                    let (name, tensor) = tensor(bytes)?;
                    graph.constants.insert(name, tensor);
                }
                _ => {}
            }
            Ok(())
        }),
        _ => Ok(()),
    })?;
    Ok(graph)
}

fn node(message: &[u8]) -> Result<Node, &'static str> {
    let mut node = Node::default();
    each(message, |number, field| {
        match (number, field) {
            (1, Field::Bytes(name)) => node.inputs.push(text(name)),
            (2, Field::Bytes(name)) => node.output = text(name),
            (4, Field::Bytes(name)) => node.op = text(name),
            (5, Field::Bytes(bytes)) => {
                let (mut name, mut numbers) = (String::new(), Vec::new());
                each(bytes, |number, field| {
                    match (number, field) {
                        (1, Field::Bytes(bytes)) => name = text(bytes),
                        (3 | 8, field) => whole(field, &mut numbers)?,
                        _ => {}
                    }
                    Ok(())
                })?;
                node.attributes.insert(name, numbers);
            }
            _ => {}
        }
        Ok(())
    })?;
    Ok(node)
}

fn tensor(message: &[u8]) -> Result<(String, Tensor), &'static str> {
    let (mut name, mut dims, mut kind, mut raw) = (String::new(), Vec::new(), 0, &[][..]);
    each(message, |number, field| {
        match (number, field) {
            (1, field) => whole(field, &mut dims)?,
            (2, Field::Number(number)) => kind = number,
            (8, Field::Bytes(bytes)) => name = text(bytes),
            (9, Field::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
        Ok(())
    })?;
    let values: Vec<f64> = match kind {
        FLOAT => raw.as_chunks().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect(),
        INT64 => raw.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes) as f64).collect(),
        _ => return Err("a constant that is neither f32 nor i64"),
    };
    let shape: Vec<usize> = dims.iter().map(|dim| usize::try_from(*dim).unwrap_or(0)).collect();
    if shape.iter().product::<usize>() != values.len() {
        return Err("a constant whose numbers do not stand in its raw_data");
    }
    Ok((name, Tensor { shape, values }))
}
