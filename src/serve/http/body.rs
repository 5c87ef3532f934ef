//! What does a request's body say, and is it small enough to be read?

use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::StatusCode;
use serde::de::{DeserializeOwned, IgnoredAny};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::error::Refusal;

/// Bodies up to this many bytes are read without asking for a permit.
const SMALL: usize = 64 << 10;
/// Larger ones share the memory of this many bodies of the largest size.
const LARGEST_AT_A_TIME: usize = 16;
/// The most that is set aside for a body before it is there.
const SET_ASIDE: usize = 1 << 20;
/// Bytes per permit.
const UNIT: usize = 4 << 10;
/// How long a body may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(30);
/// A body that is refused as too large is still read up to this many times the limit, so that
/// the client gets to read the answer instead of a reset connection.
const DRAIN_FACTOR: u64 = 4;

/// Bounds the memory that bodies take, whoever sends them.
#[derive(Debug)]
pub(super) struct Bodies {
    limit: usize,
    /// Memory for bodies beyond [`SMALL`].
    memory: Semaphore,
}

/// A body that has arrived. Holds its permit, so it is kept until the request is answered.
#[derive(Debug)]
pub(super) struct Arrived<'b> {
    pub(super) bytes: Vec<u8>,
    _permit: Option<SemaphorePermit<'b>>,
}

impl Bodies {
    /// Bodies of at most `limit` bytes each.
    pub(super) fn new(limit: usize) -> Self {
        Bodies { limit, memory: Semaphore::new(LARGEST_AT_A_TIME * units(limit) as usize) }
    }

    /// Reads the body of `request`.
    ///
    /// # Errors
    /// 413 where it is over the limit, 408 where it does not arrive, 400 where it is cut short.
    pub(super) async fn read(&self, request: Request) -> Result<Arrived<'_>, Refusal> {
        match tokio::time::timeout(ARRIVAL, self.collect(request.into_body())).await {
            Ok(read) => read,
            Err(_) => {
                let error = format!("the body did not arrive within {} s", ARRIVAL.as_secs());
                Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "body", error))
            }
        }
    }

    async fn collect(&self, mut body: Body) -> Result<Arrived<'_>, Refusal> {
        let hint = body.size_hint();
        if hint.lower() > self.limit as u64 {
            return Err(self.refuse_too_large(body, 0).await);
        }
        // All it may come to is asked for at once: two bodies that each wait for the rest of
        // theirs would wait for each other.
        let most = hint.upper().map_or(self.limit, |n| self.limit.min(n as usize));
        let permit = match most {
            0..=SMALL => None,
            _ => Some(self.memory.acquire_many(units(most)).await.expect("the semaphore is never closed")),
        };
        // What the client claims is a hint only, and no more than this is set aside for it.
        let mut bytes = Vec::with_capacity(SET_ASIDE.min(hint.lower() as usize));
        while let Some(data) = next_data(&mut body).await? {
            let length = bytes.len() + data.len();
            if length > self.limit {
                drop((bytes, permit));
                return Err(self.refuse_too_large(body, length as u64).await);
            }
            bytes.extend_from_slice(&data);
        }
        Ok(Arrived { bytes, _permit: permit })
    }

    async fn refuse_too_large(&self, mut body: Body, mut seen: u64) -> Refusal {
        while seen < self.limit as u64 * DRAIN_FACTOR {
            match next_data(&mut body).await {
                Ok(Some(data)) => seen += data.len() as u64,
                Ok(None) | Err(_) => break,
            }
        }
        let error = format!("the body is over the limit of {} bytes", self.limit);
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "body", error)
    }
}

/// Permits for `bytes`.
fn units(bytes: usize) -> u32 {
    bytes.div_ceil(UNIT).try_into().unwrap_or(u32::MAX)
}

/// The next piece of `body`; `None` at its end.
async fn next_data(body: &mut Body) -> Result<Option<bytes::Bytes>, Refusal> {
    loop {
        let frame = std::future::poll_fn(|cx| std::pin::Pin::new(&mut *body).poll_frame(cx)).await;
        match frame {
            None => return Ok(None),
            // Trailers say nothing that matters here.
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
            Some(Err(error)) => return Err(Refusal::bad("body", format!("the body was cut short: {error}"))),
        }
    }
}

/// `bytes` as a JSON object.
///
/// # Errors
/// 400 with the field at fault, or with line and column where it is no JSON.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    // A struct can be read from an array too, which would make the order of fields matter.
    if bytes.iter().find(|b| !b.is_ascii_whitespace()).is_some_and(|b| *b != b'{') {
        return Err(match serde_json::from_slice::<IgnoredAny>(bytes) {
            Ok(_) => Refusal::bad("body", "the body must be a JSON object"),
            Err(error) => malformed(&error),
        });
    }
    match serde_json::from_slice(bytes) {
        Ok(value) => Ok(value),
        // Keeping track of the path costs time, so it is done only where there is something
        // to explain.
        Err(error) => Err(explain::<T>(bytes).unwrap_or_else(|| malformed(&error))),
    }
}

fn explain<T: DeserializeOwned>(bytes: &[u8]) -> Option<Refusal> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let error = serde_path_to_error::deserialize::<_, T>(&mut reader).err()?;
    if !error.inner().is_data() {
        return Some(malformed(error.inner()));
    }
    let path = error.path().to_string();
    // `token_ids[17]` is at fault in detail, `token_ids` is the field.
    Some(match path.split(['.', '[']).next() {
        Some(field) if !field.is_empty() => Refusal::bad(field, format!("{path}: {}", error.inner())),
        // The object as a whole: a field that is there twice, which the message names.
        Some(_) | None => {
            let text = error.inner().to_string();
            let field = text.split('`').nth(1).unwrap_or("body");
            Refusal::bad(field, text.as_str())
        }
    })
}

fn malformed(error: &serde_json::Error) -> Refusal {
    Refusal::bad("body", format!("malformed JSON: {error}"))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only how it is read matters")]
    struct Asked {
        model: Option<String>,
        token_ids: Option<Vec<u32>>,
    }

    fn refused(body: &str) -> (u16, String, String) {
        let refusal = parse::<Asked>(body.as_bytes()).unwrap_err();
        let (status, field, error) = refusal.parts();
        (status, field.to_owned(), error.to_owned())
    }

    #[test]
    fn a_field_of_the_wrong_type_is_named_with_its_position() {
        for bad in ["-1", "4294967296", "1.5", "\"7\"", "null"] {
            let (status, field, error) = refused(&format!(r#"{{"token_ids": [1, 2, {bad}]}}"#));
            assert_eq!((status, field.as_str()), (400, "token_ids"), "{bad}");
            assert!(error.starts_with("token_ids[2]: "), "{error}");
        }
        let (_, field, _) = refused(r#"{"model": 3}"#);
        assert_eq!(field, "model");
        let (_, field, error) = refused(r#"{"token_ids": [1], "token_ids": [2]}"#);
        assert_eq!(field, "token_ids");
        assert!(error.starts_with("duplicate field"), "{error}");
    }

    #[test]
    fn malformed_json_is_refused_with_line_and_column() {
        for body in ["", "x", "[1,", "{", "{\"model\": \"m\",}", "{\"model\": \"m\"} x", "{\"model\": tru}"] {
            let (status, field, error) = refused(body);
            assert_eq!((status, field.as_str()), (400, "body"), "{body}");
            assert!(error.contains("line 1 column"), "{error}");
        }
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for body in ["[\"m\", [1]]", "3", " null", "\"m\""] {
            assert_eq!(refused(body).2, "the body must be a JSON object");
        }
    }
}
