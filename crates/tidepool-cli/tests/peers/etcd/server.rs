//! An etcd of the test's own: on loopback, over a folder of its own, ended with the test.

use std::{
    fs::File,
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};

use tidepool_runtime::tls::ClientFiles;

use crate::command::DEADLINE;

/// A running etcd, or one that was stopped and can be started again over what it had.
pub(crate) struct Etcd {
    dir: PathBuf,
    client: SocketAddr,
    peer: SocketAddr,
    /// Where the certificates are that clients and it are checked by; `None` for plaintext.
    certs: Option<PathBuf>,
    child: Option<Child>,
}

/// A port that nobody had a moment ago.
fn free(ip: &str) -> SocketAddr {
    TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap()
}

impl Etcd {
    /// Starts it with its data under `dir`, and waits until it answers.
    pub(crate) fn start(dir: &Path) -> Self {
        Self::start_with(dir, "127.0.0.1", None)
    }

    /// The same, where others than this host reach it.
    pub(crate) fn start_at(dir: &Path, ip: &str) -> Self {
        Self::start_with(dir, ip, None)
    }

    /// The same, speaking TLS with whoever has a certificate of this folder's authority.
    pub(crate) fn start_with_tls(dir: &Path, certs: &Path) -> Self {
        Self::start_with(dir, "127.0.0.1", Some(certs.to_owned()))
    }

    fn start_with(dir: &Path, ip: &str, certs: Option<PathBuf>) -> Self {
        let (client, peer) = (free(ip), free("127.0.0.1"));
        let mut etcd = Self { dir: dir.join("etcd"), client, peer, certs, child: None };
        std::fs::create_dir_all(&etcd.dir).unwrap();
        etcd.run();
        etcd
    }

    /// `http://host:port` of it, or `https://host:port`.
    pub(crate) fn endpoint(&self) -> String {
        let scheme = if self.certs.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.client)
    }

    /// What a client needs that speaks TLS with it.
    pub(crate) fn client_files(&self) -> Option<ClientFiles> {
        let certs = self.certs.as_ref()?;
        let own = (certs.join("controller.pem"), certs.join("controller.key"));
        Some(ClientFiles { ca: certs.join("ca.pem"), own: Some(own) })
    }

    /// Starts it again.
    pub(crate) fn run(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let log = File::options().create(true).append(true).open(self.dir.join("log")).unwrap();
        let (client, peer) = (self.endpoint(), format!("http://{}", self.peer));
        let mut command = Command::new("etcd");
        if let Some(certs) = &self.certs {
            for (flag, file) in
                [("--cert-file", "node.pem"), ("--key-file", "node.key"), ("--trusted-ca-file", "ca.pem")]
            {
                command.arg(flag).arg(certs.join(file));
            }
            command.arg("--client-cert-auth");
        }
        let child = command
            .args(["--name", "test", "--data-dir", self.dir.join("data").to_str().unwrap()])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("test={peer}"), "--logger", "zap"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("etcd is installed: apt-get install etcd-server etcd-client");
        self.child = Some(child);
        let until = Instant::now() + DEADLINE;
        while TcpStream::connect(self.client).is_err() || !self.ctl(&["endpoint", "health"]).0 {
            assert!(Instant::now() < until, "etcd does not start: see {}", self.dir.display());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// Ends it at once; what it has acknowledged is on its disk.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// What etcd's own tool does and prints.
    pub(crate) fn ctl(&self, args: &[&str]) -> (bool, String) {
        let mut command = Command::new("etcdctl");
        if let Some(ClientFiles { ca, own: Some((cert, key)) }) = self.client_files() {
            command.arg("--cacert").arg(ca).arg("--cert").arg(cert).arg("--key").arg(key);
        }
        let output = command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.endpoint()])
            .args(args)
            .output()
            .expect("etcdctl is installed: apt-get install etcd-client");
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    }

    /// Its revision now.
    pub(crate) fn revision(&self) -> i64 {
        let (_, text) = self.ctl(&["get", "/", "--write-out", "json"]);
        let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
        answer["header"]["revision"].as_i64().unwrap()
    }

    /// The keys under a prefix.
    pub(crate) fn keys(&self, prefix: &str) -> Vec<String> {
        let (_, text) = self.ctl(&["get", prefix, "--prefix", "--keys-only"]);
        text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
