//! A connection on which nothing takes longer than it may.

use std::io::{self, ErrorKind, IoSlice, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::frame::{BLOCK_HEAD, BlockHead, Frame, MOST_BYTES};

/// A connection broke, was late, or said what it should not.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The system says so.
    #[error("connection")]
    Io(#[from] io::Error),
    /// What must have come did not come in time.
    #[error("too late")]
    Late,
    /// What came is no frame, or not what belongs here.
    #[error("not what belongs here")]
    Malformed,
    /// The other side does not know the secret.
    #[error("the other side does not know the secret")]
    Secret,
    /// A payload is not what it was at the source.
    #[error("a payload has another checksum than at its source")]
    Corrupt,
}

/// One side of a connection. All that is read and written must be done by the moment that
/// [`within`](Self::within) set last, however slowly it goes.
#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    until: Instant,
}

impl Wire {
    pub fn new(stream: TcpStream, patience: Duration) -> io::Result<Wire> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(false)?;
        Ok(Wire { stream, until: Instant::now() + patience })
    }

    pub fn connect(to: &SocketAddr, patience: Duration) -> io::Result<Wire> {
        Wire::new(TcpStream::connect_timeout(to, patience)?, patience)
    }

    /// What follows has this long.
    pub fn within(&mut self, patience: Duration) {
        self.until = Instant::now() + patience;
    }

    /// Whether it can still be used: nothing has come that nobody asked for, nor its end.
    pub fn is_quiet(&self) -> bool {
        let quiet = || -> io::Result<bool> {
            self.stream.set_nonblocking(true)?;
            let peeked = self.stream.peek(&mut [0]);
            self.stream.set_nonblocking(false)?;
            Ok(matches!(peeked, Err(error) if error.kind() == ErrorKind::WouldBlock))
        };
        quiet().unwrap_or(false)
    }

    fn left(&self) -> Result<Duration, WireError> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(WireError::Late) } else { Ok(left) }
    }

    pub fn read_exact(&mut self, mut into: &mut [u8]) -> Result<(), WireError> {
        while !into.is_empty() {
            self.stream.set_read_timeout(Some(self.left()?))?;
            match self.stream.read(into) {
                Ok(0) => return Err(io::Error::from(ErrorKind::UnexpectedEof).into()),
                Ok(n) => into = &mut into[n..],
                Err(error) => go_on(error)?,
            }
        }
        Ok(())
    }

    /// Writes `head`, then `rest`.
    pub fn write(&mut self, mut head: &[u8], mut rest: &[u8]) -> Result<(), WireError> {
        while !head.is_empty() || !rest.is_empty() {
            self.stream.set_write_timeout(Some(self.left()?))?;
            match self.stream.write_vectored(&[IoSlice::new(head), IoSlice::new(rest)]) {
                Ok(0) => return Err(io::Error::from(ErrorKind::WriteZero).into()),
                Ok(n) => {
                    let of_head = n.min(head.len());
                    (head, rest) = (&head[of_head..], &rest[n - of_head..]);
                }
                Err(error) => go_on(error)?,
            }
        }
        Ok(())
    }

    pub fn say(&mut self, frame: &Frame) -> Result<(), WireError> {
        self.write(&frame.encode(), &[])
    }

    /// The next frame, of at most `most` bytes.
    pub fn hear(&mut self, most: usize) -> Result<Frame, WireError> {
        let mut length = [0; 4];
        self.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        if length == 0 || length > most.min(MOST_BYTES) {
            return Err(WireError::Malformed);
        }
        let mut bytes = vec![0; length];
        self.read_exact(&mut bytes)?;
        Frame::decode(&bytes).ok_or(WireError::Malformed)
    }

    /// The head of a block of `block_bytes`.
    pub fn hear_head(&mut self, block_bytes: usize) -> Result<BlockHead, WireError> {
        let mut head = [0; 4 + BLOCK_HEAD];
        self.read_exact(&mut head)?;
        BlockHead::decode(&head, block_bytes).ok_or(WireError::Malformed)
    }

    /// Waits for a frame to begin: until then there is no hurry but that of `patience`.
    pub fn wait(&mut self, patience: Duration) -> Result<(), WireError> {
        self.stream.set_read_timeout(Some(patience))?;
        loop {
            match self.stream.peek(&mut [0]) {
                Ok(0) => return Err(io::Error::from(ErrorKind::UnexpectedEof).into()),
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if is_timeout(&error) => return Err(WireError::Late),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Another handle of the same connection, to end it from elsewhere.
    pub fn handle(&self) -> io::Result<TcpStream> {
        self.stream.try_clone()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // Whoever has a handle must not keep it open.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// After a wait that was too long or broken off, it is looked at the time.
fn go_on(error: io::Error) -> Result<(), WireError> {
    if is_timeout(&error) || error.kind() == ErrorKind::Interrupted { Ok(()) } else { Err(error.into()) }
}
