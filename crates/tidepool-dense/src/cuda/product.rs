//! Products of rows by the model's matrices, as cuBLASLt takes them.
//!
//! Matrices that the same rows meet one after the other, and whose results lie side by side, become one matrix: the
//! experts of a mixture are one product. A left side that cuBLASLt could not read as it lies (uneven rows, a value of
//! requests in a product of rows, or anything in bf16) is packed first, once for all products that read it.

use super::{
    blas::{Activation, Precision},
    codegen::Records,
    program::{Builder, Do, Left, MatmulTask, Origin, Pack, ProductShape},
};
use crate::{
    cpu::Packed,
    plan::{
        step::{Call, Product, Start},
        view::BufferId,
    },
};

/// What rows of weights and of packed left sides are rounded up to: 16 bytes of bf16, which tensor cores read at once.
const PAD: usize = 8;
/// The most products of a step that become products of cuBLASLt each; more are done by a kernel.
const MAX_MATMULS: usize = 16;

/// Products that become one: which matrices side by side, where the left side and the result begin.
struct Group<'a> {
    calls: &'a [Call],
    columns: usize,
}

/// Appends the tasks of a product whose result, through `activation`, goes to `out`.
pub(super) fn lower(
    builder: &mut Builder,
    node: &str,
    product: &Product,
    out: BufferId,
    activation: Activation,
) {
    let groups = groups(product);
    let Some(first) = product.weights.first() else { return };
    let k = first.depth();
    if groups.len() > MAX_MATMULS || k == 0 {
        return by_kernel(builder, node, product, out, activation);
    }
    let bias = biases(product, &groups);
    let adds = match &product.start {
        Start::Zero => false,
        Start::Bias(record) if bias.is_none() => {
            let from = Origin::Fixed(builder.fixed.floats(record.iter().copied()));
            builder.task(node, out, Do::Start { from });
            true
        }
        Start::Bias(_) => false,
        Start::Buffer(start) => {
            builder.task(node, out, Do::Start { from: Origin::Buffer(*start) });
            true
        }
        Start::Here => true,
    };
    for (at, group) in groups.iter().enumerate() {
        let stride = group.columns.next_multiple_of(PAD);
        let weights = weights(builder, product, group, k, stride);
        let bias = bias.as_ref().map(|biases| builder.fixed.floats(biases[at].iter().copied()));
        let sides = left(builder, node, product, group.calls[0].a, k, out);
        let width = builder.buffers[out].width;
        let out_stride = if product.m == 1 { width } else { product.m_out };
        // Rows of all records follow each other evenly on both sides.
        let even = product.m == 1 || width == product.m * product.m_out;
        let per_record = (sides.record_step.is_some() || !even)
            .then(|| (sides.record_step.unwrap_or(product.m * sides.stride), width));
        builder.task(
            node,
            out,
            Do::Matmul(MatmulTask {
                left: sides.left,
                left_stride: sides.stride,
                left_turned: sides.turned,
                weights,
                weights_stride: stride,
                bias,
                out_offset: group.calls[0].out,
                out_stride,
                m: product.m,
                columns: group.columns,
                k,
                per_record,
                adds,
                activation,
            }),
        );
    }
}

/// A left side, as it lies.
struct LeftSide {
    left: Left,
    stride: usize,
    turned: bool,
    /// Elements from record to record, where rows of all records are not evenly apart.
    record_step: Option<usize>,
}

/// The left side as cuBLASLt can read it, packed where it must be.
fn left(
    builder: &mut Builder,
    node: &str,
    product: &Product,
    offset: usize,
    k: usize,
    out: BufferId,
) -> LeftSide {
    let &Product { a, m, m_stride, k_stride, .. } = product;
    let space = builder.buffers[out].space;
    if let (Records::Each(width), false) = (builder.records(space, a), builder.precision == Precision::Bf16) {
        let as_it_lies = |stride, turned, record_step| {
            Some(LeftSide { left: Left::Buffer(a, offset), stride, turned, record_step })
        };
        let found = match (m, k_stride) {
            (1, 1) if width >= k => as_it_lies(width, false, None),
            (_, 1) if m > 1 && m_stride >= k && width == m * m_stride => as_it_lies(m_stride, false, None),
            (_, 1) if m > 1 && m_stride >= k => as_it_lies(m_stride, false, Some(width)),
            _ if m > 1 && m_stride == 1 && k_stride >= m => as_it_lies(k_stride, true, Some(width)),
            _ => None,
        };
        if let Some(found) = found {
            return found;
        }
    }
    let pack = Pack { source: a, offset, m, m_stride, k_stride, k, padded: k.next_multiple_of(PAD) };
    // Buffers are written before they are read and never after, so what was packed is still right.
    let known = builder.packed.as_ref() == Some(&(pack, space));
    if !known {
        builder.task(node, out, Do::Pack(pack));
        builder.packed = Some((pack, space));
    }
    LeftSide { left: Left::Packed, stride: pack.padded, turned: false, record_step: None }
}

/// Calls one after the other that read the same rows and write side by side.
fn groups(product: &Product) -> Vec<Group<'_>> {
    let calls = &product.calls[..];
    let columns = |call: &Call| product.weights[call.weights].columns();
    let mut groups: Vec<Group<'_>> = Vec::new();
    let mut first = 0;
    while first < calls.len() {
        let mut wide = columns(&calls[first]);
        let mut end = first + 1;
        while let Some(next) = calls.get(end) {
            let beside = next.a == calls[first].a && next.out == calls[first].out + wide;
            // Rows of a record must not run into each other.
            if !beside || (product.m > 1 && wide + columns(next) > product.m_out) {
                break;
            }
            wide += columns(next);
            end += 1;
        }
        groups.push(Group { calls: &calls[first..end], columns: wide });
        first = end;
    }
    groups
}

/// The bias of each group, if sums start from one and it is the same for all rows of a record.
fn biases(product: &Product, groups: &[Group<'_>]) -> Option<Vec<Vec<f32>>> {
    let Start::Bias(record) = &product.start else { return None };
    let of = |group: &Group<'_>| {
        let row = |row: usize| record.get(group.calls[0].out + row * product.m_out..)?.get(..group.columns);
        let first = row(0)?;
        (1..product.m).all(|other| row(other) == Some(first)).then(|| first.to_vec())
    };
    groups.iter().map(of).collect()
}

/// The matrices of a group side by side, row-major, rows `stride` apart.
fn weights(builder: &mut Builder, product: &Product, group: &Group<'_>, k: usize, stride: usize) -> usize {
    let matrices: Vec<&Packed> = group.calls.iter().map(|call| &product.weights[call.weights]).collect();
    let mut numbers = vec![0.0f32; k * stride];
    for (row, line) in numbers.chunks_exact_mut(stride).enumerate() {
        let values = matrices.iter().flat_map(|matrix| (0..matrix.columns()).map(move |n| matrix.at(row, n)));
        line.iter_mut().zip(values).for_each(|(to, value)| *to = value);
    }
    match builder.precision {
        Precision::F32 | Precision::Tf32 => builder.fixed.floats(numbers),
        Precision::Bf16 => builder.fixed.push(numbers.into_iter().flat_map(|x| bf16(x).to_le_bytes())),
    }
}

/// To the nearest, ties to even; NaN stays NaN. The kernels round in the same way.
pub(super) fn bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// By the kernel that takes any form, in f32.
fn by_kernel(builder: &mut Builder, node: &str, product: &Product, out: BufferId, activation: Activation) {
    let width = builder.buffers[out].width;
    let from = match &product.start {
        Start::Zero => Some(Origin::Fixed(builder.fixed.floats(vec![0.0; width]))),
        Start::Bias(record) => Some(Origin::Fixed(builder.fixed.floats(record.iter().copied()))),
        Start::Buffer(start) => Some(Origin::Buffer(*start)),
        Start::Here => None,
    };
    if let Some(from) = from {
        builder.task(node, out, Do::Start { from });
    }
    let (k, columns) = product.weights.first().map_or((0, 0), |w| (w.depth(), w.columns()));
    let matrix = k * columns;
    let numbers = product.weights.iter().flat_map(|weights| {
        (0..k).flat_map(move |row| (0..columns).map(move |column| weights.at(row, column)))
    });
    let weights = builder.fixed.floats(numbers.collect::<Vec<f32>>());
    let calls = product.calls.iter().flat_map(|call| [call.a, call.weights, call.out]);
    let calls = builder.fixed.words(calls.map(|at| at as u32).collect::<Vec<u32>>());
    let shape = ProductShape {
        m: product.m,
        m_stride: product.m_stride,
        m_out: product.m_out,
        k,
        k_stride: product.k_stride,
        columns,
        matrix,
        stride: columns,
        activation,
    };
    let (a, count) = (product.a, product.calls.len());
    builder.task(node, out, Do::Product { a, weights, calls, count, shape });
}

#[cfg(test)]
mod tests {
    use super::bf16;

    #[test]
    fn numbers_are_rounded_to_the_nearest_bf16() {
        for (x, expected) in [(1.0f32, 0x3f80), (-2.5, 0xc020), (0.0, 0), (f32::INFINITY, 0x7f80)] {
            assert_eq!(bf16(x), expected, "{x}");
        }
        // Ties go to the even one, both ways; what is beyond the greatest is infinite.
        assert_eq!(
            [0x3f80_8000, 0x3f81_8000, 0x3f80_8001].map(|b| bf16(f32::from_bits(b))),
            [0x3f80, 0x3f82, 0x3f81]
        );
        assert_eq!(bf16(f32::MAX), 0x7f80);
        assert!(f32::from_bits(u32::from(bf16(f32::from_bits(0x7f80_0001))) << 16).is_nan());
    }
}
