//! Times of the cache, with a clock of the test's own.

use std::time::{Duration, Instant};

use super::super::cache::{Cache, Key};
use super::super::limits;
use super::super::response::Response;
use super::super::upstream::Ask;
use super::super::wire::{self, Question};
use super::*;

fn ask_for(text: &str, rtype: u16, dnssec_ok: bool) -> Ask {
    let question = Question {
        name: name(text),
        rtype: rtype.into(),
        class: 1.into(),
    };
    Ask {
        question,
        recursion: true,
        checking_disabled: false,
        dnssec_ok,
    }
}

fn key(text: &str, rtype: u16) -> Key {
    Key::of(&ask_for(text, rtype, false)).unwrap()
}

fn response(rtype: u16, rcode: u16, sections: [&[Rr]; 3]) -> Response {
    let got = server::Got {
        bytes: q("a.test", rtype).bytes(),
        transport: Transport::Udp,
    };
    let bytes = message(&got, 0x0580 | rcode, sections);
    Response::from_upstream(wire::Message::parse(bytes).unwrap()).unwrap()
}

fn ttls(response: &Response) -> Vec<u32> {
    response
        .message
        .records()
        .iter()
        .map(|record| response.message.ttl(record))
        .collect()
}

#[test]
fn ttls_count_down_and_the_least_one_ends_it() {
    let mut cache = Cache::default();
    let now = Instant::now();
    let records = [Rr::a(NAME, 300, [1; 4]), Rr::a(NAME, 30, [2; 4])];
    let received = response(1, 0, [&records, &[], &[Rr::a(name("b.test"), 900, [3; 4])]]);
    cache.insert(key("a.test", 1), &received, now);

    let at = |millis| cache.get(&key("A.Test", 1), now + Duration::from_millis(millis));
    assert_eq!(ttls(&at(0).unwrap()), [300, 30, 900]);
    assert_eq!(ttls(&at(999).unwrap()), [300, 30, 900]);
    assert_eq!(ttls(&at(29_999).unwrap()), [271, 1, 871], "never zero");
    assert!(at(30_000).is_none());
    assert_eq!(
        at(0).unwrap().message.flags() & wire::AA,
        0,
        "no longer authoritative"
    );
}

/// What it is, type, response code, answer and authority sections, seconds.
type Case = (&'static str, u16, u16, Vec<Rr>, Vec<Rr>, Option<u64>);

#[test]
fn what_is_kept_and_for_how_long() {
    let a = |ttl| [Rr::a(NAME, ttl, [1; 4])];
    let alias = [Rr::cname(NAME, 300, "b.test")];
    let soa = |ttl, minimum| [Rr::soa("test", ttl, minimum)];
    let cases: Vec<Case> = vec![
        ("an address", 1, 0, a(300).into(), vec![], Some(300)),
        ("TTL zero", 1, 0, a(0).into(), vec![], None),
        (
            "a TTL with the highest bit",
            1,
            0,
            a(0x8000_0000).into(),
            vec![],
            None,
        ),
        (
            "a TTL of weeks",
            1,
            0,
            a(2_000_000).into(),
            vec![],
            Some(86_400),
        ),
        (
            "NXDOMAIN by MINIMUM",
            1,
            3,
            vec![],
            soa(900, 60).into(),
            Some(60),
        ),
        (
            "NXDOMAIN by the SOA's TTL",
            1,
            3,
            vec![],
            soa(50, 600).into(),
            Some(50),
        ),
        (
            "a long NXDOMAIN",
            1,
            3,
            vec![],
            soa(90_000, 90_000).into(),
            Some(3_600),
        ),
        ("NXDOMAIN without SOA", 1, 3, vec![], vec![], None),
        ("NODATA", 1, 0, vec![], soa(900, 60).into(), Some(60)),
        ("NODATA without SOA", 1, 0, vec![], vec![], None),
        (
            "an alias to nothing",
            1,
            0,
            alias.to_vec(),
            soa(900, 60).into(),
            Some(60),
        ),
        (
            "an alias to nothing without SOA",
            1,
            0,
            alias.to_vec(),
            vec![],
            None,
        ),
        ("the alias itself", 5, 0, alias.to_vec(), vec![], Some(300)),
        ("SERVFAIL", 1, 2, vec![], soa(900, 60).into(), None),
        ("REFUSED", 1, 5, vec![], soa(900, 60).into(), None),
        ("ANY", 255, 0, a(300).into(), vec![], None),
    ];
    for (what, rtype, rcode, answer, authority, expected) in cases {
        let response = response(rtype, rcode, [&answer, &authority, &[]]);
        let lifetime = response.lifetime(rtype.into());
        assert_eq!(lifetime, expected.map(Duration::from_secs), "{what}");
    }
}

#[test]
fn entries_are_bounded_in_number_and_size() {
    let mut cache = Cache::default();
    let now = Instant::now();
    for index in 0..limits::CACHE_ENTRIES + 10 {
        let ttl = 1_000 + u32::try_from(index).unwrap();
        let received = response(1, 0, [&[Rr::a(NAME, ttl, [1; 4])], &[], &[]]);
        cache.insert(key(&format!("n{index}.test"), 1), &received, now);
        cache.insert(key(&format!("n{index}.test"), 1), &received, now);
    }
    assert_eq!(cache.len(), limits::CACHE_ENTRIES);
    assert!(
        cache.get(&key("n9.test", 1), now).is_none(),
        "the first to expire made room"
    );
    assert!(cache.get(&key("n10.test", 1), now).is_some());

    let later = now + Duration::from_secs(100_000);
    let large = Rr(NAME.to_vec(), 16, 60, vec![0; limits::CACHE_ENTRY_BYTES]);
    cache.insert(
        key("large.test", 16),
        &response(16, 0, [&[large], &[], &[]]),
        later,
    );
    assert!(cache.get(&key("large.test", 16), later).is_none());
    cache.insert(
        key("a.test", 1),
        &response(1, 0, [&[Rr::a(NAME, 9, [1; 4])], &[], &[]]),
        later,
    );
    assert_eq!(cache.len(), 1, "what has expired goes");
}

#[test]
fn the_bits_that_change_an_answer_are_part_of_the_key() {
    let plain = ask_for("a.test", 1, false);
    let variants = [
        Ask {
            dnssec_ok: true,
            ..plain.clone()
        },
        Ask {
            checking_disabled: true,
            ..plain.clone()
        },
        Ask {
            recursion: false,
            ..plain.clone()
        },
        ask_for("a.test", 28, false),
    ];
    for variant in variants {
        assert_ne!(Key::of(&plain), Key::of(&variant));
    }
}
