//! What the simulated driver counts, under the names by which tests ask for it.

use std::fmt::Write as _;

macro_rules! counters {
    ($($name:ident: $what:literal,)*) => {
        /// Everything that is counted since the start or the last reset.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct Counters {
            $(#[doc = $what] pub $name: u64,)*
        }

        impl Counters {
            /// The counter of this name.
            pub fn get(&self, name: &str) -> Option<u64> {
                match name { $(stringify!($name) => Some(self.$name),)* _ => None }
            }

            /// One JSON object, a member per counter.
            pub fn json(&self) -> String {
                let mut text = String::from("{");
                $(let _ = write!(text, "\n  {:?}: {},", stringify!($name), self.$name);)*
                text.pop();
                text.push_str("\n}\n");
                text
            }
        }
    };
}

counters! {
    copies_in: "Copies from host to device that were asked for, those of graph launches included.",
    bytes_in: "Their bytes.",
    copies_out: "Copies from device to host that were asked for, those of graph launches included.",
    bytes_out: "Their bytes.",
    copies_within: "Copies on the device.",
    fills: "Memory sets.",
    launches: "Kernels launched by themselves, not by a graph.",
    matmuls: "Calls of cublasLtMatmul outside of captures.",
    graph_launches: "Launches of graphs.",
    graph_nodes: "Nodes that launched graphs ran.",
    kernels_run: "Kernels that ran, those of graphs included.",
    matmuls_run: "Matmuls that ran, those of graphs included.",
    instructions: "PTX instructions that kernels executed, over all threads.",
    captures: "Captures that ended in a graph.",
    captures_broken: "Captures that were invalidated.",
    synchronizations: "Waits of the host for a stream, an event or the device.",
    queries: "Questions whether a stream or an event is done.",
    host_calls: "Host functions that streams called.",
    modules_loaded: "Modules loaded.",
    allocations: "Device allocations made.",
    allocations_live: "Device allocations that are live.",
    bytes_live: "Bytes of device memory in use, as the driver rounds them.",
    bytes_peak: "The most that were in use at once.",
    allocations_refused: "Allocations that found no memory.",
    pinned_allocations: "Allocations of pinned host memory made.",
    pinned_live: "Allocations of pinned host memory that are live.",
    pinned_bytes_live: "Bytes of them.",
    streams_live: "Streams that are live.",
    events_live: "Events that are live.",
    graphs_live: "Graphs and executable graphs that are live.",
    modules_live: "Modules that are live.",
    poison_copied_out: "Bytes copied to the host that nobody had written on the device.",
    leaks: "Things that were live when a context was released for the last time.",
    faults: "Findings of the checker and errors injected.",
}

impl Counters {
    /// Starts again from nought, apart from what is live.
    pub(crate) fn restart(&mut self) {
        let before = self.clone();
        *self = Self {
            allocations_live: before.allocations_live,
            bytes_live: before.bytes_live,
            bytes_peak: before.bytes_live,
            pinned_live: before.pinned_live,
            pinned_bytes_live: before.pinned_bytes_live,
            streams_live: before.streams_live,
            events_live: before.events_live,
            graphs_live: before.graphs_live,
            modules_live: before.modules_live,
            ..Self::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_have_names_and_make_json() {
        let counters = Counters { copies_in: 3, bytes_live: 512, ..Counters::default() };
        assert_eq!(counters.get("copies_in"), Some(3));
        assert_eq!(counters.get("no such"), None);
        let json = counters.json();
        assert!(json.starts_with("{\n  \"copies_in\": 3,") && json.ends_with("\"faults\": 0\n}\n"), "{json}");
        let mut again = counters;
        again.restart();
        assert_eq!((again.copies_in, again.bytes_live, again.bytes_peak), (0, 512, 512));
    }
}
