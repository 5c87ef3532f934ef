//! Whole messages and file descriptors over a Unix `SOCK_SEQPACKET` socket, without ever waiting.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::frame::FRAME_BYTES;

/// Most file descriptors with one message.
pub(super) const MOST_FDS: usize = 4;

/// What a socket had.
#[derive(Debug)]
pub(super) enum Received {
    /// A message of so many bytes, and what came with it.
    Frame(usize, Vec<OwnedFd>),
    /// Longer than a frame, or with more descriptors than any frame has.
    Oversized,
    /// Nothing now.
    Nothing,
    /// The other side is gone. An empty message looks the same and means the same.
    End,
}

/// Takes the next message to `buffer`.
pub(super) fn receive(socket: impl AsFd, buffer: &mut [u8; FRAME_BYTES], flags: RecvFlags) -> Received {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(buffer)];
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let message = match recvmsg(socket, &mut slices, &mut ancillary, flags) {
        Ok(message) => message,
        Err(Errno::AGAIN | Errno::INTR) => return Received::Nothing,
        Err(_) => return Received::End,
    };
    let mut fds = Vec::new();
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fds.extend(rights);
        }
    }
    if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Received::Oversized;
    }
    if message.bytes == 0 { Received::End } else { Received::Frame(message.bytes, fds) }
}

/// Sends a message. False where there is no room for it now.
pub(super) fn send(socket: impl AsFd, frame: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<bool> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("too many file descriptors for a message"));
    }
    match sendmsg(socket, &[IoSlice::new(frame)], &mut ancillary, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
        Ok(_) => Ok(true),
        Err(Errno::AGAIN | Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
