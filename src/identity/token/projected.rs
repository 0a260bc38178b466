//! The tokens a kubelet sends with a publish call: a JSON object from audience to token.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::TokenRefused;
use crate::domain::Token;

/// A dozen of the longest tokens.
const TOKENS_BYTES_MAX: usize = 256 * 1024;

/// One token; its `expirationTimestamp` is not read, because the token itself says it.
#[derive(Deserialize)]
struct Projected<'a> {
    token: &'a str,
}

/// Takes the token for `audience` out of `csi.storage.k8s.io/serviceAccount.tokens`.
pub fn token_for_audience(tokens: &str, audience: &str) -> Result<Token, TokenRefused> {
    if tokens.len() > TOKENS_BYTES_MAX {
        return Err(TokenRefused::Projected("over 256 KiB"));
    }
    let found: BTreeMap<String, Projected<'_>> = serde_json::from_str(tokens)
        .map_err(|_| TokenRefused::Projected("not a JSON object from audience to token"))?;
    let token =
        found.get(audience).ok_or_else(|| TokenRefused::Missing(audience.to_owned()))?.token;
    Token::new(token.as_bytes().to_vec())
        .map_err(|_| TokenRefused::Projected("a token that is empty or not printable ASCII"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_of_the_audience_is_taken_and_nothing_is_quoted() {
        let tokens = r#"{"vault":{"token":"canary-a","expirationTimestamp":"2026-01-01T00:00:00Z"},
                         "https:\u002f\u002fb":{"token":"canary-b"}}"#;
        let token = |audience| token_for_audience(tokens, audience);
        assert_eq!(token("vault").ok().map(|token| token.expose().to_owned()).unwrap(), "canary-a");
        assert_eq!(token("https://b").ok().unwrap().expose(), "canary-b");
        let missing = token("c").err().unwrap().to_string();
        assert!(missing.contains("'c'") && missing.contains("tokenRequests"), "{missing}");
        for broken in ["", "[]", "{\"vault\":\"canary\"}", "{\"vault\":{}}", "{} canary"] {
            let refused = token_for_audience(broken, "vault").err().unwrap().to_string();
            assert!(!refused.contains("canary"), "{refused}");
        }
        let empty = r#"{"vault":{"token":""}}"#;
        assert!(matches!(token_for_audience(empty, "vault"), Err(TokenRefused::Projected(_))));
        let huge = format!("{{\"vault\":{{\"token\":\"{}\"}}}}", "a".repeat(TOKENS_BYTES_MAX));
        assert!(matches!(token_for_audience(&huge, "vault"), Err(TokenRefused::Projected(_))));
    }
}
