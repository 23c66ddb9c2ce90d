//! Ranking models in miniature, as exporters write them: every input is `[batch, width]`.

use crate::onnx::{Graph, fixed, float, int, ints, open};

/// A graph with these inputs.
fn with(inputs: &[(&str, i64)]) -> Graph {
    inputs
        .iter()
        .fold(Graph::new(), |graph, (name, width)| graph.input(name, &[open("batch"), fixed(*width)]))
}

/// The inputs that most have: a user's vector, an item's, and numbers of the candidate.
pub(crate) fn usual() -> Graph {
    with(&[("user", 8), ("item", 16), ("context", 3)])
}

/// `out = act(x W + b)` as one Gemm.
fn layer(graph: Graph, x: &str, out: &str, from: i64, to: i64, act: &str) -> Graph {
    let (w, b, sum) = (format!("{out}.w"), format!("{out}.b"), format!("{out}.sum"));
    let graph = graph.random(&w, &[from, to]).random(&b, &[to]).node("Gemm", &[x, &w, &b], &sum, &[]);
    graph.node(act, &[&sum], out, &[])
}

/// A head: one probability per row.
fn head(graph: Graph, x: &str, out: &str, from: i64) -> Graph {
    layer(graph, x, out, from, 1, "Sigmoid").output(out, &[open("batch"), fixed(1)])
}

/// DCN-v2 (a full cross, then one of low rank), a mixture of three experts, and two heads.
pub(crate) fn dcn_mmoe() -> Graph {
    let mut graph = usual()
        .node("Concat", &["user", "item", "context"], "x0", &[int("axis", 1)])
        .random("c1.w", &[27, 27])
        .random("c1.b", &[27])
        .node("MatMul", &["x0", "c1.w"], "c1.m", &[])
        .node("Add", &["c1.m", "c1.b"], "c1.s", &[])
        .node("Mul", &["x0", "c1.s"], "c1.p", &[])
        .node("Add", &["c1.p", "x0"], "x1", &[])
        .random("c2.u", &[27, 5])
        .random("c2.v", &[5, 27])
        .random("c2.b", &[27])
        .node("MatMul", &["x1", "c2.u"], "c2.low", &[])
        .node("Gemm", &["c2.low", "c2.v", "c2.b"], "c2.s", &[])
        .node("Mul", &["x0", "c2.s"], "c2.p", &[])
        .node("Add", &["c2.p", "x1"], "x2", &[])
        .integers("zero", &[1], &[0])
        .integers("one", &[1], &[1])
        .node("Unsqueeze", &["x2", "zero"], "wide", &[])
        .random("e.w", &[3, 27, 20])
        .random("e.b", &[3, 1, 20])
        .node("MatMul", &["wide", "e.w"], "e.m", &[])
        .node("Add", &["e.m", "e.b"], "e.s", &[])
        .node("Relu", &["e.s"], "e", &[])
        .node("Transpose", &["e"], "experts", &[ints("perm", &[1, 0, 2])]);
    for task in ["ctr", "cvr"] {
        let name = |part: &str| format!("{task}.{part}");
        graph = graph
            .random(&name("gw"), &[27, 3])
            .node("MatMul", &["x2", &name("gw")], &name("gm"), &[])
            .node("Softmax", &[&name("gm")], &name("g"), &[int("axis", -1)])
            .node("Unsqueeze", &[&name("g"), "one"], &name("gu"), &[])
            .node("MatMul", &[&name("gu"), "experts"], &name("mix"), &[])
            .node("Squeeze", &[&name("mix"), "one"], &name("mixed"), &[]);
        graph = layer(graph, &name("mixed"), &name("tower"), 20, 12, "Relu");
        graph = head(graph, &name("tower"), task, 12);
    }
    graph
}

/// DLRM: a bottom network, the dot products of all pairs, a top network.
pub(crate) fn dlrm() -> Graph {
    let graph = with(&[("user", 8), ("item", 8), ("context", 3)]);
    let graph = layer(graph, "context", "bottom", 3, 8, "Relu")
        .integers("one", &[1], &[1])
        .node("Unsqueeze", &["user", "one"], "u", &[])
        .node("Unsqueeze", &["item", "one"], "i", &[])
        .node("Unsqueeze", &["bottom", "one"], "b", &[])
        .node("Concat", &["b", "u", "i"], "stack", &[int("axis", 1)])
        .node("Transpose", &["stack"], "turned", &[ints("perm", &[0, 2, 1])])
        .node("MatMul", &["stack", "turned"], "dots", &[])
        .integers("flat", &[2], &[0, 9])
        .node("Reshape", &["dots", "flat"], "all", &[])
        .integers("below", &[3], &[3, 6, 7])
        .node("Gather", &["all", "below"], "pairs", &[int("axis", 1)])
        .node("Concat", &["bottom", "pairs"], "joined", &[int("axis", 1)]);
    let graph = layer(graph, "joined", "top", 11, 16, "Relu");
    head(graph, "top", "ctr", 16)
}

/// DLRM as `torch` writes `z[:, li, lj]`: the batch is moved behind, and GatherND takes coordinates.
pub(crate) fn dlrm_gather_nd() -> Graph {
    let graph = with(&[("user", 8), ("item", 8)])
        .integers("one", &[1], &[1])
        .node("Unsqueeze", &["user", "one"], "u", &[])
        .node("Unsqueeze", &["item", "one"], "i", &[])
        .node("Concat", &["u", "i"], "stack", &[int("axis", 1)])
        .node("Transpose", &["stack"], "turned", &[ints("perm", &[0, 2, 1])])
        .node("MatMul", &["stack", "turned"], "dots", &[])
        .node("Transpose", &["dots"], "behind", &[ints("perm", &[1, 2, 0])])
        .integers("pairs", &[3, 2], &[0, 0, 1, 0, 1, 1])
        .node("GatherND", &["behind", "pairs"], "chosen", &[])
        .node("Transpose", &["chosen"], "back", &[ints("perm", &[1, 0])]);
    head(graph, "back", "ctr", 3)
}

/// Two towers that meet in a dot product.
pub(crate) fn two_tower() -> Graph {
    let graph = with(&[("user", 8), ("item", 16)]);
    let graph = layer(graph, "user", "u1", 8, 40, "Relu");
    let graph = layer(graph, "u1", "u2", 40, 12, "Tanh");
    let graph = layer(graph, "item", "i1", 16, 40, "Relu");
    layer(graph, "i1", "i2", 40, 12, "Tanh")
        .node("Mul", &["u2", "i2"], "product", &[])
        .integers("one", &[1], &[1])
        .node("ReduceSum", &["product", "one"], "dot", &[int("keepdims", 1)])
        .node("Sigmoid", &["dot"], "ctr", &[])
        .output("ctr", &[open("batch"), fixed(1)])
}

/// Self-attention of two heads over a user's last four actions, with a mask, read by the candidate.
pub(crate) fn attention() -> Graph {
    let mut graph = with(&[("history", 24), ("mask", 4), ("item", 6)])
        .integers("as_sequence", &[3], &[0, 4, 6])
        .node("Reshape", &["history", "as_sequence"], "x", &[]);
    for part in ["q", "k", "v"] {
        let name = |suffix: &str| format!("{part}{suffix}");
        graph = graph
            .random(&name(".w"), &[6, 6])
            .node("MatMul", &["x", &name(".w")], &name(".m"), &[])
            .integers(&name(".shape"), &[4], &[0, 4, 2, 3])
            .node("Reshape", &[&name(".m"), &name(".shape")], &name(".r"), &[])
            .node("Transpose", &[&name(".r")], part, &[ints("perm", &[0, 2, 1, 3])]);
    }
    graph = graph
        .node("Transpose", &["k"], "kt", &[ints("perm", &[0, 1, 3, 2])])
        .node("MatMul", &["q", "kt"], "raw", &[])
        .weights("scale", &[], &[0.577])
        .node("Mul", &["raw", "scale"], "scores", &[])
        .weights("nothing", &[], &[0.0])
        .weights("never", &[], &[-1e9])
        .integers("middle", &[2], &[1, 2])
        .node("Unsqueeze", &["mask", "middle"], "mask4", &[])
        .node("Equal", &["mask4", "nothing"], "hidden", &[])
        .node("Where", &["hidden", "never", "scores"], "masked", &[])
        .node("Softmax", &["masked"], "weights", &[int("axis", -1)])
        .node("MatMul", &["weights", "v"], "mixed", &[])
        .node("Transpose", &["mixed"], "together", &[ints("perm", &[0, 2, 1, 3])])
        .integers("merged", &[3], &[0, 4, 6])
        .node("Reshape", &["together", "merged"], "heads", &[])
        .random("o.w", &[6, 6])
        .node("MatMul", &["heads", "o.w"], "o", &[])
        .node("Add", &["o", "x"], "y", &[])
        .integers("last", &[1], &[2])
        .node("Unsqueeze", &["item", "last"], "query", &[])
        .node("MatMul", &["y", "query"], "match", &[])
        .node("Softmax", &["match"], "attend", &[int("axis", 1)])
        .node("Mul", &["attend", "y"], "weighted", &[])
        .integers("steps", &[1], &[1])
        .node("ReduceSum", &["weighted", "steps"], "summary", &[int("keepdims", 0)])
        .node("Concat", &["summary", "item"], "both", &[int("axis", 1)]);
    head(graph, "both", "ctr", 12)
}

/// MaskNet: a block whose normalised input is masked by what a small network makes of it.
pub(crate) fn mask_net() -> Graph {
    let graph = usual()
        .node("Concat", &["user", "item", "context"], "x", &[int("axis", -1)])
        .random("ln.scale", &[27])
        .random("ln.bias", &[27])
        .node(
            "LayerNormalization",
            &["x", "ln.scale", "ln.bias"],
            "normal",
            &[int("axis", -1), float("epsilon", 1e-5)],
        );
    let graph = layer(graph, "x", "squeeze", 27, 14, "Relu");
    let graph =
        layer(graph, "squeeze", "mask", 14, 27, "Identity").node("Mul", &["normal", "mask"], "masked", &[]);
    let graph = layer(graph, "masked", "hidden", 27, 18, "Identity")
        .random("l2.scale", &[18])
        .random("l2.bias", &[18])
        .node("LayerNormalization", &["hidden", "l2.scale", "l2.bias"], "l2", &[int("axis", -1)])
        .node("Gelu", &["l2"], "active", &[]);
    head(graph, "active", "ctr", 18)
}

/// Forms that exporters choose among: slices, splits, steps, choices, reductions and functions.
pub(crate) fn forms() -> Graph {
    usual()
        .random("wt", &[10, 16])
        .random("b", &[10])
        .node("Gemm", &["item", "wt", "b"], "g", &[int("transB", 1), float("alpha", 0.5), float("beta", 2.0)])
        .integers("sizes", &[2], &[4, 6])
        .split("Split", &["g", "sizes"], &["four", "six"], &[int("axis", 1)])
        .integers("from", &[1], &[1])
        .integers("to", &[1], &[7])
        .integers("axis", &[1], &[1])
        .integers("by", &[1], &[2])
        .node("Slice", &["user", "from", "to", "axis", "by"], "odd", &[])
        .node("LeakyRelu", &["four"], "leaky", &[float("alpha", 0.1)])
        .node("Elu", &["six"], "elu", &[float("alpha", 0.7)])
        .weights("low", &[], &[-0.5])
        .weights("high", &[], &[0.5])
        .node("Clip", &["elu", "low", "high"], "clipped", &[])
        .node("Softplus", &["leaky"], "soft", &[])
        .node("Exp", &["odd"], "exp", &[])
        .node("Abs", &["odd"], "abs", &[])
        .weights("half", &[], &[0.5])
        .node("Add", &["abs", "half"], "above", &[])
        .node("Log", &["above"], "log", &[])
        .node("Sqrt", &["above"], "root", &[])
        .node("Pow", &["root", "three"], "cube", &[])
        .weights("three", &[], &[3.0])
        .node("Greater", &["odd", "log"], "which", &[])
        .node("Where", &["which", "exp", "cube"], "chosen", &[])
        .node("ReduceMean", &["user", "axis"], "mean", &[int("keepdims", 1)])
        .node("ReduceMax", &["user", "axis"], "max", &[int("keepdims", 1)])
        .node("ReduceMin", &["item", "axis"], "min", &[int("keepdims", 1)])
        .node("ReduceL2", &["item", "axis"], "norm", &[int("keepdims", 1)])
        .node("Div", &["item", "norm"], "unit", &[])
        .integers("wide", &[2], &[1, 5])
        .node("Expand", &["mean", "wide"], "same", &[])
        // A product by what is the same all along would be one that tract gets wrong.
        .random("five", &[5])
        .node("Mul", &["same", "five"], "spread", &[])
        .node("Sub", &["max", "min"], "range", &[])
        .node("Neg", &["context"], "neg", &[])
        .node("Erf", &["neg"], "erf", &[])
        .node(
            "Concat",
            &["clipped", "soft", "chosen", "unit", "spread", "range", "erf"],
            "x",
            &[int("axis", 1)],
        )
        .random("w", &[38])
        .node("MatMul", &["x", "w"], "flat", &[])
        .node("HardSigmoid", &["flat"], "ctr", &[])
        .output("ctr", &[open("batch")])
}

/// User and item meet through `request_index`: the user's tower is written for requests.
pub(crate) fn request_index() -> Graph {
    let graph = Graph::new()
        .input("user", &[open("requests"), fixed(8)])
        .input("item", &[open("batch"), fixed(16)])
        .typed_input("request_index", tract_onnx::pb::tensor_proto::DataType::Int64, &[open("batch")]);
    let graph = layer(graph, "user", "u", 8, 16, "Relu")
        .node("Gather", &["u", "request_index"], "rows", &[int("axis", 0)])
        .node("Concat", &["rows", "item"], "x", &[int("axis", 1)]);
    let graph = layer(graph, "x", "deep", 32, 24, "Relu").node("Mul", &["rows", "item"], "product", &[]);
    let graph = graph.node("Concat", &["deep", "product"], "all", &[int("axis", 1)]);
    head(graph, "all", "ctr", 40)
}

/// All of them by name.
pub(crate) fn all() -> Vec<(&'static str, Graph)> {
    vec![
        ("dcn_mmoe", dcn_mmoe()),
        ("dlrm", dlrm()),
        ("dlrm_gather_nd", dlrm_gather_nd()),
        ("two_tower", two_tower()),
        ("attention", attention()),
        ("mask_net", mask_net()),
        ("forms", forms()),
        ("request_index", request_index()),
    ]
}
