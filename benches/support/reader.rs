//! One connection to an agent's socket that reads secrets one after the other.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// A kept connection.
pub struct Reader {
    stream: BufReader<UnixStream>,
}

impl Reader {
    /// Connects; every read may take as long as `patience`.
    pub fn connect(socket: &Path, patience: Duration) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(patience))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// GETs a secret by its API path; status and body.
    pub fn read(&mut self, path: &str) -> io::Result<(u16, String)> {
        let request = format!("GET /v1/{path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        self.stream.get_mut().write_all(request.as_bytes())?;
        let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let (mut status, mut length) = (None, None);
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line)?;
            match line.trim_end() {
                "" => break,
                head if status.is_none() => {
                    status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
                }
                field => {
                    if let Some(value) = field.strip_prefix("content-length: ") {
                        length = value.parse().ok();
                    }
                }
            }
        }
        let mut body = vec![0; length.ok_or_else(|| bad("no content-length"))?];
        self.stream.read_exact(&mut body)?;
        let body = String::from_utf8(body).map_err(|_| bad("no text"))?;
        Ok((status.ok_or_else(|| bad("no status"))?, body))
    }
}
