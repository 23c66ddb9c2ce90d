//! The client of an S3 API, set up from the environment.

use std::{sync::Arc, time::Duration};

use object_store::{
    BackoffConfig, ClientOptions, ObjectStore, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
};

use super::told;
use crate::error::StoreError;

/// For a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two pieces of an answer. There is no bound on the whole of one: a throttle makes large ones long.
const READ_TIMEOUT: Duration = Duration::from_secs(20);

/// The client for a bucket, by the `AWS_...` variables. `location` is for messages.
pub(super) fn client(bucket: &str, location: &str) -> Result<Arc<dyn ObjectStore>, StoreError> {
    // The client has TLS with no cryptography of its own. Who installed another before keeps it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = AmazonS3Builder::from_env();
    let endpoint = [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint];
    let endpoint = endpoint.iter().find_map(|key| builder.get_config_value(key));
    // Whoever writes http:// means it; that it is not https is for them to decide, and for the log to say.
    let plain = endpoint.as_deref().is_some_and(|url| url.starts_with("http://"));
    if plain {
        tracing::warn!(location, "AWS_ENDPOINT_URL is http: artifacts travel unencrypted");
    }
    let options = ClientOptions::new()
        .with_allow_http(plain)
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_read_timeout(READ_TIMEOUT)
        .with_timeout_disabled();
    // What is left out here is retried by us, where it can go on from what has come. Parts of an upload are not.
    let retry = RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(1),
            base: 2.0,
        },
        max_retries: 2,
        retry_timeout: Duration::from_secs(10),
    };
    let built = builder.with_bucket_name(bucket).with_client_options(options).with_retry(retry).build();
    match built {
        Ok(client) => Ok(Arc::new(client)),
        Err(error) => Err(StoreError::Settings { location: location.to_owned(), problem: told(&error) }),
    }
}
