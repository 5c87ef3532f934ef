//! How a connection to kvd is made: the one place that knows.

use std::time::Duration;

use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

use crate::security::Bearer;
use crate::{ConnectError, Security};

/// A connection that shows its token with every call.
pub(crate) type Link = InterceptedService<Channel, Bearer>;

/// What holds for every connection of a client.
#[derive(Clone, Debug)]
pub(crate) struct Dial {
    /// Gives up dialling after this long.
    pub connect_timeout: Duration,
    /// Asks an idle connection whether it lives, this often; a second without an answer ends it.
    pub keep_alive: Option<Duration>,
    /// Who is trusted, and what is shown.
    pub security: Security,
}

impl Default for Dial {
    fn default() -> Self {
        Dial { connect_timeout: Duration::from_secs(1), keep_alive: None, security: Security::default() }
    }
}

impl Dial {
    /// `http://host:port` or `https://host:port`, ready to be dialled. Certificates must be for `name`, or for the
    /// host.
    pub(crate) fn endpoint(&self, uri: &str, name: Option<&str>) -> Result<Endpoint, ConnectError> {
        let mut endpoint = Endpoint::from_shared(uri.to_owned())
            .map_err(|source| ConnectError::Endpoint { endpoint: uri.to_owned(), source })?
            .connect_timeout(self.connect_timeout);
        let encrypted = endpoint.uri().scheme_str() == Some("https");
        if encrypted != self.security.encrypts() {
            let why = match encrypted {
                true => "https needs a CA to trust (Security::ca)",
                false => "a CA is given, but the address is not https",
            };
            return Err(ConnectError::Security { endpoint: uri.to_owned(), why });
        }
        let host = endpoint.uri().host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        if let Some(tls) = self.security.tls(name.unwrap_or(&host)) {
            endpoint = endpoint
                .tls_config(tls)
                .map_err(|source| ConnectError::Certificates { endpoint: uri.to_owned(), source })?;
        }
        Ok(match self.keep_alive {
            None => endpoint,
            Some(every) => endpoint
                .http2_keep_alive_interval(every)
                .keep_alive_timeout(Duration::from_secs(1))
                .keep_alive_while_idle(true),
        })
    }

    /// A connection that shows what is to be shown.
    pub(crate) fn link(&self, channel: Channel) -> Link {
        InterceptedService::new(channel, self.security.bearer())
    }
}
