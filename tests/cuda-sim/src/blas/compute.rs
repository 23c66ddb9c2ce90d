//! The arithmetic of a matmul: f32 sums whatever the inputs are, in an order of its own.
//!
//! A real library adds in another order, so callers must allow for that. What comes from bytes that nobody has
//! written is not written either: poison spreads, as in a memory checker, and is found where something depends on it.

use super::{Compute, Element, Layout, Matmul, Scalar};
use crate::{
    error::Code,
    exec::Failed,
    memory::{Content, Memory, POISON, Wrong},
};

/// Sums that run side by side, so that the order differs from that of a plain loop.
const LANES: usize = 8;

/// A matrix of the batch as lines of f32; `None` where an element was not written.
struct Loaded {
    layout: Layout,
    lines: Vec<f32>,
    /// Per element; empty where all are written.
    unwritten: Vec<bool>,
}

impl Loaded {
    fn new(memory: &Memory, layout: Layout, address: u64) -> Result<Self, Wrong> {
        let (count, along) = layout.lines();
        let size = layout.element.size();
        let mut lines = Vec::with_capacity((count * along) as usize);
        let mut unwritten = Vec::new();
        for line in 0..count {
            let content = memory.content(address + line * layout.leading as u64 * size, along * size)?;
            if content.written.contains(&false) {
                unwritten.resize(lines.len(), false);
                unwritten.extend(content.written.chunks(size as usize).map(|of| of.contains(&false)));
            }
            lines.extend(content.bytes.chunks_exact(size as usize).map(|of| decode(layout.element, of)));
        }
        if !unwritten.is_empty() {
            unwritten.resize(lines.len(), false);
        }
        Ok(Self { layout, lines, unwritten })
    }

    fn at(&self, row: usize, column: usize) -> usize {
        let (rows, columns) = (self.layout.rows as usize, self.layout.columns as usize);
        if self.layout.row_major { row * columns + column } else { column * rows + row }
    }

    /// The vectors along which products are summed, one after the other: rows of the matrix or of its transpose.
    fn vectors(&self, transposed: bool, compute: Compute) -> (usize, Vec<f32>, Vec<bool>) {
        let (rows, columns) = (self.layout.rows as usize, self.layout.columns as usize);
        let (count, along) = if transposed { (columns, rows) } else { (rows, columns) };
        let mut values = Vec::with_capacity(count * along);
        let mut broken = vec![false; count];
        for (vector, broken) in broken.iter_mut().enumerate() {
            for step in 0..along {
                let at = if transposed { self.at(step, vector) } else { self.at(vector, step) };
                values.push(rounded(compute, self.lines[at]));
                *broken |= self.unwritten.get(at).is_some_and(|of| *of);
            }
        }
        (along, values, broken)
    }
}

fn decode(element: Element, bytes: &[u8]) -> f32 {
    match (element, bytes) {
        (Element::F32, [a, b, c, d]) => f32::from_le_bytes([*a, *b, *c, *d]),
        (Element::F16, [a, b]) => half::f16::from_le_bytes([*a, *b]).to_f32(),
        (Element::Bf16, [a, b]) => half::bf16::from_le_bytes([*a, *b]).to_f32(),
        _ => f32::NAN,
    }
}

fn encode(element: Element, value: f32, into: &mut Vec<u8>) {
    match element {
        Element::F32 => into.extend(value.to_le_bytes()),
        Element::F16 => into.extend(half::f16::from_f32(value).to_le_bytes()),
        Element::Bf16 => into.extend(half::bf16::from_f32(value).to_le_bytes()),
    }
}

/// An input as the multiplier takes it.
pub(super) fn rounded(compute: Compute, value: f32) -> f32 {
    match compute {
        Compute::F32 => value,
        Compute::FastF16 => half::f16::from_f32(value).to_f32(),
        Compute::FastBf16 => half::bf16::from_f32(value).to_f32(),
        Compute::Tf32 if !value.is_finite() => value,
        Compute::Tf32 => {
            // To the nearest with ten bits of mantissa, ties to even.
            let bits = value.to_bits();
            let even = (bits >> 13) & 1;
            f32::from_bits(bits.wrapping_add(0xfff + even) & !0x1fff)
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let (of_a, of_b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = of_a.remainder().iter().zip(of_b.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in of_a.zip(of_b) {
        for lane in 0..LANES {
            sums[lane] += x[lane] * y[lane];
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// GELU by its approximation with tanh, as the epilogue has it.
pub(super) fn gelu(x: f32) -> f32 {
    let inner = 0.797_884_6 * (x + 0.044_715 * x * x * x);
    0.5 * x * (1.0 + inner.tanh())
}

fn scalar(memory: &Memory, of: Scalar) -> Result<f32, Wrong> {
    match of {
        Scalar::Host(value) => Ok(value),
        Scalar::Device(address) => {
            let mut bytes = [0; 4];
            memory.load(address, &mut bytes)?;
            Ok(f32::from_le_bytes(bytes))
        }
    }
}

/// Runs a matmul over device memory.
pub(crate) fn run(matmul: &Matmul, memory: &Memory) -> Result<(), Failed> {
    let (workspace, bytes) = matmul.workspace;
    if bytes > 0 {
        // A workspace that two streams share shows as a race, and what lay there before is gone.
        memory.spoil(workspace, bytes).map_err(|wrong| failed(&wrong, "workspace"))?;
    }
    let alpha = scalar(memory, matmul.alpha).map_err(|wrong| failed(&wrong, "alpha"))?;
    let beta = scalar(memory, matmul.beta).map_err(|wrong| failed(&wrong, "beta"))?;
    for batch in 0..matmul.layouts[3].batch {
        one(matmul, memory, (alpha, beta), i64::from(batch))?;
    }
    Ok(())
}

fn failed(wrong: &Wrong, what: &str) -> Failed {
    (wrong.code(), format!("{what}: {wrong}"))
}

fn one(matmul: &Matmul, memory: &Memory, (alpha, beta): (f32, f32), batch: i64) -> Result<(), Failed> {
    let description = &matmul.description;
    let load = |index: usize, name: &str| {
        let layout = matmul.layouts[index];
        let away = (batch * layout.stride).wrapping_mul(layout.element.size() as i64);
        let address = matmul.addresses[index].wrapping_add_signed(away);
        memory.check(address, layout.span() * layout.element.size()).map_err(|wrong| failed(&wrong, name))?;
        Loaded::new(memory, layout, address).map_err(|wrong| failed(&wrong, name))
    };
    let (a, b) = (load(0, "A")?, load(1, "B")?);
    let c = if beta == 0.0 { None } else { Some(load(2, "C")?) };
    let d = matmul.layouts[3];
    let (along, left, left_broken) = a.vectors(description.transposed[0], description.compute);
    let (_, right, right_broken) = b.vectors(!description.transposed[1], description.compute);
    let bias = bias(matmul, memory, batch).map_err(|wrong| failed(&wrong, "bias"))?;
    let away = (batch * d.stride).wrapping_mul(d.element.size() as i64);
    let to = matmul.addresses[3].wrapping_add_signed(away);
    let size = d.element.size();
    memory.check(to, d.span() * size).map_err(|wrong| failed(&wrong, "D"))?;
    let (lines, length) = d.lines();
    for line in 0..lines as usize {
        let mut content = Content { bytes: Vec::new(), written: Vec::new() };
        for step in 0..length as usize {
            let (row, column) = if d.row_major { (line, step) } else { (step, line) };
            let (x, y) = (&left[row * along..][..along], &right[column * along..][..along]);
            let mut value = alpha * dot(x, y);
            let mut broken = left_broken[row] || right_broken[column];
            if let Some(c) = &c {
                value += beta * c.lines[c.at(row, column)];
                broken |= c.unwritten.get(c.at(row, column)).is_some_and(|of| *of);
            }
            if let Some(bias) = &bias {
                value += bias.lines[row];
                broken |= bias.unwritten.get(row).is_some_and(|of| *of);
            }
            if description.epilogue.relu {
                value = if value < 0.0 { 0.0 } else { value };
            }
            if description.epilogue.gelu {
                value = gelu(value);
            }
            if broken {
                content.bytes.extend(std::iter::repeat_n(POISON, size as usize));
            } else {
                encode(d.element, value, &mut content.bytes);
            }
            content.written.extend(std::iter::repeat_n(!broken, size as usize));
        }
        let address = to + line as u64 * d.leading as u64 * size;
        memory.set_content(address, &content).map_err(|wrong| failed(&wrong, "D"))?;
    }
    Ok(())
}

/// The bias vector: an element for each row of D, added along its columns.
fn bias(matmul: &Matmul, memory: &Memory, batch: i64) -> Result<Option<Loaded>, Wrong> {
    let (description, d) = (&matmul.description, matmul.layouts[3]);
    if !description.epilogue.bias {
        return Ok(None);
    }
    let element = description.bias_type.unwrap_or(d.element);
    let away = (batch * description.bias_stride).wrapping_mul(element.size() as i64);
    let (rows, leading) = (d.rows, d.rows as i64);
    let layout = Layout { element, rows, columns: 1, leading, row_major: false, batch: 1, stride: 0 };
    Loaded::new(memory, layout, description.bias.wrapping_add_signed(away)).map(Some)
}

impl From<Failed> for super::Status {
    fn from((code, _): Failed) -> Self {
        if code == Code::INVALID_VALUE { Self::InvalidValue } else { Self::ExecutionFailed }
    }
}
