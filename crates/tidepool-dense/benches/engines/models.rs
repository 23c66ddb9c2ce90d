//! What is timed: models of each kind at a size that is served, whose weights are drawn since it does not matter here
//! what they compute, and releases, such as those of the reference models.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use prost::Message;
use tidepool_dense::DenseModel;
use tidepool_types::{ModelSpec, Name};
use tract_onnx::pb::{
    GraphProto, ModelProto, ValueInfoProto, tensor_shape_proto::dimension::Value as Dim,
    type_proto::Value as Type,
};

use crate::onnx::{Graph, fixed, int, ints, open};

/// A graph whose inputs have these widths.
fn with(inputs: &[(&str, i64)]) -> Graph {
    inputs
        .iter()
        .fold(Graph::new(), |graph, (name, width)| graph.input(name, &[open("batch"), fixed(*width)]))
}

/// A graph that grows by layers.
struct Builder(Graph);

impl Builder {
    fn layer(self, x: &str, out: &str, (from, to): (i64, i64), act: &str) -> Self {
        let (w, b, sum) = (format!("{out}.w"), format!("{out}.b"), format!("{out}.sum"));
        let graph = self.0.random(&w, &[from, to]).random(&b, &[to]).node("Gemm", &[x, &w, &b], &sum, &[]);
        Self(graph.node(act, &[&sum], out, &[]))
    }

    fn node(self, op: &str, inputs: &[&str], out: &str) -> Self {
        Self(self.0.node(op, inputs, out, &[]))
    }

    fn head(self, x: &str, out: &str, from: i64) -> Self {
        let built = self.layer(x, out, (from, 1), "Sigmoid");
        Self(built.0.output(out, &[open("batch"), fixed(1)]))
    }
}

/// DCN-v2 of three full crosses and a mixture of four experts under two heads: 2.1 million parameters.
fn dcn_mmoe() -> Builder {
    let wide = 448;
    let graph = with(&[("user", 128), ("item", 256), ("context", 64)]);
    let graph = graph.node("Concat", &["user", "item", "context"], "x0", &[int("axis", 1)]);
    let mut built = Builder(graph);
    for cross in 0..3 {
        let (x, made) = (format!("x{cross}"), format!("x{}", cross + 1));
        let (sum, product) = (format!("c{cross}"), format!("p{cross}"));
        built = built.layer(&x, &sum, (wide, wide), "Identity");
        built = built.node("Mul", &["x0", &sum], &product).node("Add", &[&product, &x], &made);
    }
    let (experts, hidden) = (4, 512);
    built.0 = built
        .0
        .integers("zero", &[1], &[0])
        .integers("one", &[1], &[1])
        .node("Unsqueeze", &["x3", "zero"], "wide", &[])
        .random("e.w", &[experts, wide, hidden])
        .random("e.b", &[experts, 1, hidden])
        .node("MatMul", &["wide", "e.w"], "e.m", &[])
        .node("Add", &["e.m", "e.b"], "e.s", &[])
        .node("Relu", &["e.s"], "e", &[])
        .node("Transpose", &["e"], "experts", &[ints("perm", &[1, 0, 2])]);
    for task in ["ctr", "cvr"] {
        let name = |part: &str| format!("{task}.{part}");
        built = built.layer("x3", &name("gm"), (wide, experts), "Identity");
        built.0 = built
            .0
            .node("Softmax", &[&name("gm")], &name("g"), &[int("axis", -1)])
            .node("Unsqueeze", &[&name("g"), "one"], &name("gu"), &[])
            .node("MatMul", &[&name("gu"), "experts"], &name("mix"), &[])
            .node("Squeeze", &[&name("mix"), "one"], &name("mixed"), &[]);
        built = built.layer(&name("mixed"), &name("t1"), (hidden, 256), "Relu");
        built = built.layer(&name("t1"), &name("t2"), (256, 128), "Relu").head(&name("t2"), task, 128);
    }
    built
}

/// DLRM: 26 vectors and 13 numbers, the dot products of all pairs.
fn dlrm() -> Builder {
    let (dim, sparse) = (64, 26);
    let mut inputs: Vec<(String, i64)> = (0..sparse).map(|i| (format!("f{i}"), dim)).collect();
    inputs.push(("numbers".into(), 13));
    let borrowed: Vec<(&str, i64)> = inputs.iter().map(|(name, width)| (name.as_str(), *width)).collect();
    let mut built = Builder(with(&borrowed));
    built = built.layer("numbers", "b1", (13, 512), "Relu").layer("b1", "b2", (512, 256), "Relu");
    built = built.layer("b2", "bottom", (256, dim), "Relu");
    built.0 = built.0.integers("one", &[1], &[1]).node("Unsqueeze", &["bottom", "one"], "b", &[]);
    let mut rows = vec!["b".to_owned()];
    for at in 0..sparse {
        let (from, to) = (format!("f{at}"), format!("r{at}"));
        built.0 = built.0.node("Unsqueeze", &[&from, "one"], &to, &[]);
        rows.push(to);
    }
    let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
    let count = sparse + 1;
    let below: Vec<i64> = (0..count).flat_map(|i| (0..i).map(move |j| i * count + j)).collect();
    let pairs = below.len() as i64;
    built.0 = built
        .0
        .node("Concat", &rows, "stack", &[int("axis", 1)])
        .node("Transpose", &["stack"], "turned", &[ints("perm", &[0, 2, 1])])
        .node("MatMul", &["stack", "turned"], "dots", &[])
        .integers("flat", &[2], &[0, count * count])
        .node("Reshape", &["dots", "flat"], "all", &[])
        .integers("below", &[pairs], &below)
        .node("Gather", &["all", "below"], "pairs", &[int("axis", 1)])
        .node("Concat", &["bottom", "pairs"], "joined", &[int("axis", 1)]);
    built = built.layer("joined", "t1", (dim + pairs, 512), "Relu").layer("t1", "t2", (512, 256), "Relu");
    built.head("t2", "ctr", 256)
}

/// Two towers of three layers.
fn two_tower() -> Builder {
    let mut built = Builder(with(&[("user", 256), ("item", 256)]));
    for side in ["user", "item"] {
        let name = |layer: usize| format!("{side}{layer}");
        built = built.layer(side, &name(1), (256, 512), "Relu").layer(&name(1), &name(2), (512, 256), "Relu");
        built = built.layer(&name(2), &name(3), (256, 128), "Tanh");
    }
    built = built.node("Mul", &["user3", "item3"], "product");
    built.0 = built
        .0
        .integers("one", &[1], &[1])
        .node("ReduceSum", &["product", "one"], "dot", &[int("keepdims", 1)])
        .node("Sigmoid", &["dot"], "ctr", &[])
        .output("ctr", &[open("batch"), fixed(1)]);
    built
}

/// A model to be timed.
pub(crate) struct Wanted {
    pub(crate) name: String,
    /// The ONNX file.
    pub(crate) path: PathBuf,
    pub(crate) spec: ModelSpec,
    /// Elements of a row of each of the graph's inputs.
    widths: BTreeMap<String, u32>,
}

impl Wanted {
    fn new(name: String, path: PathBuf, text: &str, graph: &GraphProto) -> Self {
        let spec = ModelSpec::from_toml(text).unwrap();
        let widths = graph.input.iter().map(|input| (input.name.clone(), width(input) as u32));
        Self { name, path, spec, widths: widths.collect() }
    }

    /// Loads it; tables have vectors of whatever width the graph takes.
    pub(crate) fn load(&self) -> DenseModel {
        let dim_of = |table: &Name| {
            let input = self.spec.inputs.iter().find(|input| input.source.table() == Some(table))?;
            self.widths.get(input.name.as_str()).copied()
        };
        DenseModel::load(&self.path, &self.spec, &dim_of).unwrap()
    }
}

/// The models of this bench, written into `dir`.
pub(crate) fn drawn(dir: &Path) -> Vec<Wanted> {
    let all = [("dcn_mmoe", dcn_mmoe()), ("dlrm", dlrm()), ("two_tower", two_tower())];
    let all = all.map(|(name, built)| {
        let path = dir.join(format!("{name}.onnx"));
        let wanted = Wanted::new(name.into(), path, &contract(&built.0), &built.0.0);
        fs::write(&wanted.path, built.0.bytes()).unwrap();
        wanted
    });
    all.into()
}

/// The model of a release: a folder with `model.onnx` and `model.toml`.
pub(crate) fn released(folder: &Path) -> Wanted {
    let path = folder.join("model.onnx");
    let file = ModelProto::decode(&fs::read(&path).unwrap()[..]).unwrap();
    let text = fs::read_to_string(folder.join("model.toml")).unwrap();
    let name = ModelSpec::from_toml(&text).unwrap().model.to_string();
    Wanted::new(name, path, &text, &file.graph.unwrap())
}

fn width(input: &ValueInfoProto) -> i64 {
    let Some(Type::TensorType(tensor)) = input.r#type.as_ref().and_then(|t| t.value.as_ref()) else {
        panic!("an input without a type")
    };
    match tensor.shape.as_ref().unwrap().dim[1].value {
        Some(Dim::DimValue(width)) => width,
        _ => panic!("an input without a width"),
    }
}

/// A contract in which all inputs are numbers; the input `user`, and half of DLRM's vectors, are the user's.
fn contract(graph: &Graph) -> String {
    use std::fmt::Write as _;
    let mut text = format!("schema_version = 1\nmodel = \"m\"\nscore = {:?}\n", graph.0.output[0].name);
    for input in &graph.0.input {
        let of_user = input.name == "user"
            || input.name.strip_prefix('f').is_some_and(|n| n.parse().is_ok_and(|n: u32| n < 13));
        let side = if of_user { "user" } else { "candidate" };
        let width = width(input);
        writeln!(text, "[[inputs]]\nname = {:?}\nside = {side:?}\nwidth = {width}", input.name).unwrap();
    }
    for output in &graph.0.output {
        writeln!(text, "[[outputs]]\nname = {:?}", output.name).unwrap();
    }
    text
}
