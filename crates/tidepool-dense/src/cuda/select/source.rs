//! The formula as CUDA C.

use std::fmt::Write;

use tidepool_types::{ModelSpec, Score, Side, UtilityOp};

/// Which outputs the formula of a contract speaks of, in the order of their first use; where candidates are ranked by
/// an output, that one.
pub(crate) fn formula_outputs(spec: &ModelSpec) -> Vec<usize> {
    match (spec.score, &spec.utility) {
        (Score::Output(output), _) => vec![output],
        (Score::Utility, Some(utility)) => {
            utility.names().iter().filter_map(|name| spec.output(name)).collect()
        }
        (Score::Utility, None) => Vec::new(),
    }
}

/// The whole source of a contract's kernels. No name of the contract stands in it: names are numbers here, so that
/// nothing that somebody wrote becomes code.
pub(crate) fn source(spec: &ModelSpec) -> String {
    let outputs = formula_outputs(spec);
    let sampled = if spec.score == Score::Utility && !outputs.is_empty() { "0" } else { "NONE" };
    let mut text = include_str!("../kernels/select.cu").to_owned();
    let mut line = |line: String| {
        text += &line;
        text.push('\n');
    };
    line(format!("\n#define FORMULA {}\n#define SAMPLED {sampled}", outputs.len()));
    line("static __device__ __forceinline__ u32 formula_output(u32 column) {".into());
    for (column, output) in outputs.iter().enumerate() {
        line(format!("    if (column == {column}) return {output};"));
    }
    line("    return 0;\n}".into());
    line(
        "static __device__ __forceinline__ double formula(const Select& s, const Batch& b, u32 request, u32 row) {"
            .into(),
    );
    for statement in statements(spec, &outputs) {
        line(format!("    {statement}"));
    }
    line("}".into());
    text + include_str!("../kernels/select_kernels.cu")
}

/// The body of the formula: a variable for each name, then one for each step.
fn statements(spec: &ModelSpec, outputs: &[usize]) -> Vec<String> {
    let calibrated =
        |column: usize| format!("calibrated(s, b, FORMULA, request, {column}, {}, row)", outputs[column]);
    let utility = match (spec.score, &spec.utility) {
        (Score::Output(_), _) => return vec![format!("return {};", calibrated(0))],
        // A contract is only ever read whole, with its formula.
        (Score::Utility, None) => return vec!["return not_a_number();".into()],
        (Score::Utility, Some(utility)) => utility,
    };
    let mut lines = Vec::new();
    for (at, name) in utility.names().iter().enumerate() {
        let value = match spec.output(name) {
            Some(output) => outputs.iter().position(|of| *of == output).map(calibrated),
            None => number(spec, name),
        };
        lines.push(format!("const double n{at} = {};", value.unwrap_or_else(|| "not_a_number()".into())));
    }
    let mut stack: Vec<String> = Vec::new();
    for (at, op) in utility.ops().iter().enumerate() {
        let mut pop = || stack.pop().unwrap_or_else(|| "not_a_number()".into());
        let value = match op {
            UtilityOp::Number(number) => {
                // By its bits: no text of a number is read by two compilers alike.
                let mut text = String::new();
                let _ = write!(text, "__longlong_as_double({:#018x}ll)", number.to_bits());
                text
            }
            UtilityOp::Name(name) => format!("n{name}"),
            UtilityOp::Negate => format!("-{}", pop()),
            UtilityOp::Log => format!("log_of({})", pop()),
            UtilityOp::Exp => format!("exp_of({}, 0.0)", pop()),
            UtilityOp::Sigmoid => format!("sigmoid_of({})", pop()),
            two => {
                let (right, left) = (pop(), pop());
                let function = match two {
                    UtilityOp::Add => "__dadd_rn",
                    UtilityOp::Subtract => "__dsub_rn",
                    UtilityOp::Multiply => "__dmul_rn",
                    UtilityOp::Divide => "__ddiv_rn",
                    UtilityOp::Min => "min_of",
                    UtilityOp::Max => "max_of",
                    _ => "pow_of",
                };
                format!("{function}({left}, {right})")
            }
        };
        lines.push(format!("const double v{at} = {value};"));
        stack.push(format!("v{at}"));
    }
    lines.push(format!("return {};", stack.pop().unwrap_or_else(|| "not_a_number()".into())));
    lines
}

/// A number of the request.
fn number(spec: &ModelSpec, name: &str) -> Option<String> {
    let at = spec.utility_inputs.iter().position(|input| input.name == name)?;
    let side = spec.utility_inputs[at].side;
    let before = spec.utility_inputs[..at].iter().filter(|input| input.side == side).count();
    Some(match side {
        Side::User => format!("(double)b.users[{before} * b.requests + request]"),
        Side::Candidate => format!("(double)b.candidates[(u64){before} * b.rows + row]"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_formula_is_written_step_by_step_and_without_its_names() {
        let spec = ModelSpec::from_toml(
            r#"schema_version = 1
            model = "ads"
            score = "utility"
            utility = "-`p; ctr` * max(bid, 0.5) / rate + sigmoid(pow(`p; ctr`, 2))"
            utility_inputs = [{ name = "rate", side = "user" }, { name = "bid", side = "candidate" }]
            inputs = [{ name = "x", side = "candidate", width = 1 }]
            outputs = [{ name = "other" }, { name = "p; ctr" }]"#,
        )
        .unwrap();
        assert_eq!(formula_outputs(&spec), [1]);
        let lines = statements(&spec, &[1]);
        assert_eq!(
            lines,
            [
                "const double n0 = calibrated(s, b, FORMULA, request, 0, 1, row);",
                "const double n1 = (double)b.candidates[(u64)0 * b.rows + row];",
                "const double n2 = (double)b.users[0 * b.requests + request];",
                "const double v0 = n0;",
                "const double v1 = -v0;",
                "const double v2 = n1;",
                "const double v3 = __longlong_as_double(0x3fe0000000000000ll);",
                "const double v4 = max_of(v2, v3);",
                "const double v5 = __dmul_rn(v1, v4);",
                "const double v6 = n2;",
                "const double v7 = __ddiv_rn(v5, v6);",
                "const double v8 = n0;",
                "const double v9 = __longlong_as_double(0x4000000000000000ll);",
                "const double v10 = pow_of(v8, v9);",
                "const double v11 = sigmoid_of(v10);",
                "const double v12 = __dadd_rn(v7, v11);",
                "return v12;",
            ]
        );
        assert!(source(&spec).contains("#define FORMULA 1\n#define SAMPLED 0\n"));
        assert!(!source(&spec).contains("p; ctr"));
    }
}
