//! When do two endpoint names mean the same engine?
//!
//! Schedulers join address and port of IPv6 endpoints with and without brackets, some both
//! ways. Names are kept as registered; a question is asked under both forms.

use std::net::Ipv6Addr;

/// The other way to write an IPv6 `ip:port`: without its brackets, or with them. `None` for
/// everything that has only one form.
pub fn other_form(name: &str) -> Option<String> {
    let (ip, port) = name.rsplit_once(':')?;
    port.parse::<u16>().ok()?;
    match ip.strip_prefix('[') {
        Some(rest) => {
            let ip = rest.strip_suffix(']')?;
            ip.parse::<Ipv6Addr>().ok()?;
            Some(format!("{ip}:{port}"))
        }
        None => {
            ip.parse::<Ipv6Addr>().ok()?;
            Some(format!("[{ip}]:{port}"))
        }
    }
}

/// Whether `a` and `b` are one endpoint, brackets or not.
pub fn same(a: &str, b: &str) -> bool {
    a == b || other_form(a).is_some_and(|other| other == b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_endpoint_has_two_forms() {
        assert_eq!(other_form("[fd00::1]:8000").as_deref(), Some("fd00::1:8000"));
        assert_eq!(other_form("fd00::1:8000").as_deref(), Some("[fd00::1]:8000"));
        assert!(same("[fd00::1]:8000", "fd00::1:8000"));
        assert!(!same("[fd00::1]:8000", "fd00::1:8001"));
    }

    #[test]
    fn names_that_are_no_ipv6_endpoint_have_one() {
        for name in ["", "10.0.0.1:8000", "pod-a:8000", "pod-a", "[pod]:1", "[::1]:x", "[::1]", "::1:70000"] {
            assert_eq!(other_form(name), None, "{name}");
        }
    }
}
