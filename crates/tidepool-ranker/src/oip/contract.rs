//! A model's contract as tensors: the names, datatypes and shapes that callers of the protocol meet.

use tidepool_types::{FeatureKind, FeatureSpec, ModelSpec, RawKind, Side, UnknownFeatures};

use super::tensors::Datatype;

/// After the name of a bag: how long the bag of each row is.
pub(super) const LENGTHS: &str = "_lengths";
/// After the name of a bag: a weight for each element.
pub(super) const WEIGHTS: &str = "_weights";
/// Positions of the best candidates in the request.
pub(super) const INDEXES: &str = "indexes";
/// What candidates are ranked by, of the best.
pub(super) const SCORES: &str = "scores";

/// What a model takes and gives.
#[derive(Debug)]
pub(super) struct Contract<'s> {
    pub(super) spec: &'s ModelSpec,
    /// Of a request, each once.
    pub(super) features: Vec<FeatureSpec>,
}

/// A tensor as metadata describe it; -1 is an open size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Described {
    pub(super) name: String,
    pub(super) datatype: Datatype,
    pub(super) shape: Vec<i64>,
}

impl<'s> Contract<'s> {
    pub(super) fn of(spec: &'s ModelSpec) -> Self {
        Self { spec, features: spec.features() }
    }

    pub(super) fn ignores_unknown(&self) -> bool {
        self.spec.unknown_features == UnknownFeatures::Ignore
    }

    /// The name of the tensor beside a bag that ends so. A feature that bears that name itself has it, and the bag
    /// none.
    pub(super) fn beside(&self, feature: &FeatureSpec, suffix: &str) -> Option<String> {
        let name = format!("{}{suffix}", feature.name);
        let is_free = self.features.iter().all(|other| other.name != name);
        (matches!(feature.kind, FeatureKind::Bag(_)) && is_free).then_some(name)
    }

    /// What it takes. Lengths and weights may be left out.
    pub(super) fn inputs(&self) -> Vec<Described> {
        let mut inputs = Vec::new();
        for feature in &self.features {
            let rows = if feature.side == Side::User { 1 } else { -1 };
            let mut add = |name: String, datatype, shape| inputs.push(Described { name, datatype, shape });
            match feature.kind {
                FeatureKind::Row { width } => {
                    add(feature.name.clone(), Datatype::Fp32, vec![rows, width.into()]);
                }
                FeatureKind::Bag(raw) => {
                    let datatype = match raw {
                        RawKind::Ids => Datatype::Int64,
                        RawKind::Texts => Datatype::Bytes,
                        RawKind::Numbers => Datatype::Fp32,
                    };
                    add(feature.name.clone(), datatype, vec![-1]);
                    if let Some(name) = self.beside(feature, LENGTHS) {
                        add(name, Datatype::Int32, vec![rows]);
                    }
                    if let Some(name) = self.beside(feature, WEIGHTS) {
                        add(name, Datatype::Fp32, vec![-1]);
                    }
                }
            }
        }
        inputs
    }

    /// The names of what it gives to those who name nothing: in the order of the request, or of the best first.
    pub(super) fn gives(&self, ranked: bool) -> Vec<&str> {
        let mut names = if ranked { vec![INDEXES, SCORES] } else { Vec::new() };
        names.extend(self.spec.outputs.iter().map(|output| output.name.as_str()));
        if self.spec.utility.is_some() && !ranked {
            names.push(ModelSpec::UTILITY);
        }
        names
    }

    /// What it gives to those who ask for nothing else.
    pub(super) fn outputs(&self) -> Vec<Described> {
        let describe = |name: &str| {
            let datatype = if name == INDEXES { Datatype::Uint32 } else { Datatype::Fp32 };
            Described { name: name.to_owned(), datatype, shape: vec![-1] }
        };
        self.gives(self.spec.top_k > 0).into_iter().map(describe).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_taken_is_the_features() {
        let spec = ModelSpec::from_toml(
            r#"
            schema_version = 1
            model = "m"
            score = "p"
            inputs = [
                { name = "seen", side = "user", table = "item" },
                { name = "seen_lengths", side = "user", width = 1 },
                { name = "item", side = "candidate", table = "item" },
                { name = "price", side = "candidate", width = 2 },
            ]
            outputs = [ { name = "p" } ]
            "#,
        )
        .unwrap();
        let contract = Contract::of(&spec);
        let inputs = contract.inputs();
        let inputs: Vec<_> =
            inputs.iter().map(|i| (i.name.as_str(), i.datatype.as_str(), &i.shape[..])).collect();
        assert_eq!(
            inputs,
            [
                ("seen", "INT64", &[-1][..]),
                ("seen_weights", "FP32", &[-1]),
                ("seen_lengths", "FP32", &[1, 1]),
                ("item", "INT64", &[-1]),
                ("item_lengths", "INT32", &[-1]),
                ("item_weights", "FP32", &[-1]),
                ("price", "FP32", &[-1, 2]),
            ]
        );
        assert_eq!(contract.gives(false), ["p"]);
        assert_eq!(contract.gives(true), ["indexes", "scores", "p"]);
    }
}
