//! Hosts and the networks between them. A host is a network namespace; a network is a bridge in the namespace of the
//! test, which has the first address of it. A cable that is pulled is a link that is down: nothing comes through, and
//! nobody is told.

use std::{path::Path, process::Command};

use super::run;
use crate::command::{Role, tidepool};

/// A network: the name of its bridge, and what its addresses begin with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Net {
    name: &'static str,
    addresses: &'static str,
}

/// By which controllers, nodes and clients know each other.
pub(super) const SERVICE: Net = Net { name: "service", addresses: "10.77.0" };
/// By which controllers reach etcd.
pub(super) const STORE: Net = Net { name: "store", addresses: "10.78.0" };

impl Net {
    /// The address of a host.
    pub(super) fn address(self, host: u8) -> String {
        format!("{}.{host}", self.addresses)
    }

    /// Makes it. The test is host 1.
    pub(super) fn make(self) {
        run("ip", &["link", "add", self.name, "type", "bridge"]);
        run("ip", &["addr", "add", &format!("{}/24", self.address(1)), "dev", self.name]);
        run("ip", &["link", "set", self.name, "up"]);
    }
}

/// A host in some networks.
#[derive(Debug)]
pub(super) struct Host {
    name: String,
    pub(super) number: u8,
}

/// Where `ip` keeps names of namespaces. It is this test's own folder, and gone with it.
pub(super) fn make_room_for_names() {
    run("mount", &["-t", "tmpfs", "tidepool-test", "/run"]);
}

impl Host {
    pub(super) fn add(name: &str, number: u8, nets: &[Net]) -> Self {
        let host = Self { name: name.to_owned(), number };
        run("ip", &["netns", "add", name]);
        run("ip", &["-n", name, "link", "set", "lo", "up"]);
        for net in nets {
            let cable = host.cable(*net);
            run("ip", &["link", "add", &cable, "type", "veth", "peer", "name", net.name, "netns", name]);
            run("ip", &["link", "set", &cable, "master", net.name, "up"]);
            let address = format!("{}/24", net.address(number));
            run("ip", &["-n", name, "addr", "add", &address, "dev", net.name]);
            run("ip", &["-n", name, "link", "set", net.name, "up"]);
        }
        host
    }

    fn cable(&self, net: Net) -> String {
        format!("{}-{}", self.name, net.name)
    }

    /// Pulls its cable out of a network.
    pub(super) fn cut(&self, net: Net) {
        run("ip", &["link", "set", &self.cable(net), "down"]);
    }

    /// Puts it back.
    pub(super) fn mend(&self, net: Net) {
        run("ip", &["link", "set", &self.cable(net), "up"]);
    }

    /// Starts a role on it, which listens in the service network.
    pub(super) fn start(&self, dir: &Path, role: &str, set: &[(&str, String)]) -> Role {
        let tidepool = tidepool();
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg(tidepool.get_program());
        for (name, value) in tidepool.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        Role::start_by(command, &SERVICE.address(self.number), dir, role, set, &[])
    }
}
