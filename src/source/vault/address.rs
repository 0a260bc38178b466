//! Where Vault is: the checked address, and what a redirect may change about it.

use std::net::IpAddr;

use reqwest::Url;

use super::VaultError;

/// A Vault address: scheme, host and port, nothing else.
#[derive(Debug, Clone)]
pub(super) struct Address {
    url: Url,
    text: String,
}

impl Address {
    /// Parses and checks a configured address.
    pub(super) fn parse(text: &str) -> Result<Self, VaultError> {
        let url = Url::parse(text).map_err(|_| VaultError::Address("is not a URL"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(VaultError::Address("scheme is neither https nor http"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(VaultError::Address("holds a user name or password"));
        }
        // vaultrs puts `/v1` in front of a path prefix, so a prefix could never work.
        if url.path() != "/" {
            return Err(VaultError::Address("has a path"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(VaultError::Address("has a query or fragment"));
        }
        let address = Self { text: text.trim_end_matches('/').to_owned(), url };
        if !address.is_https() && !address.is_loopback() {
            return Err(VaultError::Cleartext(address.host().to_owned()));
        }
        Ok(address)
    }

    /// The address as configured, without a trailing slash.
    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the connection is TLS.
    pub(super) fn is_https(&self) -> bool {
        self.url.scheme() == "https"
    }

    /// The host without the brackets of an IPv6 literal.
    pub(super) fn host(&self) -> &str {
        self.url.host_str().unwrap_or_default().trim_matches(['[', ']'])
    }

    /// The `Host` header of a request to this address.
    pub(super) fn authority(&self) -> &str {
        self.url.authority()
    }

    /// This address with another name in place of the host.
    pub(super) fn with_host(&self, name: &str) -> Option<Url> {
        let mut url = self.url.clone();
        url.set_host(Some(name)).ok()?;
        Some(url)
    }

    /// The port a redirect of a request for `asked` leads to, if everything else stays as it was.
    ///
    /// # Errors
    /// What the redirect would change.
    pub(super) fn redirect_port(&self, asked: &Url, location: &str) -> Result<u16, &'static str> {
        let target = self.url.join(location).map_err(|_| "to something that is not a URL")?;
        if target.scheme() != self.url.scheme() {
            return Err("to another scheme");
        }
        if target.host_str() != self.url.host_str() {
            return Err("to another host");
        }
        if !target.username().is_empty() || target.password().is_some() {
            return Err("with a user name");
        }
        // The token was meant for this path: Vault's own 307 never changes it.
        if target.path() != asked.path() || target.query() != asked.query() {
            return Err("to another path");
        }
        target.port_or_known_default().ok_or("without a port")
    }

    fn is_loopback(&self) -> bool {
        let host = self.host();
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bare_https_or_loopback_address_is_accepted() {
        for good in [
            "https://vault.example.com:8200",
            "https://10.1.2.3:8200/",
            "https://[2001:db8::1]:8200",
            "http://127.0.0.1:8200",
            "http://localhost:8200",
            "http://[::1]:8200",
        ] {
            assert!(Address::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "vault.example.com:8200",
            "ftp://127.0.0.1",
            "https://vault.example.com/prefix",
            "https://vault.example.com/v1/",
            "https://vault.example.com?a=b",
            "https://vault.example.com#a",
            "https://user:pw@vault.example.com",
            "unix:///run/vault.sock",
        ] {
            assert!(matches!(Address::parse(bad), Err(VaultError::Address(_))), "{bad}");
        }
        for open in ["http://vault.example.com:8200", "http://10.0.0.1", "http://localhost.evil.io"]
        {
            assert!(matches!(Address::parse(open), Err(VaultError::Cleartext(_))), "{open}");
        }
    }

    #[test]
    fn a_redirect_may_change_the_port_and_nothing_else() {
        let address = Address::parse("https://vault.example.com:8200").unwrap();
        let asked = Url::parse("https://pinned.name:8200/v1/secret/data/a?version=2").unwrap();
        let port = |location: &str| address.redirect_port(&asked, location);
        assert_eq!(port("https://vault.example.com:8201/v1/secret/data/a?version=2"), Ok(8201));
        assert_eq!(port("https://vault.example.com/v1/secret/data/a?version=2"), Ok(443));
        assert_eq!(port("/v1/secret/data/a?version=2"), Ok(8200));
        for foreign in [
            "https://other.example.com:8200/v1/secret/data/a?version=2",
            "https://vault.example.com.evil.io:8200/v1/secret/data/a?version=2",
            "//evil.io/v1/secret/data/a?version=2",
            "http://vault.example.com:8200/v1/secret/data/a?version=2",
            "https://me@vault.example.com:8200/v1/secret/data/a?version=2",
            "https://vault.example.com:8200/v1/secret/data/b?version=2",
            "https://vault.example.com:8200/v1/secret/data/a",
            "https://",
        ] {
            assert!(port(foreign).is_err(), "{foreign}");
        }
    }
}
