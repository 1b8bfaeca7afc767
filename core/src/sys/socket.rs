//! Sequenced packets between two processes, with descriptors among them.

use crate::error::{Error, Result};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// The most descriptors that one packet carries (the kernel's `SCM_MAX_FD` is 253).
pub(crate) const FDS_MAX: usize = 64;

/// A connected pair that keeps the borders of packets, both ends non-blocking and closed on exec.
pub(crate) fn pair() -> Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (a, b) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(|e| Error::os("make a socket pair", e))?;
    Ok((
        super::process::above_stdio(a)?,
        super::process::above_stdio(b)?,
    ))
}

/// Sends one packet with descriptors, whole or not at all; `Ok(false)` when there is no room just now.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    packet: &[&[u8]],
    fds: &[BorrowedFd<'_>],
) -> Result<bool> {
    let mut slices = [IoSlice::new(&[]); 4];
    for (place, part) in slices.iter_mut().zip(packet) {
        *place = IoSlice::new(part);
    }
    debug_assert!(packet.len() <= slices.len() && fds.len() <= FDS_MAX);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Error::TooLarge {
            what: "a list of descriptors",
            length: fds.len() as u64,
            limit: FDS_MAX as u64,
        });
    }
    loop {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match rustix::net::sendmsg(socket, &slices[..packet.len()], &mut ancillary, flags) {
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN | Errno::NOBUFS) => return Ok(false),
            Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => {
                return Err(Error::EndOfFile { what: "connection" });
            }
            Err(e) => return Err(Error::os("send a packet", e)),
        }
    }
}

/// One packet as it came.
#[derive(Debug)]
pub(crate) enum Received {
    /// Its length, which is more than the buffer's if the packet was cut.
    Packet(usize),
    /// The other end is closed and nothing is left.
    End,
    /// Nothing is there just now.
    Nothing,
}

/// Takes one packet (or looks at it, with `peek`) into `buffer`, its descriptors into `fds`.
pub(crate) fn recv(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    fds: &mut Vec<OwnedFd>,
    peek: bool,
) -> Result<Received> {
    let mut flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC | RecvFlags::TRUNC;
    if peek {
        flags |= RecvFlags::PEEK;
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    loop {
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(buffer)];
        let answer = match rustix::net::recvmsg(socket, &mut slices, &mut ancillary, flags) {
            Ok(answer) => answer,
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => return Ok(Received::Nothing),
            Err(Errno::CONNRESET) => return Ok(Received::End),
            Err(e) => return Err(Error::os("receive a packet", e)),
        };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        // A packet of zero bytes is never sent: every frame has a header.
        return Ok(if answer.bytes == 0 && fds.is_empty() {
            Received::End
        } else {
            Received::Packet(answer.bytes)
        });
    }
}

/// Looks at the packet that starts `skip` bytes after the first one's start, and takes nothing.
///
/// The place to look from belongs to the socket, not to the caller: one process at a time.
pub(crate) fn look(socket: BorrowedFd<'_>, skip: u64, buffer: &mut [u8]) -> Result<Received> {
    set_peek_offset(socket, skip)?;
    let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK | RecvFlags::TRUNC;
    loop {
        return match rustix::net::recv(socket, &mut *buffer, flags) {
            Ok((_, 0)) => Ok(Received::End),
            Ok((_, length)) => Ok(Received::Packet(length)),
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => Ok(Received::Nothing),
            Err(e) => Err(Error::os("look at a packet", e)),
        };
    }
}

/// [`look`], with copies of the packet's descriptors.
pub(crate) fn look_with_fds(
    socket: BorrowedFd<'_>,
    skip: u64,
    buffer: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> Result<Received> {
    set_peek_offset(socket, skip)?;
    recv(socket, buffer, fds, true)
}

/// Where the next look starts. (rustix does not name the option.)
#[expect(unsafe_code, reason = "sets a socket option through libc")]
fn set_peek_offset(socket: BorrowedFd<'_>, skip: u64) -> Result<()> {
    let skip = libc::c_int::try_from(skip).unwrap_or(libc::c_int::MAX);
    // SAFETY: the option's value is an int that lives until the call returns.
    let code = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEEK_OFF,
            (&raw const skip).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if code == 0 {
        Ok(())
    } else {
        Err(Error::os(
            "look into the locker",
            std::io::Error::last_os_error(),
        ))
    }
}

/// How many bytes lie in the socket, in all of its packets.
pub(crate) fn bytes_unread(socket: BorrowedFd<'_>) -> Result<u64> {
    rustix::io::ioctl_fionread(socket).map_err(|e| Error::os("look into the locker", e))
}

/// How many bytes may lie in the socket unread; large enough that small messages seldom wait.
pub(crate) fn set_buffer(socket: BorrowedFd<'_>, bytes: usize) {
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(socket, bytes);
}
