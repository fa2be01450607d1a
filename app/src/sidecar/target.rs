//! What a request asks for: one of three ways to name a site, or this proxy itself.

use hyper::http::uri::{Authority, PathAndQuery, Scheme};
use hyper::{Method, Uri};
use serde::Deserialize;

/// What is done with `http://`, which the parent and everyone behind it can read.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum PlainHttp {
    /// It is refused.
    #[default]
    Refuse,
    /// It is fetched by https, from port 443 if no port is named: for clients that cannot ask a
    /// proxy for https without a tunnel.
    Upgrade,
    /// It is fetched as it is.
    Allow,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// A resource of a site: an absolute URL.
    Site(Uri),
    /// A tunnel to a host and port.
    Tunnel(String, u16),
    /// A path of this proxy's own.
    Own,
}

/// Reads a request's target (RFC 9112, 3.2).
///
/// # Errors
/// What is wrong with it.
pub(super) fn target(method: &Method, uri: &Uri, plain: PlainHttp) -> Result<Target, String> {
    if method == Method::CONNECT {
        let wrong = || "CONNECT needs HOST:PORT".to_owned();
        let authority = uri.authority().ok_or_else(wrong)?;
        check(authority)?;
        let port = authority.port_u16().ok_or_else(wrong)?;
        return Ok(Target::Tunnel(authority.host().to_owned(), port));
    }
    if uri.scheme().is_some() {
        return site(uri.clone(), plain);
    }
    let path = uri.path_and_query().map_or("", PathAndQuery::as_str);
    for scheme in ["https", "http"] {
        let rest = path
            .strip_prefix('/')
            .and_then(|path| path.strip_prefix(scheme));
        // Some clients make one slash of two in a path.
        let Some(rest) = rest.and_then(|rest| rest.strip_prefix(":/")) else {
            continue;
        };
        let rest = rest.strip_prefix('/').unwrap_or(rest);
        let url = format!("{scheme}://{rest}");
        let url = url
            .parse()
            .map_err(|error| format!("{url:?} is no URL: {error}"))?;
        return site(url, plain);
    }
    Ok(Target::Own)
}

fn site(url: Uri, plain: PlainHttp) -> Result<Target, String> {
    let mut parts = url.into_parts();
    let authority = parts.authority.take().ok_or("the URL names no host")?;
    check(&authority)?;
    let scheme = parts.scheme.take().unwrap_or(Scheme::HTTPS);
    let is_plain = match scheme.as_str() {
        "https" => false,
        "http" => true,
        other => {
            return Err(format!(
                "{other}:// is not proxied: only https:// and http://"
            ));
        }
    };
    let (scheme, authority) = match (is_plain, plain) {
        (false, _) | (true, PlainHttp::Allow) => (scheme, authority),
        (true, PlainHttp::Refuse) => {
            return Err(
                "http:// can be read on the way and is refused: ask for https://, or set \
                        \"plain_http\" to \"upgrade\" or \"allow\""
                    .to_owned(),
            );
        }
        (true, PlainHttp::Upgrade) => {
            let text = authority.as_str();
            let named = text.strip_suffix(":80").unwrap_or(text);
            let authority = named.parse().map_err(|_| format!("{named:?} is no host"))?;
            (Scheme::HTTPS, authority)
        }
    };
    let path = parts
        .path_and_query
        .unwrap_or_else(|| PathAndQuery::from_static("/"));
    Uri::builder()
        .scheme(scheme)
        .authority(authority)
        .path_and_query(path)
        .build()
        .map(Target::Site)
        .map_err(|error| error.to_string())
}

fn check(authority: &Authority) -> Result<(), String> {
    if authority.as_str().contains('@') {
        return Err("a URL with a user is not sent: use the header Authorization".to_owned());
    }
    if authority.host().is_empty() {
        return Err("the URL names no host".to_owned());
    }
    // Otherwise the port would be taken for absent, and be the scheme's.
    let after = authority
        .as_str()
        .get(authority.host().len()..)
        .unwrap_or_default();
    if !after.is_empty() && authority.port_u16().is_none_or(|port| port == 0) {
        return Err(format!("{after:?} is no port"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
    use super::*;

    fn asked(method: &str, uri: &str, plain: PlainHttp) -> Result<String, String> {
        let uri = uri.parse().unwrap();
        match target(&method.parse().unwrap(), &uri, plain)? {
            Target::Site(url) => Ok(url.to_string()),
            Target::Tunnel(host, port) => Ok(format!("tunnel {host} {port}")),
            Target::Own => Ok("own".to_owned()),
        }
    }

    #[test]
    fn a_site_is_named_in_three_ways() {
        let get = |uri| asked("GET", uri, PlainHttp::Refuse).unwrap();
        assert_eq!(
            get("/https://site.example/a?b=c"),
            "https://site.example/a?b=c"
        );
        assert_eq!(get("/https:/site.example/a"), "https://site.example/a");
        assert_eq!(
            get("/https://site.example:8443"),
            "https://site.example:8443/"
        );
        assert_eq!(get("/https://[2001:db8::1]/x"), "https://[2001:db8::1]/x");
        assert_eq!(get("https://site.example/a"), "https://site.example/a");
        assert_eq!(
            get("/https://a.example/?to=https://b.example/"),
            "https://a.example/?to=https://b.example/"
        );
        assert_eq!(get("/health"), "own");
        assert_eq!(get("/httpsx://site.example/"), "own");
        let connect = asked("CONNECT", "site.example:443", PlainHttp::Refuse);
        assert_eq!(connect.unwrap(), "tunnel site.example 443");
    }

    #[test]
    fn plain_http_is_refused_upgraded_or_allowed() {
        let urls = ["http://site.example/a", "/http://site.example/a"];
        for url in urls {
            assert!(
                asked("GET", url, PlainHttp::Refuse)
                    .unwrap_err()
                    .contains("can be read")
            );
            let up = asked("GET", url, PlainHttp::Upgrade).unwrap();
            assert_eq!(up, "https://site.example/a");
            let as_is = asked("GET", url, PlainHttp::Allow).unwrap();
            assert_eq!(as_is, "http://site.example/a");
        }
        let up = |url| asked("GET", url, PlainHttp::Upgrade).unwrap();
        assert_eq!(up("http://site.example:80/"), "https://site.example/");
        assert_eq!(
            up("http://site.example:8080/"),
            "https://site.example:8080/"
        );
    }

    #[test]
    fn what_is_no_target_is_refused() {
        for (method, uri) in [
            ("GET", "https://user@site.example/"),
            ("GET", "/https://user:word@site.example/"),
            ("GET", "ftp://site.example/"),
            ("GET", "/https:///path"),
            ("GET", "/https://site.example:99999/"),
            ("GET", "/https://site.example:0/"),
            ("CONNECT", "site.example"),
            ("CONNECT", "user@site.example:443"),
        ] {
            let asked = asked(method, uri, PlainHttp::Allow);
            assert!(asked.is_err(), "{method} {uri}: {asked:?}");
        }
    }
}
