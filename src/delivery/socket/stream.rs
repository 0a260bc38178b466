//! A connection's bytes as hyper reads and writes them: a small reply goes out in one piece.
//!
//! Hyper keeps a reply's head and its body apart, so that no body is copied, and has the kernel
//! gather them. For a small reply that costs more (`writev`) than to copy it once (`send`).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use rustix::net::SendFlags;
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Bytes of a small reply, head and all: what the allocator has at hand without taking a lock.
const SMALL_MAX: usize = 1024;

/// A connected stream.
pub(super) struct Stream(TokioIo<UnixStream>);

impl Stream {
    /// Wraps a stream.
    pub(super) fn new(stream: UnixStream) -> Self {
        Self(TokioIo::new(stream))
    }

    fn poll_send(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let stream = self.0.inner();
        loop {
            ready!(stream.poll_write_ready(cx))?;
            let sent = stream.try_io(Interest::WRITABLE, || {
                Ok(rustix::net::send(stream, bytes, SendFlags::NOSIGNAL)?)
            });
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
        }
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl Write for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = parts.iter().map(|part| part.len()).sum();
        if length > SMALL_MAX {
            return Pin::new(&mut self.0).poll_write_vectored(cx, parts);
        }
        // The allocator wipes this copy, as it does hyper's own.
        let mut whole = Vec::with_capacity(length);
        parts.iter().for_each(|part| whole.extend_from_slice(part));
        self.poll_send(cx, &whole)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
