//! A connection's bytes as hyper reads and writes them.
//!
//! Most callers have sent their request by the time they are accepted, and many hang up after the
//! reply. In its first turn a connection takes what is there and waits for nothing: one that ends
//! with it never was a matter for the reactor. Whatever polls it in its first turn has to
//! [begin waiting](Waiting::begin) and to poll it again if it did not end.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

/// Bytes of a small reply, head and all: what the allocator has at hand without taking a lock.
const SMALL_MAX: usize = 1024;
/// Bytes of one read in the first turn: nearly every request, also with a pod's token in its head.
const FIRST_READ: usize = 4096;

/// Whether a stream waits for its other end: not in its first turn.
#[derive(Debug, Clone, Default)]
pub(super) struct Waiting(Arc<AtomicBool>);

impl Waiting {
    /// The first turn is over. What was pending has to be polled again.
    pub(super) fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A connected stream.
pub(super) struct Stream {
    state: State,
    waiting: Waiting,
}

enum State {
    /// In its first turn; whether all that was there has been read.
    First(net::UnixStream, bool),
    Watched(UnixStream),
    /// It could not be watched.
    Broken,
}

impl Stream {
    /// Takes a stream that does not block; it is watched once `waiting` has begun.
    pub(super) fn new(stream: OwnedFd, waiting: Waiting) -> Self {
        Self { state: State::First(stream.into(), false), waiting }
    }

    /// The stream as the reactor watches it, after the first turn.
    fn poll_watched(&mut self) -> Poll<io::Result<&mut UnixStream>> {
        if let State::First(..) = self.state {
            if !self.waiting.0.load(Ordering::Relaxed) {
                return Poll::Pending;
            }
            if let State::First(stream, _) = std::mem::replace(&mut self.state, State::Broken) {
                self.state = State::Watched(UnixStream::from_std(stream)?);
            }
        }
        Poll::Ready(match &mut self.state {
            State::Watched(stream) => Ok(stream),
            State::First(..) | State::Broken => Err(io::ErrorKind::NotConnected.into()),
        })
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let State::First(stream, _) = &self.state
            && let Some(sent) = at_once(send(stream, bytes))
        {
            return Poll::Ready(sent);
        }
        let stream = ready!(self.poll_watched())?;
        loop {
            ready!(stream.poll_write_ready(cx))?;
            let sent = stream.try_io(Interest::WRITABLE, || Ok(send(&*stream, bytes)?));
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
        }
    }
}

fn send(stream: impl AsFd, bytes: &[u8]) -> rustix::io::Result<usize> {
    rustix::net::send(stream, bytes, SendFlags::NOSIGNAL)
}

/// What came of a system call, unless it has to be made again.
fn at_once(result: rustix::io::Result<usize>) -> Option<io::Result<usize>> {
    match result {
        Err(Errno::AGAIN | Errno::INTR) => None,
        result => Some(result.map_err(io::Error::from)),
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let State::First(stream, all) = &mut self.state
            && !*all
        {
            let room = buffer.initialize_unfilled_to(buffer.remaining().min(FIRST_READ));
            let received = rustix::net::recv(&*stream, &mut *room, RecvFlags::empty());
            *all = received.map_or(true, |(length, _)| length < room.len());
            if let Some(received) = at_once(received.map(|(length, _)| length)) {
                buffer.advance(received?);
                return Poll::Ready(Ok(()));
            }
        }
        Pin::new(ready!(self.poll_watched())?).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, bytes)
    }

    /// Hyper keeps a reply's head and its body apart, so that no body is copied, and has the kernel
    /// gather them. For a small reply that costs more (`writev`) than to copy it once (`send`).
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = parts.iter().map(|part| part.len()).sum();
        if length > SMALL_MAX {
            if let State::First(stream, _) = &self.state
                && let Some(written) = at_once(rustix::io::writev(stream, parts))
            {
                return Poll::Ready(written);
            }
            return Pin::new(ready!(self.poll_watched())?).poll_write_vectored(cx, parts);
        }
        // The allocator wipes this copy, as it does hyper's own.
        let mut whole = Vec::with_capacity(length);
        parts.iter().for_each(|part| whole.extend_from_slice(part));
        self.poll_send(cx, &whole)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// It is dropped next, which hangs up just as well: what was sent can still be read.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::task::Waker;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn pair() -> (Stream, Waiting, net::UnixStream) {
        let (ours, theirs) = net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let waiting = Waiting::default();
        (Stream::new(ours.into(), waiting.clone()), waiting, theirs)
    }

    fn once<T>(poll: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        poll(&mut Context::from_waker(Waker::noop()))
    }

    #[tokio::test]
    async fn the_first_turn_takes_what_is_there_and_later_ones_wait_for_more() {
        let (mut stream, waiting, mut theirs) = pair();
        theirs.write_all(b"first").unwrap();
        let mut bytes = [0; 64];
        assert_eq!(stream.read(&mut bytes).await.unwrap(), 5);
        // Nobody looks again in the first turn, although there is more now.
        theirs.write_all(b"second").unwrap();
        for _ in 0..2 {
            let mut buffer = ReadBuf::new(&mut bytes);
            let read = once(|cx| Pin::new(&mut stream).poll_read(cx, &mut buffer));
            assert!(read.is_pending());
        }
        waiting.begin();
        assert_eq!(stream.read(&mut bytes).await.unwrap(), 6);
        let sent = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(20));
            theirs.write_all(b"third").unwrap();
            theirs
        });
        assert_eq!(stream.read(&mut bytes).await.unwrap(), 5);
        drop(sent.join().unwrap());
        assert_eq!(stream.read(&mut bytes).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_request_longer_than_one_read_is_read_whole_in_the_first_turn() {
        let (mut stream, _, mut theirs) = pair();
        theirs.write_all(&[7; 3 * FIRST_READ + 1]).unwrap();
        let mut bytes = [0; 3 * FIRST_READ + 1];
        stream.read_exact(&mut bytes).await.unwrap();
        assert!(bytes.iter().all(|byte| *byte == 7));
    }

    #[tokio::test]
    async fn a_reply_that_does_not_fit_is_sent_on_after_the_first_turn() {
        let (mut stream, waiting, mut theirs) = pair();
        let reply = vec![7; 4 << 20];
        let write = |stream: &mut Stream, at| {
            let (head, body) = reply[at..].split_at(1);
            let parts = [io::IoSlice::new(head), io::IoSlice::new(body)];
            once(|cx| Pin::new(&mut *stream).poll_write_vectored(cx, &parts))
        };
        let mut sent = 0;
        while let Poll::Ready(more) = write(&mut stream, sent) {
            sent += more.unwrap();
        }
        assert!(sent > 0 && sent < reply.len() && !waiting.0.load(Ordering::Relaxed));
        waiting.begin();
        let length = reply.len();
        let reader = std::thread::spawn(move || {
            let mut all = vec![0; length];
            theirs.read_exact(&mut all).unwrap();
            all
        });
        stream.write_all(&reply[sent..]).await.unwrap();
        assert!(reader.join().unwrap() == reply);
    }

    #[tokio::test]
    async fn who_hung_up_is_an_end_or_an_error_and_no_signal() {
        let (mut stream, _, theirs) = pair();
        drop(theirs);
        assert_eq!(stream.read(&mut [0; 64]).await.unwrap(), 0);
        let error = stream.write(b"reply").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
