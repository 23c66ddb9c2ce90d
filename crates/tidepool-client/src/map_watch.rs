//! Follows the cluster map at any of the controllers, and keeps the last one on disk.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tidepool_cluster::ClusterMap;
use tidepool_proto::{
    leader_of,
    v1::{WatchMapRequest, control_client::ControlClient},
};
use tokio::{sync::watch, time::timeout};
use tracing::{debug, info, warn};

use crate::{channels::Dial, error::ClientError};

const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LAST_BACKOFF: Duration = Duration::from_secs(2);
/// How long a controller has to begin a stream; one that takes longer must not keep the others from being asked.
const FIRST_ANSWER: Duration = Duration::from_secs(2);

/// The background task of a client that watches the map by itself.
#[derive(Debug)]
pub(crate) struct MapWatch {
    pub(crate) controllers: Vec<String>,
    pub(crate) dial: Dial,
    pub(crate) max_message_bytes: usize,
    pub(crate) file: Option<PathBuf>,
    pub(crate) maps: watch::Sender<Arc<ClusterMap>>,
}

impl MapWatch {
    /// Watches until the task is aborted: one controller after the other, with growing pauses while none
    /// has anything to say.
    pub(crate) async fn run(self) {
        let mut backoff = FIRST_BACKOFF;
        let mut told = false;
        loop {
            let mut next: VecDeque<&String> = self.controllers.iter().collect();
            while let Some(controller) = next.pop_front() {
                let (mut reached, mut leader) = (false, None);
                let ended = self.follow(controller, &mut reached, &mut leader).await;
                // Who leads is asked next, if it is one of those that were configured.
                let at = next.iter().position(|controller| Some(*controller) == leader.as_ref());
                if let Some(leader) = at.and_then(|at| next.remove(at)) {
                    next.push_front(leader);
                }
                if reached {
                    backoff = FIRST_BACKOFF;
                    told = false;
                }
                match ended {
                    Ok(()) => debug!(%controller, "the map stream ended"),
                    // One line when the controllers go away; the tries after it are no news.
                    Err(problem) if !told => {
                        told = true;
                        warn!(%controller, %problem, "watching the cluster map");
                    }
                    Err(problem) => debug!(%controller, %problem, "watching the cluster map"),
                }
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(LAST_BACKOFF);
        }
    }

    /// Takes in every map of one stream, until it ends. `leader` becomes whom a controller names that does not lead.
    async fn follow(
        &self,
        controller: &str,
        reached: &mut bool,
        leader: &mut Option<String>,
    ) -> Result<(), String> {
        let said = |status: tonic::Status| format!("{}: {}", status.code(), status.message());
        let channel = self.dial.channel(controller)?;
        let mut client = ControlClient::new(channel).max_decoding_message_size(self.max_message_bytes);
        let have_epoch = self.maps.borrow().epoch.0;
        let answer = timeout(FIRST_ANSWER, client.watch_map(WatchMapRequest { have_epoch })).await;
        let Ok(answer) = answer else {
            return Err(format!("no answer within {} ms", FIRST_ANSWER.as_millis()));
        };
        let mut stream = answer
            .map_err(|status| {
                *leader = leader_of(&status).map(str::to_owned);
                said(status)
            })?
            .into_inner();
        info!(controller, have_epoch, "watching the cluster map");
        *reached = true;
        while let Some(map) = stream.message().await.map_err(said)? {
            let map = ClusterMap::try_from(map).map_err(|error| format!("a bad cluster map: {error}"))?;
            self.take(map).await;
        }
        Ok(())
    }

    /// Publishes `map` when it is newer than what there is, and saves it.
    async fn take(&self, map: ClusterMap) {
        let map = Arc::new(map);
        let newer = self.maps.send_if_modified(|have| {
            let newer = map.epoch > have.epoch;
            if newer {
                *have = Arc::clone(&map);
            }
            newer
        });
        if !newer {
            debug!(epoch = %map.epoch, "an older cluster map was passed over");
            return;
        }
        let Some(file) = self.file.clone() else { return };
        let epoch = map.epoch;
        let saved = tokio::task::spawn_blocking(move || save(&file, &map)).await;
        if let Err(error) = saved.unwrap_or_else(|error| Err(io::Error::other(error))) {
            warn!(%error, %epoch, "the cluster map could not be saved");
        }
    }
}

/// The saved map, if `file` is named and there. It is checked as a map from the wire is.
///
/// # Errors
/// [`ClientError::MapFile`] when it is there and cannot be used.
pub(crate) async fn load(file: Option<PathBuf>) -> Result<Option<ClusterMap>, ClientError> {
    let Some(path) = file else { return Ok(None) };
    let at = path.clone();
    let read = tokio::task::spawn_blocking(move || read(&at)).await;
    read.unwrap_or_else(|error| Err(io::Error::other(error)))
        .map_err(|source| ClientError::MapFile { path, source })
}

fn read(path: &Path) -> io::Result<Option<ClusterMap>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let map: ClusterMap = serde_json::from_slice(&text)?;
    map.validate().map_err(io::Error::other)?;
    Ok(Some(map))
}

/// Writes beside the file and renames, so that a reader finds the old map or the new one, whole.
fn save(path: &Path, map: &ClusterMap) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    // Several clients may keep their map in one file: each writes its own draft.
    name.push(format!(".{}.{}.tmp", std::process::id(), map.epoch));
    let draft = folder.join(name);
    let written = (|| {
        let mut file = File::create(&draft)?;
        file.write_all(&serde_json::to_vec_pretty(map)?)?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        // What is left of the draft is of no use; that it is gone already is no failure.
        let _ = fs::remove_file(&draft);
    }
    written
}

#[cfg(test)]
mod tests {
    use tidepool_types::Epoch;

    use super::*;

    #[tokio::test]
    async fn a_saved_map_comes_back_and_a_damaged_one_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/map.json");
        assert!(load(None).await.unwrap().is_none());
        assert!(load(Some(path.clone())).await.unwrap().is_none(), "there is no file yet");
        let map = ClusterMap { epoch: Epoch(7), ..Default::default() };
        save(&path, &map).unwrap();
        save(&path, &ClusterMap { epoch: Epoch(8), ..map }).unwrap();
        assert_eq!(load(Some(path.clone())).await.unwrap().unwrap().epoch, Epoch(8));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no draft stays");
        let text = fs::read(&path).unwrap();
        fs::write(&path, &text[..text.len() / 2]).unwrap();
        let error = load(Some(path.clone())).await.unwrap_err();
        assert!(error.to_string().contains("map.json"), "{error}");
    }
}
