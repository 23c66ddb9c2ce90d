//! Listening: one function, so that a taken port reads the same in every role.

use std::{fmt, io};

use thiserror::Error;
use tokio::net::{TcpListener, ToSocketAddrs};

/// Why an address could not be listened at.
#[derive(Debug, Error)]
pub enum NetError {
    /// Someone listens there already.
    #[error("the address {address} is taken: another process listens there")]
    Taken {
        /// As it was asked for.
        address: String,
        /// What the system says.
        source: io::Error,
    },
    /// The address does not parse or resolve, is not of this machine, or is not allowed.
    #[error("could not listen at {address}")]
    Listen {
        /// As it was asked for.
        address: String,
        /// Why.
        source: io::Error,
    },
}

/// Listens at `address` (`host:port`, a `SocketAddr`, ...; port 0 takes a free one). Connections do not have
/// `TCP_NODELAY` yet: hand the listener to something that sets it.
///
/// # Errors
/// [`NetError`] names the address.
pub async fn bind_tcp(address: impl ToSocketAddrs + fmt::Display) -> Result<TcpListener, NetError> {
    let name = address.to_string();
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => NetError::Taken { address: name, source },
        _ => NetError::Listen { address: name, source },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let first = bind_tcp("127.0.0.1:0").await.unwrap();
        let address = first.local_addr().unwrap();
        let error = bind_tcp(address).await.unwrap_err();
        assert!(matches!(error, NetError::Taken { .. }), "{error:?}");
        assert_eq!(
            error.to_string(),
            format!("the address {address} is taken: another process listens there")
        );
    }

    #[tokio::test]
    async fn what_is_no_address_is_named() {
        for address in ["nowhere", "127.0.0.1", "127.0.0.1:99999", "192.0.2.1:0"] {
            let error = bind_tcp(address).await.unwrap_err();
            assert!(matches!(error, NetError::Listen { .. }), "{error:?}");
            assert_eq!(error.to_string(), format!("could not listen at {address}"));
        }
    }
}
