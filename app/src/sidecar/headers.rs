//! What of a message's headers is for the next hop alone (RFC 9110, 7.6.1).

use hyper::Version;
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE, VIA,
};

/// What is for one hop whether or not `Connection` says so.
const HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("keep-alive"),
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
];

/// Takes out what was for this hop.
pub(super) fn strip(headers: &mut HeaderMap) {
    // What is chunked has no length; were there one, whoever believes it reads another message.
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// Adds that a message went through here, as every proxy must (RFC 9110, 7.6.3).
pub(super) fn pass_by(headers: &mut HeaderMap, version: Version, pseudonym: &str) {
    let received = match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    };
    if let Ok(value) = HeaderValue::from_str(&format!("{received} {pseudonym}")) {
        headers.append(VIA, value);
    }
}

/// Whether a message went through here before.
pub(super) fn passed_by(headers: &HeaderMap, pseudonym: &str) -> bool {
    let values = headers
        .get_all(VIA)
        .iter()
        .filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .any(|hop| hop.split_whitespace().nth(1) == Some(pseudonym))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn what_is_for_one_hop_goes_and_the_rest_stays() {
        let mut left = headers(&[
            ("connection", "close, X-One"),
            ("connection", " x-two ,,"),
            ("x-one", "1"),
            ("x-two", "2"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic eDp5"),
            ("te", "trailers"),
            ("upgrade", "websocket"),
            ("x-three", "3"),
            ("authorization", "Bearer x"),
            ("content-length", "5"),
        ]);
        strip(&mut left);
        let expected = [
            ("x-three", "3"),
            ("authorization", "Bearer x"),
            ("content-length", "5"),
        ];
        assert_eq!(left, headers(&expected));
    }

    #[test]
    fn a_length_beside_chunks_is_not_passed_on() {
        let mut left = headers(&[("transfer-encoding", "chunked"), ("content-length", "5")]);
        strip(&mut left);
        assert_eq!(left, HeaderMap::new());
    }

    #[test]
    fn a_message_that_comes_back_is_known() {
        let mut own = headers(&[("via", "1.0 fred, 1.1 other (comment)")]);
        assert!(!passed_by(&own, "sidecar-1"));
        pass_by(&mut own, Version::HTTP_11, "sidecar-1");
        assert!(passed_by(&own, "sidecar-1"));
        assert!(passed_by(&own, "other"));
        assert!(!passed_by(&own, "sidecar"));
    }
}
