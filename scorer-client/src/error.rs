//! What can go wrong, told apart by what a scheduler does about it.

use std::error::Error as _;
use std::time::Duration;

use tonic::{Code, Status};

/// A client could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is not a URI such as `http://host:port`.
    #[error("{endpoint:?} is not an address")]
    Endpoint {
        /// What was given.
        endpoint: String,
        /// What is wrong with it.
        source: tonic::transport::Error,
    },
    /// A place of replicas is not a host and a port.
    #[error("{place:?} is not a host and a port, such as http://kvd-headless:50051")]
    Place {
        /// What was given.
        place: String,
    },
    /// A CA is given for an address that is not encrypted, or none for one that is.
    #[error("{endpoint}: {why}")]
    Security {
        /// What was given.
        endpoint: String,
        /// What does not fit.
        why: &'static str,
    },
    /// Certificates or keys cannot be used.
    #[error("{endpoint}: its certificates cannot be used")]
    Certificates {
        /// What was to be dialled with them.
        endpoint: String,
        /// What is wrong with them.
        source: tonic::transport::Error,
    },
    /// There is no token to show.
    #[error("{what}: {why}")]
    Token {
        /// The file, or what else it was to come from.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// Nothing answers there.
    #[error("{endpoint} cannot be reached")]
    Unreachable {
        /// What was dialled.
        endpoint: String,
        /// Why.
        source: tonic::transport::Error,
    },
}

/// A call had no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScoreError {
    /// Not within the deadline.
    #[error("no answer within {after:?}")]
    Deadline {
        /// The deadline.
        after: Duration,
    },
    /// The server is away or going; the client reconnects by itself.
    #[error("server unavailable: {message}")]
    Unavailable {
        /// Why, in words.
        message: String,
    },
    /// The call makes no sense, and will not the next time either.
    #[error("invalid argument: {message}")]
    InvalidArgument {
        /// The server's words, which name the field.
        message: String,
    },
    /// The server refused for another reason.
    #[error("refused with {code:?}: {message}")]
    Refused {
        /// The gRPC code.
        code: Code,
        /// The server's words.
        message: String,
    },
}

impl ScoreError {
    /// What `status` says of a call that had until `deadline`.
    pub(crate) fn from_status(status: &Status, deadline: Duration) -> ScoreError {
        let message = status.message().to_owned();
        // A status with a source was made on this side, of a transport error.
        let local = status.source().is_some();
        match status.code() {
            Code::DeadlineExceeded => ScoreError::Deadline { after: deadline },
            // How tonic spells a deadline that its own timer found, here or in the server.
            Code::Cancelled if message == tonic::TimeoutExpired(()).to_string() => {
                ScoreError::Deadline { after: deadline }
            }
            Code::Unavailable => ScoreError::Unavailable { message },
            // A connection that broke under the call.
            Code::Cancelled | Code::Unknown | Code::Internal if local => ScoreError::Unavailable { message },
            Code::InvalidArgument => ScoreError::InvalidArgument { message },
            code => ScoreError::Refused { code, message },
        }
    }
}
