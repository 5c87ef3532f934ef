//! Addresses as connectors want them.

use crate::transfer::types::Endpoint;

/// Splits `host:port`. An IPv6 host may be in brackets or not; the port is what follows the last
/// colon.
pub(super) fn split(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    match host.is_empty() {
        true => None,
        false => Some((host, port.parse().ok()?)),
    }
}

/// `host:port`, an IPv6 host in brackets.
pub(super) fn join(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// The address that is configured, or the pod's own host with the connector's usual port. Each
/// rank listens `rank` above rank 0 where `per_rank`.
pub(super) fn of(
    configured: Option<&str>,
    pod: &Endpoint,
    usual: u16,
    per_rank: bool,
) -> Option<(String, u16)> {
    let (host, port) = match configured {
        Some(address) => split(address)?,
        None => (split(&pod.instance).map_or(&*pod.instance, |a| a.0), usual),
    };
    let port = if per_rank { port.checked_add(u16::try_from(pod.rank).ok()?)? } else { port };
    Some((host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_both_families_are_split_from_their_ports() {
        assert_eq!(split("10.0.0.1:8000"), Some(("10.0.0.1", 8000)));
        assert_eq!(split("[fd00::1]:8000"), Some(("fd00::1", 8000)));
        assert_eq!(split("fd00::1:8000"), Some(("fd00::1", 8000)));
        assert_eq!([split("host"), split(":80"), split("host:"), split("host:99999")], [None; 4]);
        assert_eq!((join("fd00::1", 80), join("a", 80)), ("[fd00::1]:80".to_owned(), "a:80".to_owned()));
    }

    #[test]
    fn a_rank_beyond_the_last_port_has_no_address() {
        let pod = |rank| Endpoint { instance: "a:8000".into(), rank };
        assert_eq!(of(None, &pod(3), 5710, true), Some(("a".to_owned(), 5713)));
        assert_eq!(of(Some("b:65535"), &pod(1), 5710, true), None);
        assert_eq!(of(Some("b:65535"), &pod(1), 5710, false), Some(("b".to_owned(), 65535)));
    }
}
