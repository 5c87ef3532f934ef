//! What do the frames of a ZMQ message hold, and who is speaking?
//!
//! A publisher sends `[topic, seq, payload]`; a payload is decoded by [`crate::engine`].
//! Its replay socket (a ROUTER) is asked with [`replay_request`] from a DEALER, which sees
//! every answer behind an empty delimiter, up to vLLM 0.25 without the topic.

use std::borrow::Cow;
use std::net::Ipv6Addr;

/// One live message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live<'a> {
    /// Whom the publisher says it is; any bytes.
    pub topic: &'a [u8],
    /// The batch's number, from 0 in each life of the engine.
    pub seq: u64,
    /// Names one life of a publisher, where the sequence frame is 24 bytes long.
    pub publisher_id: Option<[u8; 16]>,
    /// The batch.
    pub payload: &'a [u8],
}

/// One answer of a replay socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay<'a> {
    /// A batch that was published before.
    Batch {
        /// Its number.
        seq: u64,
        /// The batch.
        payload: &'a [u8],
    },
    /// There is no more.
    End,
}

/// A message that is none of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Wrong number of frames.
    #[error("message has {found} frames, expected {expected}")]
    Count {
        /// Frames it has.
        found: usize,
        /// How many there may be.
        expected: &'static str,
    },
    /// The sequence frame is neither 8 nor 24 bytes long.
    #[error("sequence frame has {len} bytes, expected 8 or 24")]
    SeqLength {
        /// Its length in bytes.
        len: usize,
    },
}

/// The sequence number of a replay's last answer.
const END: u64 = u64::MAX;

/// Reads a message of a SUB socket.
pub fn live<F: AsRef<[u8]>>(frames: &[F]) -> Result<Live<'_>, FrameError> {
    let [topic, seq, payload] = frames else {
        return Err(FrameError::Count { found: frames.len(), expected: "3" });
    };
    let (seq, publisher_id) = sequence(seq.as_ref())?;
    Ok(Live { topic: topic.as_ref(), seq, publisher_id, payload: payload.as_ref() })
}

/// Reads a message of a DEALER socket that asked for a replay.
///
/// The sequence number is the second to last frame and the batch the last; what stands
/// before them (delimiter, topic) differs between versions and is not looked at.
pub fn replay<F: AsRef<[u8]>>(frames: &[F]) -> Result<Replay<'_>, FrameError> {
    let (2..=4, [.., seq, payload]) = (frames.len(), frames) else {
        return Err(FrameError::Count { found: frames.len(), expected: "2 to 4" });
    };
    let (seq, _) = sequence(seq.as_ref())?;
    let payload = payload.as_ref();
    if seq == END && payload.is_empty() { Ok(Replay::End) } else { Ok(Replay::Batch { seq, payload }) }
}

/// The frames that ask, from a DEALER, for every batch that is kept from `start` on.
pub fn replay_request(start: u64) -> [Vec<u8>; 2] {
    [Vec::new(), start.to_be_bytes().to_vec()]
}

fn sequence(frame: &[u8]) -> Result<(u64, Option<[u8; 16]>), FrameError> {
    let unfit = FrameError::SeqLength { len: frame.len() };
    let (seq, id) = frame.split_first_chunk().ok_or(unfit)?;
    let id = match id {
        [] => None,
        id => Some(id.try_into().map_err(|_| unfit)?),
    };
    Ok((u64::from_be_bytes(*seq), id))
}

/// Whom a topic of the form `kv@<host:port>@<model>` speaks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic<'a> {
    /// `host:port`, an IPv6 address always in brackets.
    pub pod: Cow<'a, str>,
    /// Model name; may contain `@`.
    pub model: &'a str,
}

impl<'a> Topic<'a> {
    /// Reads a topic; `None` if it is not of this form, so that nothing can be taken from it.
    pub fn parse(topic: &'a [u8]) -> Option<Topic<'a>> {
        let (pod, model) = str::from_utf8(topic).ok()?.strip_prefix("kv@")?.split_once('@')?;
        if model.is_empty() {
            return None;
        }
        let (host, port) = pod.rsplit_once(':')?;
        if !port.bytes().all(|b| b.is_ascii_digit()) || port.parse::<u16>().ok()? == 0 {
            return None;
        }
        let pod = if let Some(inner) = host.strip_prefix('[') {
            inner.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?;
            Cow::Borrowed(pod)
        } else if host.contains(':') {
            host.parse::<Ipv6Addr>().ok()?;
            Cow::Owned(format!("[{host}]:{port}"))
        } else if is_host_name(host) {
            Cow::Borrowed(pod)
        } else {
            return None;
        };
        Some(Topic { pod, model })
    }
}

/// Whether `host` can be an IPv4 address or a name that a resolver takes.
fn is_host_name(host: &str) -> bool {
    !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEQ: [u8; 8] = [0, 0, 0, 0, 0, 0, 1, 2];

    #[test]
    fn a_live_message_has_three_frames() {
        let frames = [&b"kv"[..], &SEQ, b"batch"];
        let got = live(&frames).unwrap();
        assert_eq!(got, Live { topic: b"kv", seq: 258, publisher_id: None, payload: b"batch" });
        for n in [0, 1, 2, 4] {
            let frames = vec![SEQ; n];
            assert_eq!(live(&frames), Err(FrameError::Count { found: n, expected: "3" }));
        }
    }

    #[test]
    fn a_sequence_frame_of_24_bytes_names_its_publisher() {
        let mut long = SEQ.to_vec();
        long.extend([7; 16]);
        let frames = [&b""[..], &long, b""];
        let got = live(&frames).unwrap();
        assert_eq!((got.seq, got.publisher_id), (258, Some([7; 16])));
        for len in [0, 7, 9, 16, 23, 25] {
            let seq = vec![0; len];
            assert_eq!(live(&[&b""[..], &seq, b""]), Err(FrameError::SeqLength { len }));
            assert_eq!(replay(&[&b""[..], &seq, b""]), Err(FrameError::SeqLength { len }));
        }
    }

    #[test]
    fn a_replay_answer_is_read_from_its_end() {
        let batch = Ok(Replay::Batch { seq: 258, payload: b"batch" });
        assert_eq!(replay(&[&b""[..], b"topic", &SEQ, b"batch"]), batch);
        assert_eq!(replay(&[&b""[..], &SEQ, b"batch"]), batch);
        assert_eq!(replay(&[&SEQ[..], b"batch"]), batch);
        for n in [0, 1, 5] {
            assert_eq!(replay(&vec![SEQ; n]), Err(FrameError::Count { found: n, expected: "2 to 4" }));
        }
    }

    #[test]
    fn a_replay_ends_with_minus_one_and_nothing() {
        let end = [0xff; 8];
        assert_eq!(replay(&[&b""[..], b"", &end, b""]), Ok(Replay::End));
        assert_eq!(replay(&[&b""[..], &end, b""]), Ok(Replay::End));
        assert_eq!(replay(&[&b""[..], &SEQ, b""]), Ok(Replay::Batch { seq: 258, payload: b"" }));
        assert_eq!(replay(&[&b""[..], &end, b"x"]), Ok(Replay::Batch { seq: u64::MAX, payload: b"x" }));
    }

    #[test]
    fn a_replay_is_asked_for_behind_a_delimiter() {
        assert_eq!(replay_request(258), [vec![], SEQ.to_vec()]);
    }

    #[test]
    fn a_topic_names_pod_and_model() {
        let parsed = |t: &'static str| Topic::parse(t.as_bytes()).map(|t| (t.pod.into_owned(), t.model));
        let is = |pod: &str, model| Some((pod.to_owned(), model));
        assert_eq!(parsed("kv@10.0.0.1:8000@llama"), is("10.0.0.1:8000", "llama"));
        assert_eq!(parsed("kv@10.0.0.1:8000@org/llama@v2"), is("10.0.0.1:8000", "org/llama@v2"));
        assert_eq!(parsed("kv@pod-1.ns:8000@m"), is("pod-1.ns:8000", "m"));
        assert_eq!(parsed("kv@[::1]:8000@m"), is("[::1]:8000", "m"));
        assert_eq!(parsed("kv@::1:8000@m"), is("[::1]:8000", "m"));
        assert_eq!(parsed("kv@fe80::1:2:8000@m"), is("[fe80::1:2]:8000", "m"));
    }

    #[test]
    fn any_other_topic_says_nothing() {
        for topic in [
            "",
            "kv",
            "kv@",
            "kv-events",
            "kv@10.0.0.1:8000",
            "kv@10.0.0.1:8000@",
            "kv@10.0.0.1@m",
            "kv@:8000@m",
            "kv@10.0.0.1:@m",
            "kv@10.0.0.1:0@m",
            "kv@10.0.0.1:65536@m",
            "kv@10.0.0.1:+80@m",
            "kv@SHARED_STORAGE@m",
            "kv@[::1:8000@m",
            "kv@::1]:8000@m",
            "kv@[10.0.0.1]:8000@m",
            "kv@a:b:8000@m",
            "kv@a b:8000@m",
            "KV@10.0.0.1:8000@m",
        ] {
            assert_eq!(Topic::parse(topic.as_bytes()), None, "{topic}");
        }
        assert_eq!(Topic::parse(b"kv@10.0.0.1:8000@\xff"), None);
    }
}
