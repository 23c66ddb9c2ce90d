//! The Open Inference Protocol over HTTP: JSON, elements as bytes, and bodies that are neither.

use serde_json::{Value, json};
use tidepool_proto::pack::{pack, unpack};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{FILMS_SCORES, Site, site::DEADLINE};

/// One exchange of bytes: status, head in lower case, body.
async fn exchange(site: &Site, path: &str, headers: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
    let mut stream = TcpStream::connect(site.ranker.running.http_address).await.unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
    let mut answer = Vec::new();
    timeout(DEADLINE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    let at = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(answer[..at].to_vec()).unwrap().to_lowercase();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), head, answer[at + 4..].to_vec())
}

fn document() -> Value {
    json!({ "id": "h-1", "inputs": [
        { "name": "user", "datatype": "INT64", "shape": [1], "data": [4] },
        { "name": "age", "datatype": "FP32", "shape": [1, 1], "data": [[0.5]] },
        { "name": "genres", "datatype": "INT64", "shape": [4], "data": [1, 2, 3, 3] },
        { "name": "genres_lengths", "datatype": "INT32", "shape": [3], "data": [3, 1, 0] },
        { "name": "item", "datatype": "UINT64", "shape": [3, 1], "data": [[10], [20], [5]] },
    ] })
}

const INFER: &str = "/v2/models/films/infer";

#[tokio::test(flavor = "multi_thread")]
async fn json_and_bytes_over_http() {
    let site = Site::start().await;
    let (status, _, body) = exchange(&site, INFER, "", document().to_string().as_bytes()).await;
    let answer: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(status, 200, "{answer}");
    assert_eq!((&answer["id"], &answer["model_version"]), (&json!("h-1"), &json!("r1")));
    let output = &answer["outputs"][0];
    assert_eq!((&output["shape"], &output["data"]), (&json!([3]), &json!(FILMS_SCORES)));
    assert_eq!(answer["parameters"]["table_versions"], "user@v1,item@v1,genre@v1");

    // The items as bytes, and the scores too; once more compressed.
    let mut mixed = document();
    mixed["inputs"][4] = json!({
        "name": "item", "datatype": "UINT64", "shape": [3], "parameters": { "binary_data_size": 24 },
    });
    mixed["parameters"] = json!({ "binary_data_output": true });
    let head = mixed.to_string();
    let headers = format!("Inference-Header-Content-Length: {}\r\n", head.len());
    let body = [head.as_bytes(), &pack(&[10u64, 20, 5])].concat();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &body).unwrap();
    let gzip = gzip.finish().unwrap();
    let compressed = format!("{headers}content-encoding: gzip\r\n");
    for (headers, body) in [(&headers, &body), (&compressed, &gzip)] {
        let (status, head, answer) = exchange(&site, INFER, headers, body).await;
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
        let length = head.split("inference-header-content-length: ").nth(1).unwrap();
        let length: usize = length.lines().next().unwrap().parse().unwrap();
        let document: Value = serde_json::from_slice(&answer[..length]).unwrap();
        assert_eq!(document["outputs"][0]["parameters"]["binary_data_size"], 12);
        assert_eq!(unpack::<f32>(&answer[length..]).unwrap().collect::<Vec<_>>(), FILMS_SCORES);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_bodies_are_refused_in_words() {
    let site = Site::start().await;
    let change = |key: &str, value: Value| {
        let mut document = document();
        document[key] = value;
        document.to_string().into_bytes()
    };
    let deep = |text: &str| change("parameters", json!({ "x": 1 })).into_iter().chain(text.bytes()).collect();
    let nested = document().to_string().replace("[[0.5]]", &"[".repeat(2000));
    let cases: [(&str, Vec<u8>, u16, &str); 11] = [
        ("", b"{".to_vec(), 400, "does not parse"),
        ("", deep("}"), 400, "does not parse"),
        ("", nested.into_bytes(), 400, "recursion limit"),
        ("", change("inputs", json!([])), 400, "input \"user\" is missing"),
        ("", change("parameters", json!({ "priority": 1 })), 400, "priorities are not served"),
        ("", change("outputs", json!([{ "name": "p" }])), 400, "output \"p\": model films gives none"),
        (
            "",
            change("outputs", json!([{ "name": "score", "parameters": { "classification": 3 } }])),
            400,
            "top_k",
        ),
        ("Inference-Header-Content-Length: 99999\r\n", document().to_string().into(), 400, "the body has"),
        ("Inference-Header-Content-Length: -1\r\n", document().to_string().into(), 400, "no number of bytes"),
        ("content-encoding: br\r\n", document().to_string().into(), 400, "\"br\" is not taken"),
        ("", vec![b' '; 1 << 17], 413, ""),
    ];
    for (headers, body, status, text) in cases {
        let (found, head, answer) = exchange(&site, INFER, headers, &body).await;
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!(found, status, "{answer}");
        assert!(head.contains("\r\ntidepool-request-id: "), "{head}");
        assert!(answer["error"].as_str().unwrap().contains(text), "{answer} does not say {text:?}");
    }
    // 64 MiB of nothing in 64 KiB.
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut bomb, &vec![b' '; 32 << 20]).unwrap();
    let (status, _, answer) =
        exchange(&site, INFER, "content-encoding: gzip\r\n", &bomb.finish().unwrap()).await;
    let answer = String::from_utf8(answer).unwrap();
    assert!(status == 400 && answer.contains("decompresses to more than 65536 bytes"), "{answer}");
    let (_, metrics) = site.ranker.http("GET", "/metrics", "").await;
    assert!(metrics.contains("tidepool_ranker_requests_total{code=\"invalid_request\"} 12"), "{metrics}");
    assert_eq!(exchange(&site, INFER, "", document().to_string().as_bytes()).await.0, 200);
}
