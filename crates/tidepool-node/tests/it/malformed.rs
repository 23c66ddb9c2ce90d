//! Requests that cannot be: each is refused with a message that names the field, and the node goes on.

use bytes::Bytes;
use tidepool_proto::{MAX_FIELDS, code_of, pack::pack, v1};
use tidepool_types::{ErrorCode, Keying, RowFormat};

use crate::{
    control::FakeController,
    site::{Site, TestNode, all, assignment, gather, request, version},
};

type Change = fn(&mut v1::FeatureRequest);

const CASES: [(&str, Change); 16] = [
    ("table_version is missing", |f| f.table_version = None),
    ("table: a name must not be empty", |f| f.table_version = Some(v1::TableVersion::default())),
    ("version: ", |f| version_of(f).version = "../../etc".into()),
    ("is too long", |f| version_of(f).version = "v".repeat(1 << 20)),
    ("partitions: 0", |f| f.partitions = 0),
    ("partitions: 3", |f| f.partitions = 3),
    ("wire_form: 0", |f| f.wire_form = 0),
    ("wire_form: 9", |f| f.wire_form = 9),
    ("ids: 7 bytes", |f| f.ids = Bytes::from_static(&[0; 7])),
    ("members: 6 bytes", |f| f.members = Bytes::from_static(&[0; 6])),
    ("bag_lengths: 5 bytes", |f| f.bag_lengths = Bytes::from_static(&[0; 5])),
    ("weights: 3 bytes", |f| f.weights = Bytes::from_static(&[0; 3])),
    ("members: number 1 is 2, but there are 2 ids", |f| f.members = pack(&[0u32, 2, 1])),
    ("bag_lengths: they add up to 4294967299", |f| f.bag_lengths = pack(&[1u32 << 31, 1 << 31, 3])),
    ("weights: there are 2, but 3 members", |f| f.weights = pack(&[1.0f32; 2])),
    ("weights: number 2 is NaN", |f| f.weights = pack(&[1.0, 2.0, f32::NAN])),
];

fn version_of(feature: &mut v1::FeatureRequest) -> &mut v1::TableVersion {
    feature.table_version.as_mut().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_malformed_field_is_refused_by_name_and_the_node_goes_on() {
    let site = Site::new();
    let schema = site.table(version("user", "v1"), (RowFormat::Int4, 8), Keying::Hashed, 2, 0..100);
    let mut controller = FakeController::start(&assignment(1, &[(&schema, &all(&schema))])).await;
    let mut raw = site.following(&controller);
    (raw.max_ids_per_request, raw.max_response_bytes) = (1000, 10_000);
    raw.max_request_bytes = 2 << 20;
    for inline_max_rows in [0, 2048] {
        raw.inline_max_rows = inline_max_rows;
        let node = TestNode::start(raw.clone()).await;
        controller.ready(1).await;
        node.ready().await;
        let mut client = node.client().await;
        let good = v1::FeatureRequest {
            wire_form: v1::WireForm::Pool.into(),
            members: pack(&[0u32, 1, 1]),
            bag_lengths: pack(&[2u32, 1]),
            ..gather(&schema, &[5, 6])
        };
        for (words, change) in CASES {
            let mut bad = good.clone();
            change(&mut bad);
            let status = client.lookup(request(vec![good.clone(), bad])).await.unwrap_err();
            assert_eq!(code_of(&status), ErrorCode::InvalidRequest, "{words}");
            let message = status.message();
            assert!(message.starts_with("feature 1 (") && message.contains(words), "{words}: {message}");
        }

        let gathered_with_bags =
            v1::FeatureRequest { wire_form: v1::WireForm::Gather.into(), ..good.clone() };
        let many_bags = v1::FeatureRequest {
            ids: Bytes::new(),
            members: Bytes::new(),
            bag_lengths: pack(&[0u32; 1000]),
            ..good.clone()
        };
        let too_long = gather(&schema, &vec![1; 1 << 18]);
        let empty_features = vec![v1::FeatureRequest::default(); MAX_FIELDS + 1];
        for (words, features) in [
            ("feature 0 (user@v1): members: goes with wire_form pool only", vec![gathered_with_bags]),
            ("has 1200 ids, a request may have 1000", vec![gather(&schema, &[1; 600]); 2]),
            ("an answer may have 10000", vec![many_bags]),
            ("message length too large", vec![too_long]),
            ("more than 262144 fields", empty_features),
        ] {
            let status = client.lookup(request(features)).await.unwrap_err();
            assert_eq!(code_of(&status), ErrorCode::InvalidRequest, "{words}");
            assert!(status.message().contains(words), "{words}: {}", status.message());
        }

        let fine = client.lookup(request(vec![good])).await.unwrap().into_inner();
        assert_eq!(fine.features[0].counts, pack(&[2u32, 1]));
        assert!(client.lookup(request(Vec::new())).await.unwrap().into_inner().features.is_empty());
        node.stop().await;
    }
}
