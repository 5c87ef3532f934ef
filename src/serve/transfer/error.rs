//! Why is a call about a transfer not answered?

use tonic::{Code, Status};

use crate::serve::{AskError, status};
use crate::transfer::ledger::store::commit::NotWritten;
use crate::transfer::ledger::{NotApplied, NotPlanned, Refused};
use crate::transfer::token::BadToken;

/// A call that is refused. Every message begins with the field to look at, where one is at fault.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TransferError {
    /// A field makes no sense.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The key is taken by another question.
    #[error("request_id: planned already, by another question")]
    Exists,
    /// A plan that is not taken in.
    #[error(transparent)]
    NotPlanned(#[from] NotPlanned),
    /// A report that is not applied.
    #[error(transparent)]
    NotApplied(#[from] NotApplied),
    /// A token that says nothing here.
    #[error(transparent)]
    Token(#[from] BadToken),
    /// A transfer that is over by its token.
    #[error("plan_token: its transfer was over before it was taken over")]
    TooLate,
    /// The ledger cannot be written.
    #[error(transparent)]
    NotWritten(#[from] NotWritten),
    /// The ledger that replicas share cannot be read.
    #[error("the ledger on Valkey: {0}")]
    Servers(#[from] redis::RedisError),
    /// It is not certain which replica is home to the transfer.
    #[error("the transfer has no certain home just now, ask again")]
    Homeless,
    /// kvd was started without.
    #[error("this kvd coordinates no transfers")]
    Off,
    /// What another replica said.
    #[error("{}", .0.message())]
    Forwarded(Status),
}

impl TransferError {
    /// The RPC code.
    pub fn code(&self) -> Code {
        match self {
            TransferError::Ask(error) => status::code(error),
            TransferError::Exists | TransferError::NotPlanned(NotPlanned::Exists(_)) => Code::AlreadyExists,
            TransferError::NotPlanned(
                NotPlanned::Full(_) | NotPlanned::TooMany { .. } | NotPlanned::TooMuchText { .. },
            )
            | TransferError::NotApplied(NotApplied::Full(_) | NotApplied::TooMuchText { .. }) => {
                Code::ResourceExhausted
            }
            TransferError::NotApplied(NotApplied::Unknown) => Code::NotFound,
            TransferError::NotApplied(NotApplied::Refused(refused)) => match refused {
                Refused::OldAttempt { .. } | Refused::UnknownAttempt { .. } | Refused::Owner { .. } => {
                    Code::FailedPrecondition
                }
                Refused::NoPrefill => Code::InvalidArgument,
            },
            TransferError::Token(BadToken::Malformed) => Code::InvalidArgument,
            TransferError::Token(BadToken::Signature) => Code::PermissionDenied,
            TransferError::TooLate => Code::FailedPrecondition,
            TransferError::NotWritten(_) | TransferError::Servers(_) | TransferError::Homeless => {
                Code::Unavailable
            }
            TransferError::Off => Code::Unimplemented,
            TransferError::Forwarded(status) => status.code(),
        }
    }

    /// The request field to look at; empty where none is at fault.
    pub fn field(&self) -> &'static str {
        match self {
            TransferError::Ask(error) => error.field(),
            TransferError::Exists | TransferError::NotPlanned(_) => "request_id",
            TransferError::NotApplied(NotApplied::Refused(refused)) => match refused {
                Refused::OldAttempt { .. } | Refused::UnknownAttempt { .. } => "attempt",
                Refused::Owner { .. } => "epoch",
                Refused::NoPrefill => "phase",
            },
            TransferError::NotApplied(NotApplied::TooMuchText { .. }) => "kv_transfer_params",
            TransferError::NotApplied(_) => "transfer_id",
            TransferError::Token(_) | TransferError::TooLate => "plan_token",
            TransferError::NotWritten(_)
            | TransferError::Servers(_)
            | TransferError::Homeless
            | TransferError::Off
            | TransferError::Forwarded(_) => "",
        }
    }
}

impl From<TransferError> for Status {
    fn from(error: TransferError) -> Status {
        match error {
            TransferError::Forwarded(status) => status,
            other => Status::new(other.code(), other.to_string()),
        }
    }
}
