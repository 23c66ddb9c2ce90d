//! Chains of element-wise operations as CUDA C: one kernel for each, with everything that the model fixes written into
//! it. The text is a function of the plan alone, so the same model always gives the same text, which is what the
//! cache of compiled kernels goes by.
//!
//! A thread makes one number. Numbers are written by their bits. The functions are those of `kernels/math.cu`, which
//! are the CPU's, and nothing is contracted: the kernels give the bits that the CPU gives.

use std::fmt::Write;

use crate::{
    cpu::{Binary, Instruction, Unary},
    plan::view::Walk,
};

/// Threads of a block of a generated kernel.
pub(crate) const BLOCK: u32 = 256;

/// Where an operand of a chain has its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Records {
    /// One for all.
    One,
    /// One each, so many elements apart.
    Each(usize),
    /// That of the row's request, so many elements apart.
    OfRequest(usize),
}

/// The kernel of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MapKernel {
    /// The text of the function.
    pub(crate) text: String,
    /// Numbers that it makes per record.
    pub(crate) per_record: usize,
    /// Where operands begin in each inner loop, when that is no even progression: the last argument but two.
    pub(crate) table: Option<Vec<u32>>,
}

/// Where each operand of each inner loop begins.
enum Starts {
    /// `first + loop * step`, per operand.
    Even(Vec<(u32, u32)>),
    Table(Vec<u32>),
}

fn starts(walk: &Walk) -> (usize, Starts) {
    let loops: Vec<&[u32]> = walk.loops().collect();
    let count = loops.len();
    let operands = walk.strides.len();
    let even: Option<Vec<(u32, u32)>> = (0..operands)
        .map(|operand| {
            let first = loops.first().map_or(0, |l| l[operand]);
            let step = loops.get(1).map_or(Some(0), |l| l[operand].checked_sub(first))?;
            let fits = |(at, l): (usize, &&[u32])| {
                u64::from(l[operand]) == u64::from(first) + at as u64 * u64::from(step)
            };
            loops.iter().enumerate().all(fits).then_some((first, step))
        })
        .collect();
    match even {
        Some(even) => (count, Starts::Even(even)),
        None => (count, Starts::Table(loops.concat())),
    }
}

/// A chain of a kernel.
#[derive(Clone, Debug)]
pub(crate) struct Part<'a> {
    pub(crate) walk: &'a Walk,
    /// What its instructions load, by number.
    pub(crate) operands: Vec<Records>,
    pub(crate) instructions: &'a [Instruction],
}

impl Part<'_> {
    /// Whether it may share a kernel with others: it needs no table.
    pub(crate) fn shares(&self) -> bool {
        matches!(starts(self.walk).1, Starts::Even(_))
    }
}

/// Writes the kernel `name` of chains that write different parts of one buffer: those of a concatenation are one launch. Its
/// arguments: the result, the operands of all in order, the table if there is one (of a chain alone), the requests of
/// rows, the number of records.
pub(crate) fn map(name: &str, out_width: usize, parts: &[Part<'_>]) -> MapKernel {
    let laid: Vec<(usize, Starts)> = parts.iter().map(|part| starts(part.walk)).collect();
    let sizes: Vec<usize> =
        laid.iter().zip(parts).map(|((loops, _), part)| loops * part.walk.inner).collect();
    let per_record: usize = sizes.iter().sum();
    let mut text = format!("extern \"C\" __global__ void __launch_bounds__({BLOCK}) {name}(float *out");
    let operands: Vec<Records> = parts.iter().flat_map(|part| part.operands.iter().copied()).collect();
    for operand in 0..operands.len() {
        let _ = write!(text, ", const float *a{operand}");
    }
    let table = laid.iter().find_map(|(_, starts)| match starts {
        Starts::Table(table) => Some(table.clone()),
        Starts::Even(_) => None,
    });
    if table.is_some() {
        text.push_str(", const u32 *table");
    }
    text.push_str(", const u32 *request_of, u32 records) {\n");
    let _ = writeln!(text, "    u32 t = blockIdx.x * {BLOCK}u + threadIdx.x;");
    // The number of threads fits 32 bits: the caller sees to it.
    let _ = writeln!(text, "    if (t >= records * {per_record}u) return;");
    let _ = writeln!(text, "    u32 n = t / {per_record}u, e = t % {per_record}u;");
    if operands.iter().any(|records| matches!(records, Records::OfRequest(_))) {
        text.push_str("    u32 request = request_of[n];\n");
    }
    let (mut first, mut operand) = (0, 0);
    for (number, (part, (_, starts))) in parts.iter().zip(&laid).enumerate() {
        if number + 1 < parts.len() {
            let _ = writeln!(text, "    if (e < {}u) {{", first + sizes[number]);
        }
        if first > 0 {
            let _ = writeln!(text, "    e -= {first}u;");
        }
        chain(&mut text, part, starts, operand, out_width);
        if number + 1 < parts.len() {
            text.push_str("    return;\n    }\n");
        }
        first += sizes[number];
        operand += part.operands.len();
    }
    text.push_str("}\n");
    MapKernel { text, per_record, table }
}

/// The statements of one chain, whose first operand is the kernel's of number `first`.
fn chain(text: &mut String, part: &Part<'_>, starts: &Starts, first: usize, out_width: usize) {
    let &Part { walk, ref operands, instructions } = part;
    let _ = writeln!(text, "    u32 l = e / {inner}u, i = e % {inner}u;", inner = walk.inner);
    let place = |operand: usize| -> String {
        let start = match starts {
            Starts::Even(even) => match even[operand] {
                (first, 0) => format!("{first}u"),
                (first, step) => format!("({first}u + l * {step}u)"),
            },
            Starts::Table(_) => format!("table[l * {}u + {operand}u]", walk.strides.len()),
        };
        format!("{start} + i * {}u", walk.strides[operand])
    };
    for (at, instruction) in instructions.iter().enumerate() {
        let value = match *instruction {
            Instruction::Load(load) => {
                let record = match operands[load] {
                    Records::One => String::new(),
                    Records::Each(width) => format!("(u64)n * {width}u + "),
                    Records::OfRequest(width) => format!("(u64)request * {width}u + "),
                };
                format!("a{}[{record}{}]", first + load, place(load + 1))
            }
            Instruction::Fill(value) => number(value),
            Instruction::Unary(op, a) => unary(op, &format!("r{a}")),
            Instruction::Binary(op, a, b) => binary(op, &format!("r{a}"), &format!("r{b}")),
            Instruction::Select(c, t, f) => format!("r{c} != 0.0f ? r{t} : r{f}"),
        };
        let _ = writeln!(text, "    float r{at} = {value};");
    }
    let last = instructions.len().saturating_sub(1);
    let _ = writeln!(text, "    out[(u64)n * {out_width}u + {}] = r{last};", place(0));
}

/// A number by its bits.
fn number(value: f32) -> String {
    format!("bits(0x{:08x}u)", value.to_bits())
}

fn yes_or_no(condition: &str) -> String {
    format!("({condition}) ? 1.0f : 0.0f")
}

fn unary(op: Unary, a: &str) -> String {
    match op {
        Unary::Abs => format!("fabsf({a})"),
        Unary::Ceil => format!("ceilf({a})"),
        Unary::Cos => format!("cosf({a})"),
        Unary::Erf => format!("tp_erf({a})"),
        Unary::Exp => format!("tp_exp({a})"),
        Unary::Floor => format!("floorf({a})"),
        Unary::Gelu => format!("tp_gelu({a})"),
        Unary::GeluTanh => format!("tp_gelu_tanh({a})"),
        Unary::HardSwish => format!("tp_hard_swish({a})"),
        Unary::LeakyRelu(alpha) => format!("{a} < 0.0f ? {} * {a} : {a}", number(alpha)),
        Unary::Ln => format!("tp_ln({a})"),
        Unary::Neg => format!("-{a}"),
        Unary::Not => yes_or_no(&format!("{a} == 0.0f")),
        Unary::Powi(n) => format!("tp_power({a}, {n})"),
        Unary::Powf(n) => format!("powf({a}, {})", number(n)),
        Unary::Recip => format!("1.0f / {a}"),
        Unary::Round => format!("roundf({a})"),
        Unary::RoundEven => format!("rintf({a})"),
        Unary::Rsqrt => format!("1.0f / sqrtf({a})"),
        Unary::Sigmoid => format!("tp_sigmoid({a})"),
        Unary::Sign => format!("tp_sign({a})"),
        Unary::Silu => format!("{a} * tp_sigmoid({a})"),
        Unary::Sin => format!("sinf({a})"),
        Unary::Sqrt => format!("sqrtf({a})"),
        Unary::Square => format!("{a} * {a}"),
        Unary::Tanh => format!("tp_tanh({a})"),
        Unary::Truth => yes_or_no(&format!("{a} != 0.0f")),
    }
}

fn binary(op: Binary, a: &str, b: &str) -> String {
    match op {
        Binary::Add => format!("{a} + {b}"),
        Binary::And => yes_or_no(&format!("{a} != 0.0f && {b} != 0.0f")),
        Binary::Div => format!("{a} / {b}"),
        Binary::Equal => yes_or_no(&format!("{a} == {b}")),
        Binary::Greater => yes_or_no(&format!("{a} > {b}")),
        Binary::GreaterEqual => yes_or_no(&format!("{a} >= {b}")),
        Binary::Less => yes_or_no(&format!("{a} < {b}")),
        Binary::LessEqual => yes_or_no(&format!("{a} <= {b}")),
        Binary::Max => format!("tp_max({a}, {b})"),
        Binary::Min => format!("tp_min({a}, {b})"),
        Binary::Mul => format!("{a} * {b}"),
        Binary::NotEqual => yes_or_no(&format!("{a} != {b}")),
        Binary::Or => yes_or_no(&format!("{a} != 0.0f || {b} != 0.0f")),
        Binary::Pow => format!("powf({a}, {b})"),
        Binary::Sub => format!("{a} - {b}"),
        Binary::Xor => yes_or_no(&format!("({a} != 0.0f) != ({b} != 0.0f)")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_becomes_one_kernel_whose_text_does_not_change() {
        let walk = Walk::new(&[27], &[0, 3, 0], &[vec![1], vec![1], vec![0]]).unwrap();
        let instructions = [
            Instruction::Load(0),
            Instruction::Load(1),
            Instruction::Binary(Binary::Mul, 0, 1),
            Instruction::Fill(0.1),
            Instruction::Binary(Binary::Max, 2, 3),
            Instruction::Unary(Unary::Sigmoid, 4),
        ];
        let operands = vec![Records::Each(30), Records::OfRequest(1)];
        let kernel = map("map_7", 27, &[Part { walk: &walk, operands, instructions: &instructions }]);
        assert_eq!((kernel.per_record, &kernel.table), (27, &None));
        assert_eq!(
            kernel.text,
            "extern \"C\" __global__ void __launch_bounds__(256) map_7(float *out, const float *a0, const float *a1, \
             const u32 *request_of, u32 records) {\n    \
             u32 t = blockIdx.x * 256u + threadIdx.x;\n    \
             if (t >= records * 27u) return;\n    \
             u32 n = t / 27u, e = t % 27u;\n    \
             u32 request = request_of[n];\n    \
             u32 l = e / 27u, i = e % 27u;\n    \
             float r0 = a0[(u64)n * 30u + 3u + i * 1u];\n    \
             float r1 = a1[(u64)request * 1u + 0u + i * 0u];\n    \
             float r2 = r0 * r1;\n    \
             float r3 = bits(0x3dcccccdu);\n    \
             float r4 = tp_max(r2, r3);\n    \
             float r5 = tp_sigmoid(r4);\n    \
             out[(u64)n * 27u + 0u + i * 1u] = r5;\n}\n"
        );
    }

    #[test]
    fn loops_are_a_progression_where_they_are_one_and_a_table_where_not() {
        let load = [Instruction::Load(0)];
        let even = Walk::new(&[2, 3], &[0, 7], &[vec![3, 1], vec![1, 2]]).unwrap();
        let part = Part { walk: &even, operands: vec![Records::Each(12)], instructions: &load };
        let kernel = map("map_0", 6, std::slice::from_ref(&part));
        assert!(kernel.text.contains("a0[(u64)n * 12u + (7u + l * 1u) + i * 2u]"), "{}", kernel.text);
        let uneven = Walk::new(&[2, 2, 3], &[0, 0], &[vec![6, 3, 1], vec![1, 10, 2]]).unwrap();
        let other = Part { walk: &uneven, operands: vec![Records::One], instructions: &load };
        assert_eq!((part.shares(), other.shares()), (true, false));
        let kernel = map("map_1", 12, &[other]);
        assert_eq!(kernel.table, Some(vec![0, 0, 3, 10, 6, 1, 9, 11]));
        assert!(kernel.text.contains("a0[table[l * 2u + 1u] + i * 2u]"), "{}", kernel.text);
    }

    #[test]
    fn the_parts_of_a_concatenation_are_one_kernel() {
        let load = [Instruction::Load(0)];
        let walks = [0, 3].map(|at| Walk::new(&[3], &[at, 0], &[vec![1], vec![1]]).unwrap());
        let parts =
            walks.each_ref().map(|walk| Part { walk, operands: vec![Records::Each(3)], instructions: &load });
        let kernel = map("map_2", 6, &parts);
        assert_eq!(kernel.per_record, 6);
        let text = &kernel.text;
        assert!(
            text.contains("map_2(float *out, const float *a0, const float *a1, const u32 *request_of"),
            "{text}"
        );
        let (first, second) = text.split_once("return;\n    }\n").unwrap();
        assert!(first.contains("if (e < 3u) {") && first.contains("float r0 = a0["), "{text}");
        assert!(
            second.contains("e -= 3u;")
                && second.contains("float r0 = a1[")
                && second.contains("3u + i * 1u] = r0;"),
            "{text}"
        );
    }
}
