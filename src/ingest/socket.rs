//! How sockets are set up.

use std::net::{IpAddr, ToSocketAddrs};

use kvproto::frames;
use zmq::{Context, Socket, SocketType};

/// Pause before a lost connection is tried again, doubled up to the maximum; milliseconds.
const RECONNECT_MS: i32 = 50;
const RECONNECT_MAX_MS: i32 = 500;
/// How long a connection may take to come up; milliseconds.
const CONNECT_TIMEOUT_MS: i32 = 5_000;

/// An address to dial, looked up far enough to know how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    endpoint: String,
    ipv6: bool,
    named: bool,
}

impl Address {
    /// Finds out how to dial `endpoint`. Looks a host name up, which may take seconds.
    pub fn look_up(endpoint: &str) -> Address {
        let host_port = endpoint.strip_prefix("tcp://").unwrap_or_default();
        let host = host_port.rsplit_once(':').map_or(host_port, |(host, _)| host);
        let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
        let named = literal.is_none() && !host.is_empty();
        let ipv6 = match literal {
            Some(ip) => ip.is_ipv6(),
            // libzmq dials one family only, and the first one found need not be the one that
            // the engine listens on: IPv4 if there is any.
            None if named => host_port
                .to_socket_addrs()
                .is_ok_and(|mut found| found.len() > 0 && found.all(|a| a.is_ipv6())),
            None => false,
        };
        Address { endpoint: endpoint.to_owned(), ipv6, named }
    }
}

/// Makes sockets.
pub struct Sockets {
    /// One per reader: a context has a limit of 1023 sockets.
    contexts: Vec<Context>,
    /// For host names: libzmq looks them up on the context's own thread, and a name server
    /// that does not answer must not delay those who need none.
    named: Context,
    max_message: i64,
}

impl Sockets {
    /// For as many readers, with frames up to `max_message` bytes.
    pub fn new(readers: usize, max_message: usize) -> Sockets {
        Sockets {
            contexts: (0..readers).map(|_| Context::new()).collect(),
            named: Context::new(),
            max_message: i64::try_from(max_message).unwrap_or(i64::MAX),
        }
    }

    /// A socket pair's two ends, for waking `reader`.
    pub fn wake_pair(&self, reader: usize) -> zmq::Result<(Socket, Socket)> {
        let context = &self.contexts[reader];
        let (inner, outer) = (context.socket(SocketType::PAIR)?, context.socket(SocketType::PAIR)?);
        inner.bind("inproc://wake")?;
        outer.connect("inproc://wake")?;
        Ok((inner, outer))
    }

    /// Subscribes to an engine.
    pub fn dial(&self, reader: usize, address: &Address) -> zmq::Result<Socket> {
        let socket = self.open(reader, SocketType::SUB, address.named, address.ipv6)?;
        socket.set_subscribe(b"")?;
        socket.connect(&address.endpoint)?;
        Ok(socket)
    }

    /// Listens for engines that dial in.
    pub fn listen(&self, reader: usize, bind: &str) -> zmq::Result<Socket> {
        let any_family = bind.contains('*') || bind.contains('[');
        let socket = self.open(reader, SocketType::SUB, false, any_family)?;
        socket.set_subscribe(b"")?;
        socket.bind(bind)?;
        Ok(socket)
    }

    /// Asks an engine for all batches from `from` on. The request leaves when the connection
    /// is up. (Not a REQ socket: that takes one answer only.)
    pub fn ask(&self, reader: usize, address: &Address, from: u64) -> zmq::Result<Socket> {
        let socket = self.open(reader, SocketType::DEALER, address.named, address.ipv6)?;
        socket.connect(&address.endpoint)?;
        socket.send_multipart(frames::replay_request(from), zmq::DONTWAIT)?;
        Ok(socket)
    }

    fn open(&self, reader: usize, kind: SocketType, named: bool, ipv6: bool) -> zmq::Result<Socket> {
        let context = if named { &self.named } else { &self.contexts[reader] };
        let socket = context.socket(kind)?;
        // Readers move messages into the lanes' bounded queues as they come; a limit here would
        // drop them without a trace.
        socket.set_rcvhwm(0)?;
        socket.set_maxmsgsize(self.max_message)?;
        socket.set_linger(0)?;
        socket.set_ipv6(ipv6)?;
        socket.set_reconnect_ivl(RECONNECT_MS)?;
        socket.set_reconnect_ivl_max(RECONNECT_MAX_MS)?;
        socket.set_connect_timeout(CONNECT_TIMEOUT_MS)?;
        // A node that vanished says no goodbye.
        socket.set_tcp_keepalive(1)?;
        socket.set_tcp_keepalive_idle(30)?;
        socket.set_tcp_keepalive_intvl(10)?;
        socket.set_tcp_keepalive_cnt(3)?;
        Ok(socket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_need_no_lookup_and_say_their_family() {
        let v4 = Address::look_up("tcp://127.0.0.1:5557");
        assert!(!v4.ipv6 && !v4.named);
        let v6 = Address::look_up("tcp://[::1]:5557");
        assert!(v6.ipv6 && !v6.named);
        let path = Address::look_up("ipc:///tmp/events");
        assert!(!path.ipv6 && !path.named);
    }

    #[test]
    fn a_name_is_dialled_by_ipv4_where_it_can_be() {
        let local = Address::look_up("tcp://localhost:5557");
        assert!(local.named && !local.ipv6);
    }
}
