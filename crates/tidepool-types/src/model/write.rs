//! The contract as text, in one way only but for its formula: a hash of it is the contract's identity, so it must not
//! depend on how some library likes to write TOML this year.

use std::fmt::{Display, Write};

use super::{
    Curve, Hashed, InputSource, InputSpec, ModelSpec, Stage, Transform, UnknownFeatures, transform::nearest,
};
use crate::pooling::Pooling;

/// The whole document, with its formula written like this.
pub(super) fn document(spec: &ModelSpec, utility: Option<&str>) -> String {
    let mut out = Text::default();
    out.key("schema_version", ModelSpec::SCHEMA_VERSION);
    out.key("model", quoted(&spec.model));
    out.key("score", quoted(spec.score_name()));
    if let Some(utility) = utility {
        out.key("utility", quoted(utility));
    }
    if spec.top_k > 0 {
        out.key("top_k", spec.top_k);
    }
    if spec.unknown_features == UnknownFeatures::Ignore {
        out.key("unknown_features", quoted("ignore"));
    }
    for input in &spec.inputs {
        input_of(&mut out, input);
    }
    for input in &spec.utility_inputs {
        out.table("utility_inputs");
        out.key("name", quoted(&input.name));
        out.key("side", quoted(input.side.as_str()));
    }
    for output in &spec.outputs {
        out.table("outputs");
        out.key("name", quoted(&output.name));
    }
    for calibration in &spec.calibrations {
        out.table("calibrations");
        out.key("output", quoted(&spec.outputs[calibration.output].name));
        if !calibration.surface.is_empty() {
            out.key("surface", quoted(&calibration.surface));
        }
        out.key("kind", quoted(calibration.curve.kind()));
        match &calibration.curve {
            Curve::Platt { a, b } | Curve::Linear { a, b } => {
                out.key("a", decimal(*a));
                out.key("b", decimal(*b));
            }
            Curve::Isotonic { points } => {
                let points = points.iter().map(|(x, y)| format!("[{}, {}]", decimal(*x), decimal(*y)));
                out.key("points", list(points));
            }
        }
    }
    out.0
}

fn input_of(out: &mut Text, input: &InputSpec) {
    out.table("inputs");
    out.key("name", quoted(&input.name));
    if input.feature != input.name {
        out.key("feature", quoted(&input.feature));
    }
    out.key("side", quoted(input.side.as_str()));
    match &input.source {
        InputSource::Pooled { table, pooling } => {
            out.key("table", quoted(table));
            if *pooling != Pooling::Sum {
                out.key("pooling", quoted(pooling.as_str()));
            }
        }
        InputSource::Sequence { table, max_len, mask } => {
            out.key("table", quoted(table));
            out.key("sequence", max_len);
            if let Some(mask) = mask {
                out.key("mask", quoted(mask));
            }
        }
        InputSource::Dense { width } => out.key("width", width),
    }
    if !input.transform.is_identity() {
        out.key("transform", transform(&input.transform));
    }
}

fn transform(transform: &Transform) -> String {
    list(transform.stages().iter().map(|stage| {
        let rest = match stage {
            Stage::Hash { of: Hashed::Text, seed } => format!("seed = {seed}"),
            Stage::Hash { of: Hashed::Ids, seed } => format!("of = \"ids\", seed = {seed}"),
            Stage::Modulo { n } => format!("n = {n}"),
            Stage::Last { n } => format!("n = {n}"),
            Stage::Default { id } => format!("id = {id}"),
            Stage::Bucketize { boundaries } => {
                format!("boundaries = {}", list(boundaries.iter().map(|boundary| decimal_f32(*boundary))))
            }
        };
        format!("{{ op = \"{}\", {rest} }}", stage.op())
    }))
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn table(&mut self, name: &str) {
        // Writing to a string cannot fail.
        let _infallible = write!(self.0, "\n[[{name}]]\n");
    }

    fn key(&mut self, key: &str, value: impl Display) {
        let _infallible = writeln!(self.0, "{key} = {value}");
    }
}

fn list(entries: impl Iterator<Item = String>) -> String {
    format!("[{}]", entries.collect::<Vec<_>>().join(", "))
}

fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// The shortest decimal that reads back as the same number. Zero has no sign.
fn decimal(number: f64) -> String {
    format!("{:?}", number + 0.0)
}

/// The shortest decimal that reads back as the same f32, also by way of an f64. Zero has no sign.
fn decimal_f32(number: f32) -> String {
    let number = number + 0.0;
    let short = format!("{number:?}");
    let same = short.parse().is_ok_and(|read: f64| nearest(read).to_bits() == number.to_bits());
    if same { short } else { decimal(f64::from(number)) }
}
