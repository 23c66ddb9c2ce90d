//! Following the cluster map, and living without a controller.

use std::{path::Path, time::Duration};

use tidepool_client::{Client, ClientConfig, ClientError, LookupOptions};
use tidepool_types::{Epoch, ErrorCode};

use crate::fake::{FakeController, FakeNode, map, request};

const PLENTY: Duration = Duration::from_secs(20);

/// An address where nothing listens.
const NOWHERE: &str = "127.0.0.1:1";

fn config(controllers: &[String], file: &Path) -> ClientConfig {
    ClientConfig { controllers: controllers.to_vec(), map_file: Some(file.to_owned()), ..Default::default() }
}

async fn wait(client: &Client, epoch: u64) {
    client.wait_for_map(|map| map.epoch == Epoch(epoch), PLENTY).await.unwrap();
}

/// Waits until the file holds a map of `epoch`: it is written after the map is in use.
async fn wait_for_file(file: &Path, epoch: u64) {
    let saved = async {
        loop {
            let text = tokio::task::spawn_blocking({
                let file = file.to_owned();
                move || std::fs::read_to_string(file).unwrap_or_default()
            });
            if text.await.unwrap().contains(&format!("\"epoch\": {epoch},")) {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PLENTY, saved).await.unwrap();
}

#[tokio::test]
async fn the_epoch_only_grows_and_the_saved_map_outlives_the_controller() {
    let node = FakeNode::start();
    let of = |epoch| map(epoch, &[("a", &[node.address])]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("map.json");
    // An interface of its own: while the controller is away, no other test can be given its port.
    let controller = FakeController::start("127.0.0.2:0", &of(3));
    let address = controller.address.to_string();
    // The first controller named is dead: the next one is asked.
    let client = Client::start(config(&[NOWHERE.into(), address.clone()], &file)).await.unwrap();
    wait(&client, 3).await;
    controller.maps.send_replace((&of(5)).into());
    wait(&client, 5).await;
    controller.maps.send_replace((&of(4)).into());
    controller.maps.send_replace((&of(6)).into());
    wait(&client, 6).await;
    wait_for_file(&file, 6).await;

    // The controller comes back with an old map: it is passed over, and so is what contradicts itself.
    drop(controller);
    let controller = FakeController::start(&address, &of(2));
    let came_back = async {
        while controller.have_epochs().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PLENTY, came_back).await.unwrap();
    assert_eq!(controller.have_epochs(), [6]);
    let mut broken = tidepool_proto::v1::ClusterMap::from(&of(9));
    broken.layouts[0].placement[0].nodes.pop();
    controller.maps.send_replace(broken);
    controller.maps.send_replace((&of(7)).into());
    wait(&client, 7).await;
    wait_for_file(&file, 7).await;

    // With every controller gone, a client that starts anew serves from the file.
    drop((controller, client));
    let client = Client::start(config(&[address], &file)).await.unwrap();
    assert_eq!(client.map().epoch, Epoch(7));
    let outcome = client.lookup(&request().0, &LookupOptions::default()).await.unwrap();
    assert_eq!(outcome.features[1].values, request().1[1]);
}

#[tokio::test]
async fn a_damaged_map_file_is_no_reason_not_to_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("map.json");
    std::fs::write(&file, "{\"epoch\": 3, \"nodes\"").unwrap();
    let controller = FakeController::start("127.0.0.1:0", &map(1, &[]));
    let client = Client::start(config(&[controller.address.to_string()], &file)).await.unwrap();
    assert_eq!(client.map().epoch, Epoch(0));
    wait(&client, 1).await;
    wait_for_file(&file, 1).await;
}

#[tokio::test]
async fn a_controller_that_takes_calls_and_is_silent_does_not_keep_the_next_from_being_asked() {
    let folder = tempfile::tempdir().unwrap();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let controller = FakeController::start("127.0.0.1:0", &map(1, &[]));
    let both = [silent.local_addr().unwrap(), controller.address].map(|a| a.to_string());
    let client = Client::start(config(&both, &folder.path().join("map.json"))).await.unwrap();
    wait(&client, 1).await;
}

#[tokio::test]
async fn without_a_map_it_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let client = Client::start(config(&[NOWHERE.into()], &folder.path().join("map.json"))).await.unwrap();
    let error = client.lookup(&request().0, &LookupOptions::default()).await.unwrap_err();
    assert!(matches!(error, ClientError::NoMap), "{error}");
    let error = client.wait_for_map(|map| map.epoch > Epoch(0), Duration::from_millis(20)).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unavailable);
    assert!(error.to_string().contains("epoch 0"), "{error}");
}

#[tokio::test]
async fn a_configuration_that_cannot_work_lists_every_problem() {
    let bad = ClientConfig {
        controllers: vec!["no port".into(), "host:1/path".into()],
        max_message_bytes: 0,
        ..Default::default()
    };
    let Err(ClientError::Config(problems)) = Client::start(bad).await else { panic!("accepted") };
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert!(matches!(Client::start(ClientConfig::default()).await, Err(ClientError::Config(_))));
    // Who brings the map needs no controller, and cannot ask in impossible ways either.
    let (_, maps) = tokio::sync::watch::channel(Default::default());
    assert!(Client::with_map(ClientConfig::default(), maps.clone()).is_ok());
    let bad = ClientConfig { max_message_bytes: 0, spill_factor: f64::NAN, ..Default::default() };
    let Err(ClientError::Config(problems)) = Client::with_map(bad, maps) else { panic!("accepted") };
    assert_eq!(problems.len(), 2, "{problems:?}");
}
