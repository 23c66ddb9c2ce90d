//! A model with every kind of input that is made of rows, its tables, and batches of it: as the lookup of a ranker brings
//! them, rows or vectors.

use std::{ops::Range, sync::Arc};

use tempfile::TempDir;
use tidepool_client::{FeatureLookup, FeatureRows, FeatureVectors, Held, LocalTables, LookupRequest, PutRow};
use tidepool_dense::{DenseModel, GraphWriter, select::SelectRequest};
use tidepool_ranker::{
    Config, RawConfig, RawCuda,
    device::{Engine, Placed},
};
use tidepool_types::{InputSource, ModelSpec, Name, Pooling, RowFormat, Side, TableSchema, mix64};

const SPEC: &str = r#"
schema_version = 1
model = "ads"
score = "utility"
utility = "ctr * bid + cvr"
utility_inputs = [{ name = "bid", side = "candidate" }]
inputs = [
    { name = "liked", side = "user", table = "item", pooling = "mean" },
    { name = "price", side = "candidate", width = 1 },
    { name = "item", side = "candidate", table = "item", pooling = "sum" },
    { name = "tags", side = "candidate", table = "tag", pooling = "mean" },
    { name = "crossed", side = "candidate", table = "cross", pooling = "sum" },
    { name = "last", side = "user", table = "item", sequence = 5, mask = "last_mask" },
    { name = "shops", side = "candidate", table = "shop", sequence = 3 },
]
outputs = [{ name = "ctr" }, { name = "cvr" }]
[[calibrations]]
output = "ctr"
surface = "home"
kind = "linear"
a = 0.5
b = 0.1
"#;

/// Numbers that look random, the same for the same seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix64(self.0)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// From -1 to 1.
    pub(crate) fn number(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// The model, its contract, and its tables.
pub(crate) struct Case {
    pub(crate) spec: ModelSpec,
    pub(crate) model: Arc<DenseModel>,
    pub(crate) tables: Vec<TableSchema>,
    local: LocalTables,
    _dir: TempDir,
}

/// Requests with their candidates.
pub(crate) struct Batch {
    pub(crate) rows_of: Vec<u32>,
    pub(crate) request_of: Vec<u32>,
    price: Vec<f32>,
    /// Per request.
    pub(crate) bids: Vec<Vec<Vec<f32>>>,
    /// Per input of the contract: its bags, if it is looked up.
    bags: Vec<Option<Vec<Vec<u64>>>>,
    /// Of `liked`, one per id.
    weights: Vec<f32>,
}

impl Case {
    pub(crate) fn new() -> Self {
        let schema = |text: &str| serde_json::from_str::<TableSchema>(text).unwrap();
        let tables = vec![
            schema(
                r#"{"table_version": {"table": "item", "version": "v1"}, "dim": 8, "format": "int4", "keying": "hashed",
                    "partitions": 4, "rows": 1000, "default_row": [0.5, 0.25, 0, 0, 0, 0, 0, -0.5]}"#,
            ),
            schema(
                r#"{"table_version": {"table": "tag", "version": "v1"}, "dim": 4, "format": "int8", "keying": "dense",
                    "partitions": 1, "rows": 50, "composite": {"seeds": [5, 6], "combine": "concat"}}"#,
            ),
            schema(
                r#"{"table_version": {"table": "cross", "version": "v1"}, "dim": 6, "format": "f16", "keying": "dense",
                    "partitions": 1, "rows": 90, "composite": {"seeds": [7, 8, 9], "combine": "sum"}}"#,
            ),
            schema(
                r#"{"table_version": {"table": "shop", "version": "v1"}, "dim": 4, "format": "f32", "keying": "dense",
                    "partitions": 2, "rows": 30}"#,
            ),
        ];
        let spec = ModelSpec::from_toml(SPEC).unwrap();
        let mut graph = GraphWriter::new("ads");
        let widths = [("liked", 8), ("price", 1), ("item", 8), ("tags", 8), ("crossed", 6), ("last_mask", 5)];
        widths.iter().for_each(|(name, width)| graph.input(name, *width));
        for (name, max_len, dim, flat) in [("last", 5, 8, "last.flat"), ("shops", 3, 4, "shops.flat")] {
            graph.sequence_input(name, max_len, dim);
            graph.reshape(name, &[0, (max_len * dim) as i64], flat);
        }
        graph.concat(
            &["liked", "price", "item", "tags", "crossed", "last_mask", "last.flat", "shops.flat"],
            "x",
        );
        let mut random = Random(1);
        let mut constant = |graph: &mut GraphWriter, name: &str, dims: &[usize]| {
            let values: Vec<f32> = (0..dims.iter().product()).map(|_| random.number() * 0.4).collect();
            graph.constant(name, dims, &values);
        };
        constant(&mut graph, "w", &[88, 12]);
        constant(&mut graph, "b", &[12]);
        graph.node("Gemm", &["x", "w", "b"], "sum");
        graph.node("Relu", &["sum"], "hidden");
        for output in ["ctr", "cvr"] {
            let [w, b, sum] = ["w", "b", "sum"].map(|part| format!("{output}.{part}"));
            constant(&mut graph, &w, &[12, 1]);
            constant(&mut graph, &b, &[1]);
            graph.node("Gemm", &["hidden", &w, &b], &sum);
            graph.node("Sigmoid", &[&sum], output);
            graph.output(output, 1);
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.onnx");
        std::fs::write(&path, graph.into_file()).unwrap();
        let dim_of = |table: &Name| {
            tables.iter().find(|of| of.table_version.table == *table).map(TableSchema::vector_dim)
        };
        let model = DenseModel::load(&path, &spec, &dim_of).unwrap_or_else(|e| panic!("{e}"));
        let local = LocalTables::new(tables.clone());
        Self { spec, model: Arc::new(model), tables, local, _dir: dir }
    }

    /// The model on the device, as a ranker with this section of its configuration places it.
    pub(crate) fn placed(&self, cuda: RawCuda) -> Placed {
        engine(cuda).place(self.model.clone(), &self.spec, &self.schemas()).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Per input, the schema of its table.
    pub(crate) fn schemas(&self) -> Vec<Option<&TableSchema>> {
        let of = |table: &Name| self.tables.iter().find(|of| of.table_version.table == *table);
        self.spec.inputs.iter().map(|input| input.source.table().and_then(of)).collect()
    }

    /// Requests with so many candidates each, and bags of up to `most` ids.
    pub(crate) fn batch(&self, random: &mut Random, rows_of: &[u32], most: u64) -> Batch {
        let request_of: Vec<u32> =
            (0u32..).zip(rows_of).flat_map(|(at, rows)| vec![at; *rows as usize]).collect();
        let bags = self.spec.inputs.iter().map(|input| {
            let (table, longest) = match &input.source {
                InputSource::Dense { .. } => return None,
                InputSource::Pooled { table, .. } => (table, most),
                InputSource::Sequence { table, max_len, .. } => (table, u64::from(*max_len)),
            };
            // Some shops, and some items, are in no table.
            let ids = if table.as_str() == "shop" { 40 } else { 200 };
            let bags = if input.side == Side::User { rows_of.len() } else { request_of.len() };
            let bag = |random: &mut Random| {
                let len = random.below(longest + 1);
                (0..len).map(|_| random.below(ids)).collect::<Vec<_>>()
            };
            Some((0..bags).map(|_| bag(random)).collect::<Vec<_>>())
        });
        let bags: Vec<_> = bags.collect();
        let liked = bags[0].iter().flatten().map(Vec::len).sum::<usize>();
        let weights = (0..liked).map(|_| random.number().abs() + 0.1).collect();
        let price = request_of.iter().map(|_| random.number()).collect();
        let bids = rows_of.iter().map(|rows| vec![(0..*rows).map(|_| random.number()).collect()]);
        Batch { rows_of: rows_of.to_vec(), bids: bids.collect(), request_of, price, bags, weights }
    }

    /// What the lookup of a batch brings: rows.
    pub(crate) fn look_up_rows(&self, batch: &Batch, held: Option<&dyn Held>) -> Vec<FeatureRows> {
        let request = self.request(batch);
        self.local
            .look_up_rows(&request, held, |table, ids, put| self.rows(table, ids, put))
            .unwrap()
            .features
    }

    /// The same as vectors, as the plan takes them: the inputs of the contract, then the mask.
    pub(crate) fn inputs(&self, batch: &Batch) -> Vec<Vec<f32>> {
        let request = self.request(batch);
        let outcome = self.local.look_up(&request, |table, ids, put| self.rows(table, ids, put)).unwrap();
        let mut vectors = outcome.features.into_iter();
        let (mut inputs, mut masks) = (Vec::new(), Vec::new());
        for (input, bags) in self.spec.inputs.iter().zip(&batch.bags) {
            let Some(bags) = bags else {
                inputs.push(batch.price.clone());
                continue;
            };
            let FeatureVectors { values, dim, .. } = vectors.next().unwrap();
            let InputSource::Sequence { max_len, mask, .. } = &input.source else {
                inputs.push(values);
                continue;
            };
            let (dim, max_len, mut rest) = (dim as usize, *max_len as usize, &values[..]);
            let (mut padded, mut taken) = (Vec::new(), Vec::new());
            for bag in bags {
                let (own, others) = rest.split_at(bag.len() * dim);
                rest = others;
                padded.extend_from_slice(own);
                padded.resize(padded.len() + (max_len - bag.len()) * dim, 0.0);
                taken.extend((0..max_len).map(|at| f32::from(at < bag.len())));
            }
            inputs.push(padded);
            masks.extend(mask.is_some().then_some(taken));
        }
        inputs.append(&mut masks);
        inputs
    }

    fn request(&self, batch: &Batch) -> LookupRequest {
        let schemas = self.schemas();
        let features =
            self.spec.inputs.iter().zip(&batch.bags).enumerate().filter_map(|(at, (input, bags))| {
                let bags = bags.as_ref()?;
                let pooling = match input.source {
                    InputSource::Pooled { pooling, .. } => pooling,
                    InputSource::Sequence { .. } | InputSource::Dense { .. } => Pooling::None,
                };
                let lengths = bags.iter().map(|bag| u32::try_from(bag.len()).unwrap()).collect();
                Some(FeatureLookup {
                    table_version: schemas[at]?.table_version.clone(),
                    pooling,
                    ids: bags.concat(),
                    lengths: (pooling != Pooling::None).then_some(lengths),
                    weights: (input.name == "liked").then(|| batch.weights.clone()),
                })
            });
        LookupRequest { request_id: String::new(), features: features.collect() }
    }

    fn rows(&self, table: usize, ids: &[u64], put: &mut PutRow<'_>) -> Result<(), String> {
        for (at, id) in ids.iter().enumerate() {
            if let Some(row) = self.row(table, *id) {
                put(at, &row);
            }
        }
        Ok(())
    }

    /// A stored row; every eleventh item has none.
    pub(crate) fn row(&self, table: usize, id: u64) -> Option<Vec<u8>> {
        let schema = &self.tables[table];
        let there = if table == 0 { id % 11 != 10 } else { id < schema.rows };
        let mut random = Random(mix64(id) ^ table as u64);
        let mut codes = |count: u32| (0..count).map(|_| random.below(256) as u8).collect::<Vec<u8>>();
        let dim = schema.dim;
        there.then(|| match schema.format {
            // Scale and bias are 1/16 and -1/2 as f16.
            RowFormat::Int4 => [codes(dim / 2), vec![0x00, 0x2c, 0x00, 0xb8]].concat(),
            RowFormat::Int8 => {
                [codes(dim), 0.01f32.to_le_bytes().to_vec(), (-1.2f32).to_le_bytes().to_vec()].concat()
            }
            // From 1/8 to 1, of either sign.
            RowFormat::F16 => {
                let half = |code: &[u8]| [code[0], 0x30 | code[1] & 0x8b];
                codes(2 * dim).chunks_exact(2).flat_map(half).collect()
            }
            RowFormat::F32 => {
                codes(dim).iter().flat_map(|code| (f32::from(*code) / 128.0 - 1.0).to_le_bytes()).collect()
            }
        })
    }
}

impl Batch {
    /// Per input, the bags of its rows: those of `requests` alone, in their order.
    pub(crate) fn row_bags<'a>(
        &'a self,
        spec: &ModelSpec,
        rows: &'a [FeatureRows],
        requests: &[usize],
    ) -> Vec<Option<tidepool_ranker::batch::RowBags<'a>>> {
        let mut rows = rows.iter();
        let inputs = spec.inputs.iter().zip(&self.bags).map(|(input, bags)| {
            let (bags, rows) = (bags.as_ref()?, rows.next()?);
            let mut begin = 0;
            let ranges = bags.iter().map(|bag| {
                begin += bag.len();
                begin - bag.len()..begin
            });
            let ranges: Vec<Range<usize>> = ranges.collect();
            let ids = requests.iter().flat_map(|request| match input.side {
                Side::User => vec![ranges[*request].clone()],
                Side::Candidate => ranges[self.rows_of_request(*request)].to_vec(),
            });
            let weights = (input.name == "liked").then_some(&self.weights[..]);
            Some(tidepool_ranker::batch::RowBags { rows, ids: ids.collect(), weights })
        });
        inputs.collect()
    }

    pub(crate) fn rows_of_request(&self, request: usize) -> Range<usize> {
        let begin: u32 = self.rows_of[..request].iter().sum();
        begin as usize..(begin + self.rows_of[request]) as usize
    }

    /// The prices of the candidates of these requests.
    pub(crate) fn prices(&self, requests: &[usize]) -> Vec<f32> {
        requests.iter().flat_map(|request| self.price[self.rows_of_request(*request)].to_vec()).collect()
    }

    /// What these requests want: every other the best two for the first page.
    pub(crate) fn wants<'a>(&'a self, requests: &[usize]) -> Vec<SelectRequest<'a>> {
        let one = |request: &usize| SelectRequest {
            rows: self.rows_of[*request],
            surface: if request.is_multiple_of(2) { "home" } else { "" },
            outputs: if request.is_multiple_of(2) { &[1, 0] } else { &[] },
            utility_inputs: &self.bids[*request],
            top_k: if request.is_multiple_of(2) { 2 } else { 0 },
        };
        requests.iter().map(one).collect()
    }
}

/// `cuda:0` with this section of a ranker's configuration.
pub(crate) fn engine(cuda: RawCuda) -> Engine {
    let raw = RawConfig { ranker: "ranker-1".into(), device: "cuda:0".into(), cuda, ..RawConfig::default() };
    let config = Config::try_from(raw).unwrap_or_else(|e| panic!("{e}"));
    Engine::open(&config.device).unwrap_or_else(|e| panic!("{e}"))
}
