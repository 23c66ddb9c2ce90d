//! Routes over three groups of two nodes, some of them sick, slow or down.

use std::{sync::Arc, time::Duration};

use tidepool_cluster::ClusterMap;
use tidepool_types::{Name, Pooling, TableVersion};

use super::*;
use crate::{
    config::BreakerConfig,
    peer::{Ending, Peer},
    request::{FeatureLookup, LookupRequest},
};

/// Groups a, b and c; two partitions; `a-0` holds the first of group a, `a-1` the second, and so on.
fn map(down: &[&str]) -> ClusterMap {
    let (mut nodes, mut groups) = (Vec::new(), Vec::new());
    for group in ["a", "b", "c"] {
        for n in 0..2 {
            let up = !down.contains(&format!("{group}-{n}").as_str());
            nodes.push(format!(
                r#""{group}-{n}": {{"group": "{group}", "grpc_address": "", "http_address": "", "up": {up}}}"#
            ));
        }
        groups.push(format!(r#""{group}": ["{group}-0", "{group}-1"]"#));
    }
    serde_json::from_str(&format!(
        r#"{{"epoch": 1, "nodes": {{{}}}, "releases": [], "layouts": [{{"placement": {{{}}}, "schema": {{
            "table_version": {{"table": "t", "version": "v"}}, "dim": 2, "format": "f32",
            "keying": "dense", "partitions": 2, "rows": 9}}}}]}}"#,
        nodes.join(","),
        groups.join(",")
    ))
    .unwrap()
}

fn topology(down: &[&str]) -> Topology {
    let breaker = BreakerConfig { failures: 1, ..Default::default() };
    let connect = |_: &_| Peer::new("", Err("-".into()), breaker);
    Topology::new(Arc::new(map(down)), None, Instant::now(), connect)
}

fn request() -> LookupRequest {
    let name = |text: &str| Name::new(text).unwrap();
    let feature = FeatureLookup {
        table_version: TableVersion { table: name("t"), version: name("v") },
        pooling: Pooling::Sum,
        ids: vec![0, 1],
        lengths: None,
        weights: None,
    };
    LookupRequest { request_id: String::new(), features: vec![feature] }
}

const CHOICE: Choice<'static> = Choice { preferred: None, spill_factor: 4.0, random: 0, skip_sick: false };

fn peer<'t>(topology: &'t Topology, node: &str) -> &'t Peer {
    &topology.nodes.iter().find(|n| n.id.0.as_str() == node).unwrap().peer
}

fn end(topology: &Topology, node: &str, ending: Ending, started: Instant, took: Duration) {
    peer(topology, node).insist(started).end(ending, started + took, 0.5);
}

/// The node of each partition, or `-`.
fn routed(topology: &Topology, choice: Choice<'_>, now: Instant) -> [String; 2] {
    let request = request();
    let split = Split::new(&request, &topology.map, 0).unwrap();
    let (route, nobody) = Router::new(topology, &split, choice, now).first();
    assert_eq!(route.tickets.len(), route.nodes.len());
    let nobody: Vec<_> = nobody.iter().map(|(_, slot)| *slot).collect();
    [0, 1].map(|slot| match route.nodes.get(route.node_of[0][slot as usize] as usize) {
        Some(node) => topology.id(*node).to_string(),
        None => {
            assert!(nobody.contains(&slot));
            "-".to_owned()
        }
    })
}

fn preferring(group: &str) -> Choice<'_> {
    Choice { preferred: Some(group), ..CHOICE }
}

#[test]
fn one_group_answers_all_of_a_request() {
    let (whole, now) = (topology(&[]), Instant::now());
    let chosen: std::collections::BTreeSet<_> =
        (0..6).map(|random| routed(&whole, Choice { random, ..CHOICE }, now)).collect();
    assert_eq!(chosen.len(), 3, "chance spreads over the groups: {chosen:?}");
    assert!(chosen.iter().all(|[first, second]| first[..2] == second[..2]), "{chosen:?}");
    assert_eq!(routed(&whole, preferring("c"), now), ["c-0", "c-1"], "the preferred group first");
    routed(&whole, preferring("nowhere"), now);
    let [first, _] = routed(&topology(&["c-1"]), preferring("c"), now);
    assert_ne!(first, "c-0", "unless a node of it is down");
    end(&whole, "c-0", Ending::Failed, now, Duration::ZERO);
    let [_, second] = routed(&whole, preferring("c"), now);
    assert_ne!(second, "c-1", "or sick");
}

#[test]
fn a_node_that_drains_is_asked_when_nobody_healthy_is_left() {
    let now = Instant::now();
    let draining = |nodes: &[&str]| {
        let mut topology = topology(&["c-0", "c-1"]);
        topology.nodes.iter_mut().for_each(|node| node.draining = nodes.contains(&node.id.0.as_str()));
        topology
    };
    let group = draining(&["a-0", "a-1"]);
    assert_eq!(routed(&group, preferring("a"), now), ["b-0", "b-1"]);
    // The one that stands in has failed: who drains answers still.
    end(&group, "b-0", Ending::Failed, now, Duration::ZERO);
    assert_eq!(routed(&group, CHOICE, now), ["a-0", "b-1"]);
    assert_eq!(routed(&draining(&["a-0", "a-1", "b-0", "b-1"]), preferring("b"), now), ["b-0", "b-1"]);
}

#[test]
fn no_whole_group_left_goes_partition_by_partition() {
    let now = Instant::now();
    let broken = topology(&["a-0", "b-1", "c-0"]);
    assert_eq!(routed(&broken, preferring("a"), now), ["b-0", "a-1"]);
    end(&broken, "b-0", Ending::Failed, now, Duration::ZERO);
    assert_eq!(routed(&broken, preferring("a"), now), ["b-0", "a-1"], "sick, but nobody else is up");
    let dead = topology(&["a-0", "a-1", "b-0", "b-1", "c-0", "c-1"]);
    assert_eq!(routed(&dead, preferring("b"), now), ["b-0", "b-1"], "down by the map is asked all the same");
    for node in ["a-0", "b-0", "c-0"] {
        end(&broken, node, Ending::Failed, now, Duration::ZERO);
    }
    let skip = Choice { skip_sick: true, ..preferring("a") };
    assert_eq!(routed(&broken, skip, now)[1], "a-1");
    let sick = topology(&[]);
    for node in ["a-0", "b-0", "c-0"] {
        end(&sick, node, Ending::Failed, now, Duration::ZERO);
    }
    assert_eq!(routed(&sick, skip, now), ["-", "a-1"], "nobody is waited for who has failed over and over");
}

#[test]
fn a_sick_group_comes_back_through_one_probe() {
    let (topology, now) = (topology(&[]), Instant::now());
    end(&topology, "a-0", Ending::Failed, now, Duration::ZERO);
    let later = now + Duration::from_secs(60);
    let (request, choice) = (request(), preferring("a"));
    let split = Split::new(&request, &topology.map, 0).unwrap();
    let (probing, _) = Router::new(&topology, &split, choice, later).first();
    assert_eq!(topology.id(probing.nodes[0]).0.as_str(), "a-0");
    assert_ne!(routed(&topology, choice, later)[0], "a-0", "one probe at a time");
    for ticket in probing.tickets {
        ticket.end(Ending::Answered, later, 0.5);
    }
    assert_eq!(routed(&topology, choice, later), ["a-0", "a-1"]);
}

#[test]
fn the_faster_and_the_less_loaded_group_is_chosen() {
    let (topology, now) = (topology(&["c-0"]), Instant::now());
    let ms = Duration::from_millis(1);
    end(&topology, "a-0", Ending::Answered, now, ms);
    end(&topology, "a-1", Ending::Answered, now, 9 * ms);
    end(&topology, "b-0", Ending::Answered, now, 3 * ms);
    end(&topology, "b-1", Ending::Answered, now, 3 * ms);
    let later = now + 9 * ms;
    for random in 0..20 {
        let chosen = routed(&topology, Choice { random, ..CHOICE }, later);
        assert_eq!(chosen, ["b-0", "b-1"], "a is as slow as its slowest node");
    }
    let _in_flight: Vec<_> = (0..9).map(|_| peer(&topology, "b-1").insist(later)).collect();
    for random in 0..20 {
        assert_eq!(routed(&topology, Choice { random, ..CHOICE }, later), ["a-0", "a-1"]);
    }
}

#[test]
fn the_preferred_group_spills_over_when_it_is_much_worse() {
    let (topology, now) = (topology(&["c-0"]), Instant::now());
    let ms = Duration::from_millis(1);
    for node in ["b-0", "b-1"] {
        end(&topology, node, Ending::Answered, now, ms);
    }
    end(&topology, "a-0", Ending::Answered, now, 3 * ms);
    assert_eq!(routed(&topology, preferring("a"), now + 3 * ms), ["a-0", "a-1"], "a little slower");
    end(&topology, "a-1", Ending::Answered, now, 60 * ms);
    assert_eq!(routed(&topology, preferring("a"), now + 60 * ms), ["b-0", "b-1"], "much slower");
    let calm = now + Duration::from_secs(20);
    assert_eq!(routed(&topology, preferring("a"), calm), ["a-0", "a-1"], "and back");
    let _waiting: Vec<_> = (0..200).map(|_| peer(&topology, "a-0").insist(calm)).collect();
    assert_eq!(routed(&topology, preferring("a"), calm), ["b-0", "b-1"], "much more loaded");
    let patient = Choice { spill_factor: f64::INFINITY, ..preferring("a") };
    assert_eq!(routed(&topology, patient, calm), ["a-0", "a-1"]);
}

#[test]
fn a_hedge_goes_to_another_whole_group() {
    let (topology, now) = (topology(&["b-1"]), Instant::now());
    let request = request();
    let split = Split::new(&request, &topology.map, 0).unwrap();
    let mut router = Router::new(&topology, &split, preferring("a"), now);
    let (first, _) = router.first();
    let pieces = [(0, 0), (0, 1)];
    let mut tried = Tried::default();
    tried.add(&split, &pieces[..1], first.nodes[0]);
    tried.add(&split, &pieces[1..], first.nodes[1]);
    let names =
        |route: &Route<'_>| route.nodes.iter().map(|n| topology.id(*n).to_string()).collect::<Vec<_>>();
    let hedge = router.hedge(&pieces, &tried).unwrap();
    assert_eq!(names(&hedge), ["c-0", "c-1"], "b is not whole");
    end(&topology, "c-1", Ending::Failed, now, Duration::ZERO);
    router.refresh(now);
    assert!(router.hedge(&pieces, &tried).is_none());
    let (route, nobody) = router.elsewhere(&pieces, &tried);
    assert_eq!((names(&route), nobody.len()), (vec!["b-0".to_owned(), "c-1".to_owned()], 0));
}
