//! A cluster of real processes, whose rankers have a simulated device each, and the orders that a device is given from here.

use std::{
    env, fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    command::{DEADLINE, Role, keys, tidepool},
    models::REQUEST,
    trained::Trained,
};

/// The folders of the loader's path: those that have the stand-in, and the others.
pub(crate) fn folders() -> (Vec<PathBuf>, Vec<PathBuf>) {
    let path = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let (with, without): (Vec<_>, Vec<_>) =
        env::split_paths(&path).partition(|folder| folder.join("libcuda.so").exists());
    assert!(
        !with.is_empty(),
        "there is no stand-in for the driver: these tests run under scripts/with-sim.sh"
    );
    (with, without)
}

/// A controller and a node that serve model `m`.
pub(crate) struct Cluster {
    pub(crate) trained: Trained,
    pub(crate) controller: Role,
    _node: Role,
}

impl Cluster {
    pub(crate) fn start() -> Self {
        folders();
        let trained = Trained::new();
        let controller = Role::controller(trained.path(), trained.store.root());
        let node = trained.node(&controller, &[]);
        Self { trained, controller, _node: node }
    }

    /// Starts a ranker on the device, with these keys beside the usual ones. What it wrote in its last life is there.
    pub(crate) fn ranker(&self, name: &str, more: &[(&'static str, String)]) -> Gpu {
        let dir = self.trained.path().join(name);
        fs::create_dir_all(&dir).unwrap();
        let mut keys = keys(&dir, self.trained.store.root(), "ranker");
        keys.push(("controllers", format!("{:?}", [&self.controller.grpc_address])));
        keys.push(("ranker", name.into()));
        keys.push(("device", "cuda:0".into()));
        keys.push(("cuda.buckets", "[[8, 4]]".into()));
        keys.extend(more.iter().cloned());
        let orders = dir.join("orders");
        let environment = [("TIDEPOOL_SIM_ORDERS", orders.display().to_string())];
        let role = Role::start_by(tidepool(), "127.0.0.1", &dir, "ranker", &keys, &environment);
        Gpu { role, dir, orders }
    }
}

/// A ranker with a device.
pub(crate) struct Gpu {
    pub(crate) role: Role,
    dir: PathBuf,
    orders: PathBuf,
}

impl Gpu {
    /// Gives the device an order, which it follows with the next call that it gets.
    pub(crate) fn order(&self, order: &str) {
        let beside = self.orders.with_extension("new");
        fs::write(&beside, order).unwrap();
        fs::rename(beside, &self.orders).unwrap();
    }

    /// Whether the last order was followed.
    pub(crate) fn obeyed(&self) -> bool {
        !self.orders.exists()
    }

    /// One ranking: status and body. It must come before the deadline of these tests.
    pub(crate) fn rank(&self) -> (u16, Value) {
        rank(&self.role.http_address).unwrap()
    }

    /// What `path` of its HTTP side says: status and body.
    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        exchange(&self.role.http_address, "GET", path, "").unwrap()
    }

    pub(crate) fn status(&self) -> Value {
        serde_json::from_str(&self.get("/status").1).unwrap()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.role.log).unwrap()
    }

    /// The files of its kernel cache: names, inodes and what is in them.
    pub(crate) fn kernels(&self) -> Vec<(String, u64, Vec<u8>)> {
        let folder = self.dir.join("ranker/kernels");
        let file = |entry: fs::DirEntry| {
            let name = entry.file_name().into_string().unwrap();
            (name, entry.metadata().unwrap().ino(), fs::read(entry.path()).unwrap())
        };
        let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| file(entry.unwrap())).collect();
        files.sort();
        files
    }
}

/// One ranking by the ranker at this address.
pub(crate) fn rank(address: &str) -> std::io::Result<(u16, Value)> {
    let (status, body) = exchange(address, "POST", "/v1/rank", REQUEST)?;
    Ok((status, serde_json::from_str(&body).unwrap_or_default()))
}

fn exchange(address: &str, method: &str, path: &str, body: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or(std::io::ErrorKind::InvalidData)?, body.to_owned()))
}

/// Asks until there is something.
pub(crate) fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(begun.elapsed() < DEADLINE, "waiting for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// The loader's path of these folders.
pub(crate) fn path_of(folders: &[PathBuf]) -> String {
    env::join_paths(folders).unwrap().into_string().unwrap()
}

/// Keys of a ranker that has nothing but its device.
pub(crate) fn bare_keys(dir: &Path, device: &str) -> Vec<String> {
    let data_dir = format!("data_dir={}", dir.join("data").display());
    let store = format!("store={}", dir.join("store").display());
    let device = format!("device={device}");
    ["ranker=r-1", "grpc_address=127.0.0.1:0", "http_address=127.0.0.1:0", &data_dir, &store, &device]
        .iter()
        .flat_map(|key| ["--set".to_owned(), (*key).to_owned()])
        .collect()
}
