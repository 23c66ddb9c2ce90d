//! The cluster that a command talks to: where its controller is, and what opens its doors.

use std::{env, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use tidepool_client::{BearerToken, ClientConfig, Connector};
use tidepool_proto::v1::control_client::ControlClient;
use tidepool_runtime::{
    secret::Secret,
    tls::{ClientFiles, Dial, Stream},
};
use tidepool_types::ports;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use crate::leader;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// A bearer token. There is no flag for it: whoever lists processes would see it.
const TOKEN: &str = "TIDEPOOL_TOKEN";

/// Flags that every command has.
#[derive(Args)]
pub(crate) struct RemoteArgs {
    /// The controller's gRPC address, or several with commas between; without it 127.0.0.1:7400, but for benches,
    /// which start a cluster then.
    #[arg(long, global = true, env = "TIDEPOOL_CONTROLLER", value_name = "HOST:PORT")]
    pub(crate) controller: Option<String>,
    /// Speak TLS, with whom these authorities (PEM) vouch for.
    #[arg(long, global = true, env = "TIDEPOOL_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Show this certificate (PEM).
    #[arg(long, global = true, env = "TIDEPOOL_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// The private key of --tls-cert (PEM).
    #[arg(long, global = true, env = "TIDEPOOL_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Show the bearer token in this file; without it that of the variable TIDEPOOL_TOKEN, if it is set.
    #[arg(long, global = true, env = "TIDEPOOL_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// The cluster of a command.
#[derive(Clone, Debug)]
pub(crate) struct Remote {
    /// `host:port` of the controller; of several, with commas between.
    pub(crate) controller: String,
    dial: Dial,
    token: Option<Secret>,
}

/// A client of the controller.
pub(crate) type Control = ControlClient<Caller>;
/// A channel on which calls say who asks.
pub(crate) type Caller = InterceptedService<Channel, Bearer>;

/// Puts the token into calls, if there is one.
#[derive(Clone, Debug)]
pub(crate) struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

impl RemoteArgs {
    /// Reads what the flags name.
    pub(crate) fn read(self) -> Result<Remote> {
        let dial = match (self.tls_ca, self.tls_cert, self.tls_key) {
            (None, None, None) => Dial::default(),
            (None, ..) => bail!("--tls-cert and --tls-key need --tls-ca: whom is the certificate shown to?"),
            (Some(_), Some(_), None) | (Some(_), None, Some(_)) => {
                bail!("--tls-cert and --tls-key: both or neither must be given")
            }
            (Some(ca), cert, key) => Dial::with_files(&ClientFiles { ca, own: cert.zip(key) })?,
        };
        let token = match self.token_file {
            Some(path) => Some(Secret::read(&path)?),
            None => env::var(TOKEN).ok().filter(|token| !token.is_empty()).map(|t| Secret::new(t.trim())),
        };
        let controller = self.controller.unwrap_or_else(|| format!("127.0.0.1:{}", ports::CONTROLLER_GRPC));
        let remote = Remote { controller, dial, token };
        remote.bearer()?;
        Ok(remote)
    }
}

impl Remote {
    /// A cluster on this machine that speaks plaintext and asks nobody who they are.
    pub(crate) fn plaintext(controller: String) -> Self {
        Self { controller, dial: Dial::default(), token: None }
    }

    /// A token is a password: it crosses no network that others can read.
    fn check_token_stays_secret(&self, address: &str) -> Result<()> {
        ensure!(
            self.token.is_none() || self.dial.is_tls() || is_this_machine(address),
            "the token would travel to {address} in plaintext, for all to read: give --tls-ca, or leave the token out \
             ({TOKEN}, --token-file)"
        );
        Ok(())
    }

    /// Opens a channel to `host:port`.
    pub(crate) async fn channel(&self, what: &str, address: &str) -> Result<Caller> {
        self.check_token_stays_secret(address)?;
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .with_context(|| format!("{address:?} is no host:port"))?
            .tcp_nodelay(true)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT);
        let channel = self.dial.connect(endpoint).await;
        let channel = channel.with_context(|| format!("no {what} answers at {address}"))?;
        Ok(InterceptedService::new(channel, self.bearer()?))
    }

    /// Connects to the controller that leads.
    pub(crate) async fn control(&self) -> Result<Control> {
        Ok(ControlClient::new(leader::channel(self).await?))
    }

    /// `host:port` of the controllers that were named.
    pub(crate) fn controllers(&self) -> Vec<String> {
        self.controller.split(',').map(|address| address.trim().to_owned()).collect()
    }

    /// A connection for HTTP to `host:port`.
    pub(crate) async fn http(&self, address: &str) -> Result<Stream> {
        self.check_token_stays_secret(address)?;
        Ok(self.dial.http(address).await?)
    }

    /// The `authorization` of an HTTP request.
    pub(crate) fn authorization(&self) -> Option<String> {
        self.token.as_ref().map(|token| format!("Bearer {}", token.expose()))
    }

    /// How a lookup client finds this cluster.
    pub(crate) fn client_config(&self) -> Result<ClientConfig> {
        self.controllers().iter().try_for_each(|address| self.check_token_stays_secret(address))?;
        let dial = self.dial.clone();
        Ok(ClientConfig {
            controllers: self.controllers(),
            connector: dial.is_tls().then(|| Connector::new(move |endpoint| dial.channel(endpoint))),
            token: self.token.as_ref().map(|token| BearerToken::new(token.expose())).transpose()?,
            ..ClientConfig::default()
        })
    }

    fn bearer(&self) -> Result<Bearer> {
        let Some(authorization) = self.authorization() else { return Ok(Bearer(None)) };
        let value = authorization.parse::<MetadataValue<Ascii>>();
        ensure!(value.is_ok(), "the token has letters that cannot be sent");
        let mut value = value?;
        value.set_sensitive(true);
        Ok(Bearer(Some(value)))
    }
}

/// Whether `host:port` is a loopback address, or the name of one.
fn is_this_machine(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host.eq_ignore_ascii_case("localhost") || ip.is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_token_goes_to_no_other_machine_in_plaintext() {
        let token = Some(Secret::new("t"));
        let remote = Remote { token, ..Remote::plaintext("203.0.113.7:7400".into()) };
        for address in ["203.0.113.7:7400", "[2001:db8::1]:7400", "controller:7400", "localhost.example:7400"]
        {
            let error = remote.channel("controller", address).await.unwrap_err().to_string();
            assert!(error.contains("in plaintext") && error.contains(address), "{error}");
            assert!(remote.http(address).await.unwrap_err().to_string().contains("in plaintext"));
        }
        assert!(remote.client_config().unwrap_err().to_string().contains("in plaintext"));
        for address in ["127.0.0.1:7400", "[::1]:7400", "localhost:7400"] {
            assert!(is_this_machine(address), "{address}");
        }
        assert!(Remote::plaintext("203.0.113.7:7400".into()).client_config().is_ok(), "without a token");
    }
}
