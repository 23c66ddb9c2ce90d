//! How drills begin and end in which something happens to one of four nodes, or to its link, under load.

use std::time::Duration;

use tidepool_client::{Client, ClientConfig};

use super::{
    Drill, Params, Proxy, Report,
    load::{nothing_failed, p99_ms, steady},
    site::{Site, answered_lookups},
};
use crate::{BenchError, load::LoadReport, process::Process};

/// Two groups of two nodes, a client, and what its load was like before anything happened.
pub(super) struct Scene {
    pub(super) report: Report,
    pub(super) site: Site,
    pub(super) client: Client,
    /// One before each node, when the client reaches them so.
    pub(super) proxies: Vec<Proxy>,
    pub(super) before: LoadReport,
}

/// How the client reaches the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Links {
    Direct,
    Proxied,
}

impl Scene {
    /// Starts the cluster and puts load on it: half a phase to warm up, a whole one to compare with.
    pub(super) async fn open(
        drill: Drill,
        params: &Params,
        links: Links,
        progress: &mut (dyn FnMut(&str) + Send),
    ) -> Result<Self, BenchError> {
        let site = Site::start(params, (2, 2), toml::Table::new(), progress).await?;
        let (client, proxies) = match links {
            Links::Direct => (site.client(ClientConfig::default()).await?, Vec::new()),
            Links::Proxied => site.proxied_client(ClientConfig::default()).await?,
        };
        steady(&client, site.table, params, params.phase / 2, 0).await?;
        let before = steady(&client, site.table, params, params.phase, 1).await?;
        let mut scene = Self { report: Report::new(drill, params), site, client, proxies, before };
        let answered = answered_lookups(scene.victim()).await?;
        let text = format!("before: the node that it happens to has answered {answered} lookups");
        scene.report.promise(answered > 0.0, text);
        Ok(scene)
    }

    /// The node that it happens to.
    pub(super) fn victim(&self) -> &Process {
        &self.site.cluster.nodes()[0]
    }

    /// Notes that nothing may have failed, and that the node was asked again after `returned`; ends the cluster.
    pub(super) async fn close(
        mut self,
        during: &LoadReport,
        after: &LoadReport,
        returned: Option<Duration>,
    ) -> Result<Report, BenchError> {
        let loads = [
            ("before", "p99_before_ms", &self.before),
            ("during", "p99_during_ms", during),
            ("after", "p99_after_ms", after),
        ];
        for (what, figure, load) in loads {
            nothing_failed(&mut self.report, what, load);
            self.report.figure(figure, p99_ms(load));
        }
        self.report.figure("max_during_ms", during.latency.max_us() / 1e3);
        self.report.promise(returned.is_some(), "the node is asked again, without anybody's help");
        self.report.figure("return_ms", returned.unwrap_or_default().as_secs_f64() * 1e3);
        self.site.stop().await?;
        Ok(self.report)
    }
}
