//! How a connection to kvd is made: the one place that knows.

use std::time::Duration;

use tonic::transport::Endpoint;

use crate::ConnectError;

/// What holds for every connection of a client.
#[derive(Clone, Debug)]
pub(crate) struct Dial {
    /// Gives up dialling after this long.
    pub connect_timeout: Duration,
    /// Asks an idle connection whether it lives, this often; a second without an answer ends it.
    pub keep_alive: Option<Duration>,
}

impl Default for Dial {
    fn default() -> Self {
        Dial { connect_timeout: Duration::from_secs(1), keep_alive: None }
    }
}

impl Dial {
    /// `http://host:port`, ready to be dialled.
    pub(crate) fn endpoint(&self, uri: &str) -> Result<Endpoint, ConnectError> {
        let endpoint = Endpoint::from_shared(uri.to_owned())
            .map_err(|source| ConnectError::Endpoint { endpoint: uri.to_owned(), source })?
            .connect_timeout(self.connect_timeout);
        Ok(match self.keep_alive {
            None => endpoint,
            Some(every) => endpoint
                .http2_keep_alive_interval(every)
                .keep_alive_timeout(Duration::from_secs(1))
                .keep_alive_while_idle(true),
        })
    }
}
