//! Which operator becomes what.

use tract_onnx::{
    prelude::*,
    tract_core::ops::{
        Downsample,
        array::{Gather, GatherNd, MultiBroadcastTo, Slice, TypedConcat},
        binary::TypedBinOp,
        cast::Cast,
        change_axes::AxisOp,
        einsum::EinSum,
        element_wise::{ElementWiseMiniOp, ElementWiseOp},
        identity::Identity,
        konst::Const,
        logic::Iff,
        math::PowConst,
        nn::{GeluApproximate, LeakyRelu, Reduce, Reducer, RmsNorm, Softmax, SoftmaxKind},
        source::TypedSource,
    },
};

use super::{
    Uncovered,
    chain::Chain,
    lower::{Concat, Lowering, Value},
    step::{Elements, Work},
    view::{Axis, Dim, MAX_TABLE, View, collapse},
};
use crate::cpu::{Binary, LineOp, MAX_LINE, Unary};

impl Lowering<'_> {
    /// What a node becomes.
    pub(crate) fn node(&mut self, node: usize) -> Result<Value, Uncovered> {
        let graph = self.graph;
        let op = &graph.nodes()[node];
        if let Some(op) = op.op_as::<Const>() {
            return Ok(Value::Constant(op.val().clone()));
        }
        // What tract has found to be fixed, such as a shape.
        if let Some(fixed) = op.outputs.first().and_then(|outlet| outlet.fact.konst.clone()) {
            return Ok(Value::Constant(fixed));
        }
        if op.op_is::<TypedSource>() {
            return Err(self.uncovered(node, "it is an input that nothing feeds"));
        }
        // Judged first, for every operator alike.
        let dims = self.dims(node)?;
        if op.op_is::<Identity>() {
            return Ok(self.operand(node, 0)?.clone());
        }
        if let Some(op) = op.op_as::<Cast>() {
            return self.cast(node, op.to);
        }
        if let Some(op) = op.op_as::<ElementWiseOp>() {
            return self.unary(node, &*op.0);
        }
        if let Some(op) = op.op_as::<TypedBinOp>() {
            return self.binary(node, op.0.name(), dims);
        }
        if op.op_is::<Iff>() {
            let chains = (0..3).map(|at| self.chain(node, at, &dims)).collect::<Result<Vec<_>, _>>()?;
            let chains = self.fitting(node, chains)?;
            return Ok(Value::Chain(Chain::select(chains, dims)));
        }
        if let Some(op) = op.op_as::<AxisOp>() {
            return self.axis_op(node, op);
        }
        if let Some(op) = op.op_as::<Slice>() {
            return self.slice(node, op);
        }
        if let Some(op) = op.op_as::<Downsample>() {
            return self.thin(node, op);
        }
        if op.op_is::<MultiBroadcastTo>() {
            return self.broadcast(node, &dims);
        }
        if let Some(op) = op.op_as::<TypedConcat>() {
            return self.concat(node, op.axis);
        }
        if let Some(op) = op.op_as::<Gather>() {
            return self.gather(node, op.axis);
        }
        if let Some(op) = op.op_as::<GatherNd>() {
            return self.gather_nd(node, op.batch_dims);
        }
        if let Some(op) = op.op_as::<EinSum>() {
            return self.einsum(node, op, &dims);
        }
        if let Some(op) = op.op_as::<Softmax>() {
            let kind = match op.kind {
                SoftmaxKind::Softmax => LineOp::Softmax,
                SoftmaxKind::LogSoftmax => LineOp::LogSoftmax,
            };
            return self.line(node, &op.axes, kind);
        }
        if let Some(op) = op.op_as::<RmsNorm>() {
            let epsilon = self.numbers(node, &op.eps)?.first().copied().unwrap_or(0.0);
            return self.line(node, &[op.axis], LineOp::RmsNorm(epsilon));
        }
        if let Some(op) = op.op_as::<Reduce>() {
            let kind = match op.reducer {
                Reducer::Sum => LineOp::Sum,
                Reducer::Max => LineOp::Max,
                Reducer::Min => LineOp::Min,
                Reducer::Prod => LineOp::Prod,
                Reducer::MeanOfSquares => LineOp::MeanOfSquares,
                other => return Err(self.uncovered(node, format!("{other:?} is not covered"))),
            };
            return self.line(node, &op.axes, kind);
        }
        Err(self.uncovered(node, "the operator is not covered"))
    }

    /// An operand as a chain, ready for an operation of shape `dims`: what would be computed again for every row of a
    /// request, or for every element that it is spread to, is written first.
    fn chain(&mut self, node: usize, at: usize, dims: &[Dim]) -> Result<Chain, Uncovered> {
        let source = self.source(node, at)?;
        match self.values[source].clone() {
            Some(Value::Constant(tensor)) => {
                let numbers = self.numbers(node, &tensor)?;
                match numbers.first() {
                    Some(&first) if numbers.iter().all(|x| x.to_bits() == first.to_bits()) => {
                        Ok(Chain::fill(first, tensor.rank()))
                    }
                    _ => Ok(Chain::of(self.view(source, node)?)),
                }
            }
            Some(Value::Chain(chain)) if chain.dims == dims && !chain.is_plain() => Ok(chain),
            _ => Ok(Chain::of(self.view(source, node)?)),
        }
    }

    /// Chains that fit into one step with one more instruction, and are all computed as often as it.
    fn fitting(&mut self, node: usize, mut chains: Vec<Chain>) -> Result<Vec<Chain>, Uncovered> {
        let space = chains.iter().map(|chain| self.space(&chain.loads)).max();
        for chain in &mut chains {
            if !chain.is_plain() && Some(self.space(&chain.loads)) < space {
                *chain = Chain::of(self.write(node, chain.clone())?);
            }
        }
        while !Chain::fit(&chains) {
            let Some(longest) = chains.iter_mut().max_by_key(|chain| chain.instructions.len()) else { break };
            *longest = Chain::of(self.write(node, longest.clone())?);
        }
        Ok(chains)
    }

    fn cast(&mut self, node: usize, to: DatumType) -> Result<Value, Uncovered> {
        let source = self.source(node, 0)?;
        let from = self.graph.nodes()[source].outputs[0].fact.datum_type;
        let value = self.operand(node, 0)?.clone();
        match (from, to) {
            _ if matches!(value, Value::RequestIndex) => Ok(value),
            (a, b) if a == b => Ok(value),
            (DatumType::Bool, DatumType::F32) => Ok(value),
            (DatumType::F32, DatumType::Bool) => self.apply(node, Unary::Truth),
            _ => Err(self.uncovered(node, format!("from {from:?} to {to:?} is not covered"))),
        }
    }

    fn unary(&mut self, node: usize, op: &dyn ElementWiseMiniOp) -> Result<Value, Uncovered> {
        let name = op.name();
        let op = if let Some(op) = op.downcast_ref::<LeakyRelu>() {
            Unary::LeakyRelu(op.alpha)
        } else if let Some(op) = op.downcast_ref::<PowConst>() {
            power(op.exponent)
        } else if op.is::<GeluApproximate>() {
            Unary::GeluTanh
        } else {
            match name.as_str() {
                "Abs" => Unary::Abs,
                "Ceil" => Unary::Ceil,
                "Cos" => Unary::Cos,
                "Erf" => Unary::Erf,
                "Exp" => Unary::Exp,
                "Floor" => Unary::Floor,
                "GeluExact" => Unary::Gelu,
                "HardSwish" => Unary::HardSwish,
                "Ln" => Unary::Ln,
                "Neg" => Unary::Neg,
                "Not" => Unary::Not,
                "Recip" => Unary::Recip,
                "Round" => Unary::Round,
                "RoundHalfToEven" => Unary::RoundEven,
                "Rsqrt" => Unary::Rsqrt,
                "Sigmoid" => Unary::Sigmoid,
                "Sign" => Unary::Sign,
                "Silu" => Unary::Silu,
                "Sin" => Unary::Sin,
                "Sqrt" => Unary::Sqrt,
                "Square" => Unary::Square,
                "Tanh" => Unary::Tanh,
                _ => return Err(self.uncovered(node, "the operator is not covered")),
            }
        };
        self.apply(node, op)
    }

    fn apply(&mut self, node: usize, op: Unary) -> Result<Value, Uncovered> {
        let source = self.source(node, 0)?;
        let mut chain = match self.values[source].clone() {
            Some(Value::Chain(chain)) => chain,
            _ => Chain::of(self.view(source, node)?),
        };
        if !Chain::fit(std::slice::from_ref(&chain)) {
            chain = Chain::of(self.write(node, chain)?);
        }
        Ok(Value::Chain(chain.unary(op)))
    }

    fn binary(&mut self, node: usize, name: &str, dims: Vec<Dim>) -> Result<Value, Uncovered> {
        let (op, swapped) = match name {
            "Add" => (Binary::Add, false),
            "Sub" => (Binary::Sub, false),
            "SubF" => (Binary::Sub, true),
            "Mul" => (Binary::Mul, false),
            "Div" => (Binary::Div, false),
            "Min" => (Binary::Min, false),
            "Max" => (Binary::Max, false),
            "Pow" => (Binary::Pow, false),
            "And" => (Binary::And, false),
            "Or" => (Binary::Or, false),
            "Xor" => (Binary::Xor, false),
            "Eq" => (Binary::Equal, false),
            "NE" => (Binary::NotEqual, false),
            "LT" => (Binary::Less, false),
            "LTE" => (Binary::LessEqual, false),
            "GT" => (Binary::Greater, false),
            "GTE" => (Binary::GreaterEqual, false),
            _ => return Err(self.uncovered(node, "the operator is not covered")),
        };
        for at in 0..2 {
            let source = self.source(node, at)?;
            let found = self.graph.nodes()[source].outputs[0].fact.datum_type;
            if !matches!(found, DatumType::F32 | DatumType::Bool) {
                return Err(self.uncovered(node, format!("operands of {found:?} are not covered, f32 are")));
            }
        }
        if let Some(view) = self.folded(node, op, &dims)? {
            return Ok(Value::View(view));
        }
        let mut chains = vec![self.chain(node, 0, &dims)?, self.chain(node, 1, &dims)?];
        if swapped {
            chains.reverse();
        }
        let mut chains = self.fitting(node, chains)?.into_iter();
        match (chains.next(), chains.next()) {
            (Some(a), Some(b)) => Ok(Value::Chain(Chain::binary(a, op, b, dims))),
            _ => Err(self.uncovered(node, "it has no two operands")),
        }
    }

    fn concat(&mut self, node: usize, axis: usize) -> Result<Value, Uncovered> {
        let count = self.graph.nodes()[node].inputs.len();
        let parts = (0..count).map(|at| self.view_of(node, at)).collect::<Result<Vec<_>, _>>()?;
        let fixed = |view: &View| matches!(view.axes.get(axis), Some(Axis::Fixed { .. }));
        if parts.is_empty() || !parts.iter().all(fixed) {
            return Err(self.uncovered(node, "it puts rows behind each other"));
        }
        Ok(Value::Concat(Box::new(Concat { axis, parts, whole: None, of_requests: None, of_rows: None })))
    }

    /// An operation on the lines along `axes`.
    fn line(&mut self, node: usize, axes: &[usize], op: LineOp) -> Result<Value, Uncovered> {
        let view = self.view_of(node, 0)?;
        let mut along = Vec::new();
        for &axis in axes {
            match view.axes.get(axis) {
                Some(&Axis::Fixed { len, stride }) => along.push((len, stride)),
                Some(Axis::Batch) => return Err(self.uncovered(node, "it brings rows together")),
                None => return Err(self.uncovered(node, format!("there is no axis {axis}"))),
            }
        }
        let others: Vec<usize> = (0..view.axes.len()).filter(|axis| !axes.contains(axis)).collect();
        let across: Vec<(usize, usize)> = others
            .iter()
            .filter_map(|&axis| match view.axes[axis] {
                Axis::Fixed { len, stride } => Some((len, stride)),
                Axis::Batch => None,
            })
            .collect();
        let size = |axes: &[(usize, usize)]| axes.iter().map(|&(len, _)| len).product::<usize>();
        let (len, lines) = (size(&along), size(&across));
        if len > MAX_LINE || lines > MAX_TABLE {
            return Err(self.uncovered(node, format!("{lines} lines of {len} elements are too many")));
        }
        let elements = match collapse(&along) {
            Some((len, stride)) => Elements::Even { len, stride },
            None => Elements::At(places(0, &along)),
        };
        let starts = places(view.offset, &across);
        let made = if op.keeps_length() { len } else { 1 };
        let space = self.space(std::slice::from_ref(&view));
        let out = self.buffer(node, space, lines * made)?;
        self.step(node, out, Work::Line { source: view.buffer, op, starts, elements });
        // Lines lie one after the other: the other axes first, then those along them.
        let mut result = View { buffer: out, offset: 0, axes: view.axes.clone() };
        let mut step = 1;
        for &axis in axes.iter().rev() {
            if let Axis::Fixed { len, stride } = &mut result.axes[axis] {
                *len = if op.keeps_length() { *len } else { 1 };
                *stride = step;
                step *= *len;
            }
        }
        for &axis in others.iter().rev() {
            if let Axis::Fixed { len, stride } = &mut result.axes[axis] {
                *stride = step;
                step *= *len;
            }
        }
        Ok(Value::View(result))
    }
}

/// Where the elements of these axes are, the last axis fastest.
pub(crate) fn places(offset: usize, axes: &[(usize, usize)]) -> Vec<u32> {
    let mut places = vec![offset as u32];
    for &(len, stride) in axes {
        places = places.iter().flat_map(|&p| (0..len).map(move |i| p + (i * stride) as u32)).collect();
    }
    places
}

/// The cheapest way to a constant exponent.
fn power(exponent: f32) -> Unary {
    match exponent {
        0.5 => Unary::Sqrt,
        -0.5 => Unary::Rsqrt,
        -1.0 => Unary::Recip,
        2.0 => Unary::Square,
        n if n.fract() == 0.0 && (1.0..=8.0).contains(&n.abs()) => Unary::Powi(n as i32),
        n => Unary::Powf(n),
    }
}
