//! Opaque secret types: zeroized on drop, never cloned, compared, printed or serialised.

use zeroize::Zeroizing;

/// Secret bytes in one allocation of exact size, zeroized when dropped. Share with `Arc`.
pub struct SecretBytes(Zeroizing<Box<[u8]>>);

impl SecretBytes {
    /// Takes ownership; a buffer with room to spare is moved into an exact one and wiped.
    pub fn new(mut bytes: Vec<u8>) -> Self {
        if bytes.len() == bytes.capacity() {
            return Self(Zeroizing::new(bytes.into_boxed_slice()));
        }
        let exact = Box::<[u8]>::from(bytes.as_slice());
        zeroize::Zeroize::zeroize(&mut bytes);
        Self(Zeroizing::new(exact))
    }

    /// The bytes. Every use of this is a place to review.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Why a token was refused. A bad byte in a header value panics deep inside the HTTP stack,
/// so it is caught here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// No bytes.
    #[error("token is empty")]
    Empty,
    /// White space or a line end inside or around the token.
    #[error("token holds white space or a line end")]
    WhiteSpace,
    /// A byte that cannot travel in a header.
    #[error("token holds a byte outside printable ASCII")]
    Character,
    /// Longer than any real token.
    #[error("token is longer than 64 KiB")]
    TooLong,
}

/// A bearer token: Vault's, or a Kubernetes service-account token.
pub struct Token(SecretBytes);

impl Token {
    /// Checks that every byte can travel in a header.
    pub fn new(bytes: Vec<u8>) -> Result<Self, TokenError> {
        let bytes = SecretBytes::new(bytes);
        match bytes.expose() {
            [] => Err(TokenError::Empty),
            all if all.len() > 64 * 1024 => Err(TokenError::TooLong),
            all if all.iter().any(u8::is_ascii_whitespace) => Err(TokenError::WhiteSpace),
            all if !all.iter().all(u8::is_ascii_graphic) => Err(TokenError::Character),
            _ => Ok(Self(bytes)),
        }
    }

    /// The token as text. Every use of this is a place to review.
    pub fn expose(&self) -> &str {
        // `new` admits printable ASCII only.
        std::str::from_utf8(self.0.expose()).unwrap_or_default()
    }
}

/// Vault's id of a lease. Knowing it is the power to renew or revoke, so it is treated as a secret.
pub struct LeaseId(SecretBytes);

impl LeaseId {
    /// Wraps the id as Vault gave it.
    pub fn new(id: String) -> Self {
        Self(SecretBytes::new(id.into_bytes()))
    }

    /// The id as text. Every use of this is a place to review.
    pub fn expose(&self) -> &str {
        std::str::from_utf8(self.0.expose()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_with_a_line_end_is_refused_by_name() {
        assert_eq!(Token::new(b"abc\n".to_vec()).err(), Some(TokenError::WhiteSpace));
        assert_eq!(Token::new(Vec::new()).err(), Some(TokenError::Empty));
        assert_eq!(Token::new(vec![b'a', 0x80]).err(), Some(TokenError::Character));
        assert_eq!(Token::new(b"hvs.abc-1".to_vec()).map(|t| t.expose().len()), Ok(9));
    }
}
