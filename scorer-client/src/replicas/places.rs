//! Where replicas are: names, what they resolve to, and who came and went.

use std::net::SocketAddr;

use tonic::codegen::http::Uri;

use crate::ConnectError;

/// `http://host:port`, `https://host:port`, or `host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    scheme: String,
    host: String,
    port: u16,
}

impl Place {
    /// Reads one; `encrypted` says what one without a scheme is.
    pub(crate) fn parse(text: &str, encrypted: bool) -> Result<Place, ConnectError> {
        let scheme = if encrypted { "https" } else { "http" };
        let full = if text.contains("://") { text.to_owned() } else { format!("{scheme}://{text}") };
        let wrong = || ConnectError::Place { place: text.to_owned() };
        let uri: Uri = full.parse().map_err(|_| wrong())?;
        let (Some(scheme), Some(host), Some(port)) = (uri.scheme_str(), uri.host(), uri.port_u16()) else {
            return Err(wrong());
        };
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(wrong());
        }
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Place { scheme: scheme.to_owned(), host, port })
    }

    /// The name that certificates are for.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// What one of its replicas is dialled by.
    pub(crate) fn uri(&self, address: SocketAddr) -> String {
        format!("{}://{address}", self.scheme)
    }

    /// Everything the name stands for now; `None` where nobody could say.
    pub(crate) async fn resolve(&self) -> Option<Vec<SocketAddr>> {
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await.ok()?;
        Some(found.collect())
    }
}

/// What places resolve to, with the place each came from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Resolved {
    known: Vec<Vec<SocketAddr>>,
}

impl Resolved {
    /// Takes note of what was `found` for each place. A name that could not be resolved keeps what it
    /// had: a name server that fails has not taken the replicas away.
    pub(crate) fn update(&mut self, found: Vec<Option<Vec<SocketAddr>>>) {
        self.known.resize(found.len(), Vec::new());
        for (known, found) in self.known.iter_mut().zip(found) {
            if let Some(found) = found {
                *known = found;
            }
        }
    }

    /// Every address once, with the number of its first place; sorted.
    pub(crate) fn addresses(&self) -> Vec<(SocketAddr, usize)> {
        let each = self.known.iter().enumerate();
        let mut all: Vec<_> = each.flat_map(|(i, known)| known.iter().map(move |a| (*a, i))).collect();
        all.sort_unstable();
        all.dedup_by_key(|(address, _)| *address);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn a_place_is_a_host_and_a_port() {
        let place = |scheme: &str, host: &str, port| Place { scheme: scheme.into(), host: host.into(), port };
        assert_eq!(Place::parse("kvd-headless:50051", false).unwrap(), place("http", "kvd-headless", 50051));
        assert_eq!(Place::parse("https://kvd:1/", false).unwrap(), place("https", "kvd", 1));
        let six = Place::parse("http://[::1]:7", false).unwrap();
        assert_eq!(six, place("http", "::1", 7));
        assert_eq!(six.uri("[::1]:7".parse().unwrap()), "http://[::1]:7");
        for wrong in ["", "kvd", "http://kvd", "http://kvd:1/path", "kvd:99999", "a b:1"] {
            assert!(matches!(Place::parse(wrong, false), Err(ConnectError::Place { .. })), "{wrong}");
        }
    }

    #[test]
    fn what_cannot_be_resolved_now_is_where_it_was() {
        let mut r = Resolved::default();
        r.update(vec![None, Some(vec![at(3), at(1)])]);
        assert_eq!(r.addresses(), [(at(1), 1), (at(3), 1)]);
        r.update(vec![Some(vec![at(1)]), None]);
        assert_eq!(r.addresses(), [(at(1), 0), (at(3), 1)]);
        r.update(vec![Some(vec![]), Some(vec![at(3)])]);
        assert_eq!(r.addresses(), [(at(3), 1)]);
    }
}
