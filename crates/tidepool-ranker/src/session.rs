//! The session with a controller: reports go up, cluster maps come down. While no controller can be
//! reached the ranker goes on with the last map, which it also keeps on disk.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwapOption;
use tidepool_client::ClusterMap;
use tidepool_proto::{
    leader_of,
    v1::{RankerReport, control_client::ControlClient},
};
use tidepool_runtime::{error::chain, shutdown::Shutdown, tls::Dial};
use tokio::{sync::watch, time};
use tokio_stream::wrappers::WatchStream;
use tonic::transport::{Channel, Endpoint};
use tracing::{debug, info, warn};

const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LAST_BACKOFF: Duration = Duration::from_secs(2);
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// Maps of large clusters are larger than a request may be.
const MAX_MAP_BYTES: usize = 64 << 20;

/// Follows the map at one controller after the other.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) controllers: Vec<String>,
    pub(crate) dial: Dial,
    pub(crate) connect_timeout: Duration,
    pub(crate) reports: watch::Receiver<RankerReport>,
    pub(crate) maps: watch::Sender<Arc<ClusterMap>>,
    pub(crate) map_file: PathBuf,
    pub(crate) shutdown: Shutdown,
    /// The controller that is followed now, for `/status`.
    pub(crate) connected: Arc<ArcSwapOption<String>>,
}

/// Puts the controller that leads before the others, if it is one of those that are to be asked: a name that nobody
/// has configured is not followed.
fn first_of(next: &mut VecDeque<&String>, leader: Option<&str>) {
    let at = next.iter().position(|controller| Some(controller.as_str()) == leader);
    if let Some(leader) = at.and_then(|at| next.remove(at)) {
        next.push_front(leader);
    }
}

impl Session {
    /// Runs until it is dropped.
    pub(crate) async fn run(self) {
        let mut backoff = FIRST_BACKOFF;
        let mut told = false;
        loop {
            let mut next: VecDeque<&String> = self.controllers.iter().collect();
            while let Some(controller) = next.pop_front() {
                let mut leader = None;
                let ended = self.follow(controller, &mut leader).await;
                first_of(&mut next, leader.as_deref());
                if self.connected.swap(None).is_some() {
                    backoff = FIRST_BACKOFF;
                    told = false;
                }
                match ended {
                    Ok(()) => info!(%controller, "the controller ended the session"),
                    // One line when the controllers go away; the tries after it are no news.
                    Err(problem) if !told => {
                        told = true;
                        warn!(%controller, %problem, "no session with the controller; the last map is used");
                    }
                    Err(problem) => debug!(%controller, %problem, "no session with the controller"),
                }
            }
            time::sleep(backoff).await;
            backoff = (backoff * 2).min(LAST_BACKOFF);
        }
    }

    /// One session, until it ends. `leader` becomes whom a controller names that does not lead.
    async fn follow(&self, controller: &str, leader: &mut Option<String>) -> Result<(), String> {
        let channel = self.connect(controller).await.map_err(|e| chain(&e))?;
        let mut control = ControlClient::new(channel).max_decoding_message_size(MAX_MAP_BYTES);
        let reports = WatchStream::new(self.reports.clone());
        let said = |status: tonic::Status| format!("{}: {}", status.code(), status.message());
        let answer = control.ranker_session(reports).await;
        let mut maps = answer
            .map_err(|status| {
                *leader = leader_of(&status).map(str::to_owned);
                said(status)
            })?
            .into_inner();
        info!(%controller, "session with the controller");
        self.connected.store(Some(Arc::new(controller.to_owned())));
        while let Some(map) = maps.message().await.map_err(said)? {
            let map = ClusterMap::try_from(map).map_err(|e| format!("a bad cluster map: {}", chain(&e)))?;
            self.take(map).await;
        }
        Ok(())
    }

    async fn connect(&self, controller: &str) -> Result<Channel, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{controller}"))?
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        self.dial.connect(endpoint).await
    }

    /// Hands a newer map on, and saves it.
    async fn take(&self, map: ClusterMap) {
        let (epoch, map) = (map.epoch, Arc::new(map));
        let newer = self.maps.send_if_modified(|have| {
            // Before the first map there is an empty one of epoch 0.
            let newer = epoch > have.epoch || have.epoch.0 == 0;
            if newer {
                *have = map.clone();
            }
            newer
        });
        if !newer {
            debug!(%epoch, "a cluster map that is not newer was passed over");
            return;
        }
        info!(%epoch, "cluster map");
        let file = self.map_file.clone();
        // A task of its own, which the draining waits for: a map that was served is there after a restart,
        // even if the ranker is asked to end at this moment. Awaited, so that maps are saved in order.
        let saving = self.shutdown.spawn(async move {
            let shown = file.display().to_string();
            let saved = tokio::task::spawn_blocking(move || save(&file, &map)).await;
            if let Err(error) = saved.unwrap_or_else(|error| Err(io::Error::other(error))) {
                warn!(%error, %epoch, path = shown, "the cluster map could not be saved");
            }
        });
        if let Err(error) = saving.await {
            warn!(%error, %epoch, "the saving of a cluster map was lost");
        }
    }
}

/// The saved map, checked as one from the wire is; `None` when there is none.
///
/// # Errors
/// When there is a file that cannot be read or holds no sound map.
pub(crate) fn load(path: &Path) -> io::Result<Option<ClusterMap>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let map: ClusterMap = serde_json::from_slice(&text)?;
    map.validate().map_err(io::Error::other)?;
    Ok(Some(map))
}

/// Writes beside the file and renames: a crash leaves the old map or the new one, whole.
fn save(path: &Path, map: &ClusterMap) -> io::Result<()> {
    let draft = path.with_extension("json.tmp");
    let mut file = File::create(&draft)?;
    file.write_all(&serde_json::to_vec_pretty(map)?)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use tidepool_types::Epoch;

    use super::*;

    #[test]
    fn who_leads_is_asked_next_if_it_is_one_of_the_controllers() {
        let all = ["a:1", "b:1", "c:1"].map(str::to_owned);
        let order = |leader| {
            let mut next = all.iter().collect();
            first_of(&mut next, leader);
            next.into_iter().map(String::as_str).collect::<Vec<_>>()
        };
        assert_eq!(order(Some("c:1")), ["c:1", "a:1", "b:1"]);
        assert_eq!(order(Some("elsewhere:1")), ["a:1", "b:1", "c:1"]);
        assert_eq!(order(None), ["a:1", "b:1", "c:1"]);
    }

    #[test]
    fn a_saved_map_comes_back_and_a_damaged_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cluster-map.json");
        assert!(load(&path).unwrap().is_none());
        for epoch in [7, 8] {
            save(&path, &ClusterMap { epoch: Epoch(epoch), ..ClusterMap::default() }).unwrap();
        }
        assert_eq!(load(&path).unwrap().unwrap().epoch, Epoch(8));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no draft stays");
        let text = fs::read(&path).unwrap();
        fs::write(&path, &text[..text.len() / 2]).unwrap();
        assert!(load(&path).is_err());
    }
}
