//! Nodes that need whole numbers: columns and sums by place, tensors in another shape, rows by their request.

use super::{
    Attribute, GraphWriter,
    proto::{ATTRIBUTE_INT, ATTRIBUTE_INTS, DimensionValue, FLOAT, INT64, Tensor},
    typed,
};
use crate::contract::REQUEST_INDEX;

impl GraphWriter {
    /// An input with a row per request: a `[requests, width]` tensor.
    pub fn request_input(&mut self, name: &str, width: usize) {
        let dims = [DimensionValue::Param("requests".into()), DimensionValue::Value(width as i64)];
        self.0.input.push(typed(name, FLOAT, &dims));
    }

    /// An input with a sequence of vectors per row: a `[batch, max_len, dim]` tensor.
    pub fn sequence_input(&mut self, name: &str, max_len: usize, dim: usize) {
        let fixed = |size: usize| DimensionValue::Value(size as i64);
        let dims = [DimensionValue::Param("batch".into()), fixed(max_len), fixed(dim)];
        self.0.input.push(typed(name, FLOAT, &dims));
    }

    /// The input `request_index`, `[batch]` of i64: the request that each row is of.
    pub fn request_index(&mut self) {
        self.0.input.push(typed(REQUEST_INDEX, INT64, &[DimensionValue::Param("batch".into())]));
    }

    /// For each row what its request has, `[batch, width]` of `[requests, width]`; needs the input
    /// [`GraphWriter::request_index`].
    pub fn rows_of_requests(&mut self, input: &str, output: &str) {
        self.node("Gather", &[input, REQUEST_INDEX], output);
        self.attribute(Attribute { name: "axis".into(), i: Some(0), kind: ATTRIBUTE_INT, ints: Vec::new() });
    }

    /// A constant list of whole numbers: places, axes, or a shape.
    pub fn whole_numbers(&mut self, name: &str, values: &[i64]) {
        self.0.initializer.push(Tensor {
            dims: vec![values.len() as i64],
            data_type: INT64,
            name: name.into(),
            raw_data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        });
    }

    /// Columns `from..to` of a `[batch, width]` tensor.
    pub fn columns(&mut self, input: &str, from: usize, to: usize, output: &str) {
        let names = ["starts", "ends", "axes"].map(|what| format!("{output}.{what}"));
        for (name, value) in names.iter().zip([from as i64, to as i64, 1]) {
            self.whole_numbers(name, &[value]);
        }
        self.node("Slice", &[input, &names[0], &names[1], &names[2]], output);
    }

    /// The columns at these places, side by side.
    pub fn gather_columns(&mut self, input: &str, places: &[i64], output: &str) {
        let name = format!("{output}.places");
        self.whole_numbers(&name, places);
        self.node("Gather", &[input, &name], output);
        self.attribute(Attribute { name: "axis".into(), i: Some(1), kind: ATTRIBUTE_INT, ints: Vec::new() });
    }

    /// The sum of each row, `[batch, 1]`.
    pub fn row_sums(&mut self, input: &str, output: &str) {
        let name = format!("{output}.axes");
        self.whole_numbers(&name, &[1]);
        self.node("ReduceSum", &[input, &name], output);
    }

    /// The same elements in another shape; a 0 keeps the dimension that stands there.
    pub fn reshape(&mut self, input: &str, shape: &[i64], output: &str) {
        let name = format!("{output}.shape");
        self.whole_numbers(&name, shape);
        self.node("Reshape", &[input, &name], output);
    }

    /// Axes in another order.
    pub fn transpose(&mut self, input: &str, axes: &[i64], output: &str) {
        self.node("Transpose", &[input], output);
        let ints = axes.to_vec();
        self.attribute(Attribute { name: "perm".into(), i: None, kind: ATTRIBUTE_INTS, ints });
    }

    /// Gives the last node an attribute.
    pub(super) fn attribute(&mut self, attribute: Attribute) {
        if let Some(node) = self.0.node.last_mut() {
            node.attribute.push(attribute);
        }
    }
}
