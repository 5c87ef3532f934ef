//! Which RPC code does an error become?

use tonic::{Code, Status};

use super::AskError;
use crate::ingest::RegisterError;

impl From<AskError> for Status {
    fn from(error: AskError) -> Status {
        Status::new(code(&error), error.to_string())
    }
}

impl From<RegisterError> for Status {
    fn from(error: RegisterError) -> Status {
        let code = match error {
            RegisterError::Invalid { .. } | RegisterError::Address { .. } => Code::InvalidArgument,
            RegisterError::TooMany { .. } => Code::ResourceExhausted,
            RegisterError::Catalog(_) => Code::Internal,
        };
        Status::new(code, error.to_string())
    }
}

/// The RPC code of a refused question.
pub fn code(error: &AskError) -> Code {
    match error {
        AskError::Invalid { .. } | AskError::HashKindNotIndexed { .. } => Code::InvalidArgument,
        AskError::TooMany { .. } => Code::ResourceExhausted,
        AskError::BlockSizeMismatch { .. }
        | AskError::BlockSizeAmbiguous { .. }
        | AskError::NotShared(_)
        | AskError::TextPrompt => Code::FailedPrecondition,
        AskError::SharedIndexGone(_) => Code::Unavailable,
        AskError::UnknownScoreToken | AskError::UnknownHolder { .. } => Code::NotFound,
    }
}
