//! moto's S3 server, which speaks the real protocol, and a link to it that can be cut.

use std::{
    io::{Read, Write, copy},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use crate::command::{DEADLINE, tidepool};

pub(crate) const BUCKET: &str = "tidepool";
/// Letters that must not be found anywhere but in a request's signature.
pub(crate) const SECRET: &str = "sEcReT-that-nobody-may-see";

/// Who is named is believed.
const SOMEBODY: &str =
    "AWS4-HMAC-SHA256 Credential=tester/20261122/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";

/// The server; it ends when dropped.
pub(crate) struct Moto {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Moto {
    /// Starts it with one bucket. `TIDEPOOL_MOTO_SERVER` says where it is, if it is not in the path.
    pub(crate) fn start() -> Self {
        let program = std::env::var("TIDEPOOL_MOTO_SERVER").unwrap_or_else(|_| "moto_server".into());
        // Free now, and nobody else asks for just this one.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut command = Command::new(&program);
        command.args(["-H", "127.0.0.1", "-p", &address.port().to_string()]);
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = spawned.unwrap_or_else(|e| panic!("{program}: {e}; scripts/check.sh peers installs it"));
        let moto = Self { child, address };
        let begun = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(begun.elapsed() < DEADLINE, "{program} does not listen at {address}");
            thread::sleep(Duration::from_millis(50));
        }
        moto.put("", b"");
        moto
    }

    /// Sends it a signal, as `-STOP`: it holds its connections then, and answers nobody until `-CONT`.
    pub(crate) fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    /// Puts an object, or the bucket: moto looks at no signature.
    pub(crate) fn put(&self, key: &str, content: &[u8]) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let length = content.len();
        let path = if key.is_empty() { format!("/{BUCKET}") } else { format!("/{BUCKET}/{key}") };
        write!(
            stream,
            "PUT {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nAuthorization: {SOMEBODY}\r\n\
             Content-Length: {length}\r\n\r\n",
            self.address
        )
        .unwrap();
        stream.write_all(content).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The variables by which a process finds an object store there.
pub(crate) fn variables(address: SocketAddr) -> Vec<(&'static str, String)> {
    vec![
        ("AWS_ENDPOINT_URL", format!("http://{address}")),
        ("AWS_REGION", "us-east-1".into()),
        ("AWS_ACCESS_KEY_ID", "tester".into()),
        ("AWS_SECRET_ACCESS_KEY", SECRET.into()),
    ]
}

/// Runs a command of the operator's beside the store; gives the exit code and what it said.
pub(crate) fn run(address: SocketAddr, args: &[&str]) -> (i32, String, serde_json::Value) {
    let output = tidepool().envs(variables(address)).arg("--json").args(args).output().unwrap();
    let (stdout, stderr) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(!stdout.contains(SECRET) && !stderr.contains(SECRET), "{args:?} told the secret");
    let object = serde_json::from_str(stdout.trim()).unwrap_or_default();
    (output.status.code().unwrap(), stderr, object)
}

/// A link that passes everything on until it is cut, and again when it is mended.
pub(crate) struct Link {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    is_cut: bool,
    streams: Vec<TcpStream>,
}

impl Link {
    pub(crate) fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        // It ends with the tests' process.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let mut state = shared.lock().unwrap();
                let Ok(upstream) = TcpStream::connect(server) else { continue };
                if state.is_cut {
                    continue;
                }
                state.streams.extend([client.try_clone().unwrap(), upstream.try_clone().unwrap()]);
                for (mut from, mut to) in
                    [(client.try_clone().unwrap(), upstream.try_clone().unwrap()), (upstream, client)]
                {
                    thread::spawn(move || {
                        // A link that was cut ends in an error on one side.
                        let _ = copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        Self { address, state }
    }

    pub(crate) fn cut(&self) {
        let mut state = self.state.lock().unwrap();
        state.is_cut = true;
        for stream in state.streams.drain(..) {
            // One side may have closed it already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub(crate) fn mend(&self) {
        self.state.lock().unwrap().is_cut = false;
    }
}
