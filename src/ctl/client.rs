//! How does kvctl reach kvd, and what does it say when it cannot?

use std::time::Duration;

use kvproto::rpc::kv::admin_service_client::AdminServiceClient;
use kvproto::rpc::kv::index_service_client::IndexServiceClient;
use kvproto::rpc::kv::ingest_service_client::IngestServiceClient;
use kvproto::rpc::kv::tier_service_client::TierServiceClient;
use kvproto::rpc::kv::transfer_service_client::TransferServiceClient;
use kvproto::rpc::kv::{ListPublishersRequest, PublisherState, PublisherStatus, Tier};
use tonic::transport::Endpoint;
use tonic::{Code, Status};

use crate::guard::Dialer;
use crate::guard::dial::{Link, innermost};

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Answers larger than this are refused, bytes. A dump travels in chunks well below it.
const MAX_ANSWER: usize = 64 << 20;

/// Why a call did not give an answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers there.
    #[error(
        "cannot reach kvd: tried {protocol} at {address}: {reason}\n\
         start it with `kvd serve`, or say where it is with `kvctl --{flag} HOST:PORT`"
    )]
    Unreachable {
        /// "gRPC" or "HTTP".
        protocol: &'static str,
        /// The flag that sets the address.
        flag: &'static str,
        /// Where it was looked for.
        address: String,
        /// What the connection said.
        reason: String,
    },
    /// The address is none.
    #[error("--{flag} {address}: not an address, expected HOST:PORT")]
    Address {
        /// The flag that set it.
        flag: &'static str,
        /// What was given.
        address: String,
    },
    /// kvd found something wrong with the request.
    #[error("{what}: {message}")]
    BadRequest {
        /// What was asked for, as verb and object.
        what: String,
        /// What kvd says.
        message: String,
    },
    /// kvd could not do it.
    #[error("{what}: {message} ({code:?})")]
    Refused {
        /// What was asked for, as verb and object.
        what: String,
        /// What kvd says.
        message: String,
        /// How it says it.
        code: Code,
    },
}

/// A connection to kvd's gRPC interface.
#[derive(Clone)]
pub struct Kvd {
    address: String,
    link: Link,
}

impl Kvd {
    /// Connects to `address`, `HOST:PORT`.
    pub async fn connect(address: &str, dialer: &Dialer) -> Result<Kvd, ClientError> {
        let bad = || ClientError::Address { flag: "grpc", address: address.to_owned() };
        let bare = address.strip_prefix("http://").unwrap_or(address);
        if !has_port(bare) {
            return Err(bad());
        }
        let endpoint = Endpoint::from_shared(format!("http://{bare}")).map_err(|_| bad())?;
        let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true);
        let link = dialer.connect(&endpoint, CONNECT_TIMEOUT).await;
        Ok(Kvd { address: bare.to_owned(), link: link.map_err(|e| nobody_at(bare, innermost(&e)))? })
    }

    /// Where it is, `HOST:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Questions about prompts.
    pub fn index(&self) -> IndexServiceClient<Link> {
        IndexServiceClient::new(self.link.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    /// Registrations.
    pub fn ingest(&self) -> IngestServiceClient<Link> {
        IngestServiceClient::new(self.link.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    /// Looking inside.
    pub fn admin(&self) -> AdminServiceClient<Link> {
        AdminServiceClient::new(self.link.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    /// Transfers between pods.
    pub fn transfers(&self) -> TransferServiceClient<Link> {
        TransferServiceClient::new(self.link.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    /// A node's tiers; answered by `kvd tier` alone.
    pub fn tiers(&self) -> TierServiceClient<Link> {
        TierServiceClient::new(self.link.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    /// Every publisher and how it is doing.
    pub async fn publishers(&self) -> Result<Vec<PublisherStatus>, ClientError> {
        let answer = self.ingest().list_publishers(ListPublishersRequest {}).await;
        Ok(answer.map_err(|s| self.failed("list publishers", s))?.into_inner().publishers)
    }

    /// What `status` means for the attempt to do `what` (verb and object).
    pub fn failed(&self, what: impl Into<String>, status: Status) -> ClientError {
        let (what, message) = (what.into(), status.message().to_owned());
        match status.code() {
            Code::Unavailable => nobody_at(&self.address, message),
            Code::InvalidArgument | Code::OutOfRange => ClientError::BadRequest { what, message },
            code => ClientError::Refused { what, message, code },
        }
    }
}

fn nobody_at(address: &str, reason: String) -> ClientError {
    ClientError::Unreachable { protocol: "gRPC", flag: "grpc", address: address.to_owned(), reason }
}

/// Whether `address` ends in a port.
pub fn has_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

/// A publisher's state, as kvctl writes it.
pub fn state_name(state: PublisherState) -> &'static str {
    match state {
        PublisherState::Unspecified => "unknown",
        PublisherState::Connecting => "connecting",
        PublisherState::Replaying => "replaying",
        PublisherState::Live => "live",
        PublisherState::Partial => "partial",
        PublisherState::Unreachable => "unreachable",
        PublisherState::Dead => "dead",
    }
}

/// A tier, as kvctl writes it.
pub fn tier_name(tier: Tier) -> &'static str {
    match tier {
        Tier::Gpu => "gpu",
        Tier::Cpu => "cpu",
        Tier::Disk => "disk",
        Tier::Shared => "shared",
        Tier::Unspecified | Tier::Unknown => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_needs_a_port() {
        assert!(has_port("127.0.0.1:50051") && has_port("[::1]:50051") && has_port("kvd:1"));
        assert!(
            !has_port("127.0.0.1") && !has_port(":50051") && !has_port("kvd:x") && !has_port("kvd:70000")
        );
    }

    #[tokio::test]
    async fn nobody_listening_is_told_apart_from_a_bad_address() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        match Kvd::connect(&free.to_string(), &Dialer::default()).await {
            Err(ClientError::Unreachable { address, .. }) => assert_eq!(address, free.to_string()),
            other => panic!("{:?}", other.err()),
        }
        assert!(matches!(
            Kvd::connect("nowhere", &Dialer::default()).await,
            Err(ClientError::Address { .. })
        ));
    }
}
