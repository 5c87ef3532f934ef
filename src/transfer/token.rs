//! How does a replica know a transfer that it has never heard of?
//!
//! By the caller's plan token: the transfer as it was when the token was given out, under the
//! cluster's key. A token proves that some replica owned the transfer so; whoever knows it owned
//! later does not go by it.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::ledger::Record;
use super::ledger::store::codec;

/// Tokens that are longer were not made here.
const MAX_LEN: usize = 16 << 10;
const MAC_LEN: usize = 32;

/// Makes and reads plan tokens.
#[derive(Clone)]
pub struct Signer {
    mac: Hmac<Sha256>,
}

/// A token that says nothing here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadToken {
    /// It is none at all.
    #[error("plan_token: is none")]
    Malformed,
    /// It was made under another key, or changed since.
    #[error("plan_token: not signed with this cluster's key")]
    Signature,
}

impl Signer {
    /// Signs with `key`, which all replicas share.
    pub fn new(key: &[u8]) -> Signer {
        Signer { mac: Hmac::new_from_slice(key).expect("a key may have any length") }
    }

    /// The token of `record` as it is now.
    pub fn seal(&self, record: &Record) -> String {
        // What an owner can do without: texts for people and for engines.
        let record = Record {
            alternatives: vec![],
            explanation: "".into(),
            prefill_answer: None,
            pass_through: None,
            ..record.clone()
        };
        let mut bytes = codec::encode(&record);
        let mac = self.mac.clone().chain_update(&bytes).finalize().into_bytes();
        bytes.extend_from_slice(&mac);
        BASE64.encode(bytes)
    }

    /// The transfer that `token` is of, as it was.
    ///
    /// # Errors
    /// Where no replica of this cluster made the token.
    pub fn open(&self, token: &str) -> Result<Record, BadToken> {
        if token.len() > MAX_LEN {
            return Err(BadToken::Malformed);
        }
        let bytes = BASE64.decode(token).map_err(|_| BadToken::Malformed)?;
        let at = bytes.len().checked_sub(MAC_LEN).ok_or(BadToken::Malformed)?;
        let (record, mac) = bytes.split_at(at);
        self.mac.clone().chain_update(record).verify_slice(mac).map_err(|_| BadToken::Signature)?;
        codec::decode(record).map_err(|_| BadToken::Malformed)
    }
}
