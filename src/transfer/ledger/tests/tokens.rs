//! Tokens and records survive being written, and nobody else makes them.

use super::*;
use crate::transfer::ledger::store::codec;
use crate::transfer::token::{BadToken, Signer};

#[test]
fn a_record_comes_back_as_it_was() {
    let mut record = record("r", disagg("p", "d"));
    record.alternatives = vec![pull("s", "d")];
    record.prefill_answer = Some("{}".into());
    record.cause = Some(Cause::Rejected);
    assert_eq!(codec::decode(&codec::encode(&record)).unwrap(), record);
}

/// The format of a release is never changed, only added to.
#[test]
fn a_record_of_format_1_is_read() {
    let bytes = include_bytes!("record-v1.bin");
    let expected = record("fixture", disagg("p", "d"));
    if std::env::var_os("KVD_WRITE_FIXTURES").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/transfer/ledger/tests/record-v1.bin");
        std::fs::write(path, codec::encode(&expected)).unwrap();
        return;
    }
    assert_eq!(codec::decode(bytes).unwrap(), expected);
}

#[test]
fn bytes_that_are_no_record_are_refused() {
    let whole = codec::encode(&record("r", disagg("p", "d")));
    for end in 0..whole.len() {
        assert!(codec::decode(&whole[..end]).is_err(), "{end}");
    }
    let mut newer = whole;
    newer[0] = 9;
    assert!(codec::decode(&newer).unwrap_err().to_string().contains("format 9"));
}

#[test]
fn a_token_is_worth_nothing_under_another_key_or_changed() {
    let signer = Signer::new(b"the cluster's key");
    let record = record("r", disagg("p", "d"));
    let token = signer.seal(&record);
    let opened = signer.open(&token).unwrap();
    assert_eq!((opened.id, opened.choice, opened.overall), (record.id, record.choice, record.overall));
    assert!(token.len() < 2048, "{} bytes do not fit into a header everywhere", token.len());
    assert_eq!(Signer::new(b"another").open(&token), Err(BadToken::Signature));
    for at in 0..token.len() {
        let mut bytes = token.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(bytes).unwrap();
        assert!(signer.open(&changed).is_err(), "changed at {at}");
    }
    for junk in ["", "A", "no token", &"A".repeat(20 << 10)] {
        assert_eq!(signer.open(junk), Err(BadToken::Malformed), "{junk:.10}");
    }
}

#[test]
fn an_id_is_read_as_it_is_written() {
    let id = TransferId::new("r", 77);
    assert_eq!(id.to_string().parse(), Ok(id));
    for junk in ["", "77", &"g".repeat(32), &"+".repeat(32), &"0".repeat(33)] {
        assert_eq!(junk.parse::<TransferId>(), Err(()));
    }
}
