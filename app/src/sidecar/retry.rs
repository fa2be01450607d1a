//! Which requests are tried again, and when.
//!
//! A request is tried again only if its method is safe (RFC 9110, 9.2.1): whatever became of the
//! first attempt, a second one changes nothing at the site. Nor has it a body, which is streamed and
//! cannot be sent twice. The wait is a random part of a bound that doubles with each attempt, so that
//! many clients that failed together do not come back together.

use std::time::Duration;

use hyper::header::{HeaderMap, RETRY_AFTER};
use hyper::{Method, StatusCode};

use super::metrics::Trouble;
use crate::net::backoff::random_part;

/// The longest wait before an attempt. A client waits longer by itself if it wants to.
const LONGEST: Duration = Duration::from_secs(5);

/// How one request may be tried.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempts {
    left: u32,
    bound: Duration,
}

impl Attempts {
    /// Of a request; `most` in all, the second after `backoff` at most.
    pub(super) fn of(method: &Method, has_body: bool, most: u32, backoff: Duration) -> Attempts {
        let again = method.is_safe() && !has_body;
        Attempts {
            left: if again { most } else { 1 },
            bound: backoff.min(LONGEST),
        }
    }

    /// Whether there is another after this one.
    pub(super) fn more(self) -> bool {
        self.left > 1
    }

    /// The wait before the next attempt after this trouble, if there is to be one.
    pub(super) fn after_trouble(&mut self, trouble: Trouble) -> Option<Duration> {
        let may_pass = matches!(
            trouble,
            Trouble::Dns | Trouble::Connect | Trouble::Exchange | Trouble::Time
        );
        if may_pass { self.next() } else { None }
    }

    /// The wait before the next attempt after this answer, if there is to be one. The site may say
    /// how long (RFC 9110, 10.2.3); an answer that asks for more than is waited here goes to the
    /// client.
    pub(super) fn after_answer(
        &mut self,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> Option<Duration> {
        let may_pass = matches!(
            status,
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
        );
        if !may_pass {
            return None;
        }
        let Some(asked) = headers.get(RETRY_AFTER) else {
            return self.next();
        };
        let seconds = asked.to_str().ok()?.trim().parse().ok()?;
        let asked = Duration::from_secs(seconds);
        if asked > LONGEST {
            None
        } else {
            self.next().map(|wait| wait.max(asked))
        }
    }

    fn next(&mut self) -> Option<Duration> {
        if !self.more() {
            return None;
        }
        self.left -= 1;
        let bound = self.bound;
        self.bound = (bound * 2).min(LONGEST);
        Some(random_part(bound))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
    use super::*;

    fn attempts(method: &str, has_body: bool) -> Attempts {
        Attempts::of(
            &method.parse().unwrap(),
            has_body,
            3,
            Duration::from_millis(100),
        )
    }

    #[test]
    fn safe_methods_without_a_body_are_tried_again() {
        for method in ["GET", "HEAD", "OPTIONS", "TRACE"] {
            assert!(attempts(method, false).more(), "{method}");
            assert!(!attempts(method, true).more(), "{method} with a body");
        }
        for method in ["POST", "PUT", "DELETE", "PATCH", "BREW"] {
            assert!(!attempts(method, false).more(), "{method}");
        }
    }

    #[test]
    fn attempts_end_and_waits_grow_to_a_bound() {
        let mut get = Attempts::of(&Method::GET, false, 10, Duration::from_secs(1));
        for bound in [1, 2, 4, 5, 5, 5, 5, 5, 5] {
            let wait = get.after_trouble(Trouble::Connect).unwrap();
            assert!(wait <= Duration::from_secs(bound), "{wait:?}");
        }
        assert_eq!(get.after_trouble(Trouble::Connect), None);
    }

    #[test]
    fn what_does_not_pass_by_itself_is_not_tried_again() {
        for trouble in [Trouble::Refused, Trouble::Tls, Trouble::Bad] {
            assert_eq!(
                attempts("GET", false).after_trouble(trouble),
                None,
                "{trouble:?}"
            );
        }
        let none = HeaderMap::new();
        for status in [200, 301, 404, 429, 500, 501] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(
                attempts("GET", false).after_answer(status, &none),
                None,
                "{status}"
            );
        }
    }

    #[test]
    fn a_site_says_when_to_come_back() {
        let after = |value: &str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]);
            attempts("GET", false).after_answer(StatusCode::SERVICE_UNAVAILABLE, &headers)
        };
        assert_eq!(after("1"), Some(Duration::from_secs(1)));
        assert_eq!(after("60"), None);
        assert_eq!(after("Fri, 31 Dec 2027 23:59:59 GMT"), None);
    }
}
