//! The tokens of a file.

use std::collections::HashSet;

use sha2::{Digest as _, Sha256};

/// The shortest token that is taken, in bytes: 128 bits as base64 are 22, as hex 32.
const SHORTEST: usize = 16;
/// Tokens of one file.
const MOST: usize = 10_000;

/// A token as it is kept and compared: comparing digests tells nothing of a token by how long it takes.
pub type Digest = [u8; 32];

/// The digest of a token.
pub fn digest(token: &[u8]) -> Digest {
    Sha256::digest(token).into()
}

/// Tokens, one a line; empty lines and those that begin with `#` are none.
#[derive(Debug, Default)]
pub struct Tokens {
    known: HashSet<Digest>,
    /// The first one as a header, for who shows it.
    first: Option<http::HeaderValue>,
}

impl Tokens {
    /// The tokens of a file.
    ///
    /// # Errors
    /// Says which line is none, without saying what is in it.
    pub fn read(files: &[Vec<u8>]) -> Result<Tokens, String> {
        let mut tokens = Tokens::default();
        for (i, line) in files.iter().flat_map(|f| f.split(|b| *b == b'\n')).enumerate() {
            let line = line.trim_ascii();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            if line.len() < SHORTEST || !line.iter().all(u8::is_ascii_graphic) {
                let why = format!("line {}: a token is at least {SHORTEST} printable characters", i + 1);
                return Err(why);
            }
            if tokens.known.len() == MOST {
                return Err(format!("more than {MOST} tokens"));
            }
            if tokens.first.is_none() {
                let mut value = http::HeaderValue::from_bytes(&[&b"Bearer "[..], line].concat())
                    .map_err(|_| format!("line {}: cannot be sent", i + 1))?;
                value.set_sensitive(true);
                tokens.first = Some(value);
            }
            tokens.known.insert(digest(line));
        }
        match tokens.known.is_empty() {
            true => Err("it has no token".to_owned()),
            false => Ok(tokens),
        }
    }

    /// Whether a token is one of these.
    pub fn knows(&self, digest: &Digest) -> bool {
        self.known.contains(digest)
    }

    /// The header that shows the first one.
    pub fn header(&self) -> Option<http::HeaderValue> {
        self.first.clone()
    }
}
