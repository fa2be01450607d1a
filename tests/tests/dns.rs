//! DNS at the gateway.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_tests::{Answer, FakeDns, Family, Lab, Machine, address, connect, echo_server, until};
use std::time::{Duration, Instant};

/// What dig says of a question, put to a server.
fn dig(machine: &Machine, server: &str, question: &[&str]) -> String {
    let at = format!("@{server}");
    let base = [
        "+tries=1",
        "+time=8",
        "+noall",
        "+comments",
        "+answer",
        "+authority",
    ];
    machine
        .run("dig", &[&[&at[..]], &base[..], question].concat())
        .ok()
}

/// The records in dig's output, without their TTLs, sorted.
fn records(text: &str) -> Vec<String> {
    let mut records: Vec<String> = (text.lines())
        .filter(|line| !line.starts_with(';') && !line.is_empty())
        .map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            format!("{} {}", words[0], words[2..].join(" "))
        })
        .collect();
    records.sort();
    records
}

fn status(text: &str) -> &str {
    let (_, rest) = text
        .split_once("status: ")
        .unwrap_or_else(|| panic!("no status: {text}"));
    rest.split(',').next().unwrap()
}

fn flags(text: &str) -> Vec<&str> {
    let (_, rest) = text
        .split_once(";; flags: ")
        .unwrap_or_else(|| panic!("no flags: {text}"));
    rest.split(';').next().unwrap().split(' ').collect()
}

fn gateway(family: Family) -> String {
    family.of(address::GATEWAY).to_string()
}

#[test]
fn every_type_is_answered_as_the_real_server_does() {
    let lab = Lab::new();
    let _unbound = lab.unbound();
    let _daemons = lab.up();
    let questions = [
        ("web.lab.example", "A"),
        ("web.lab.example", "AAAA"),
        ("www.lab.example", "A"),
        ("www.lab.example", "AAAA"),
        ("www.lab.example", "CNAME"),
        ("lab.example", "MX"),
        ("lab.example", "NS"),
        ("lab.example", "SOA"),
        ("lab.example", "TXT"),
        ("lab.example", "CAA"),
        ("_http._tcp.lab.example", "SRV"),
        ("svc.lab.example", "HTTPS"),
        ("odd.lab.example", "TYPE65280"),
        ("2.2.0.192.in-addr.arpa", "PTR"),
        ("many.lab.example", "A"),
        ("large.lab.example", "TXT"),
        ("huge.lab.example", "TXT"),
        ("WeB.LAB.example", "A"),
    ];
    for (name, kind) in questions {
        let real = dig(&lab.parent, "192.0.2.53", &[name, kind]);
        assert_eq!(status(&real), "NOERROR", "the bed: {real}");
        assert!(!records(&real).is_empty(), "the bed: {real}");
        for family in Family::BOTH {
            for transport in ["+notcp", "+tcp"] {
                let ours = dig(&lab.enclave, &gateway(family), &[transport, name, kind]);
                assert_eq!(status(&ours), "NOERROR", "{name} {kind}: {ours}");
                assert_eq!(
                    records(&ours)
                        .iter()
                        .map(|r| r.to_lowercase())
                        .collect::<Vec<_>>(),
                    records(&real)
                        .iter()
                        .map(|r| r.to_lowercase())
                        .collect::<Vec<_>>(),
                    "{name} {kind} {transport} {family:?}"
                );
                assert!(flags(&ours).contains(&"ra"), "{ours}");
            }
        }
    }
}

#[test]
fn no_such_name_and_no_such_record_are_told_apart() {
    let lab = Lab::new();
    let _unbound = lab.unbound();
    let _daemons = lab.up();
    for (name, kind, code) in [
        ("nothere.lab.example", "A", "NXDOMAIN"),
        ("v4only.lab.example", "AAAA", "NOERROR"),
        ("v6only.lab.example", "A", "NOERROR"),
        ("web.lab.example", "MX", "NOERROR"),
    ] {
        // The second answer may come from the cache.
        for _ in 0..2 {
            let text = dig(&lab.enclave, "100.64.0.1", &[name, kind]);
            assert_eq!(status(&text), code, "{name} {kind}: {text}");
            let [soa] = &records(&text)[..] else {
                panic!("{name} {kind}: nothing but an SOA was expected: {text}");
            };
            assert!(soa.starts_with("lab.example. IN SOA"), "{text}");
        }
    }
    // As programs see it.
    let error = lab
        .enclave
        .run("getent", &["ahosts", "nothere.lab.example"]);
    assert_eq!(error.code(), 2, "{error}");
    let addresses = lab
        .enclave
        .run("getent", &["ahosts", "www.lab.example"])
        .ok();
    assert!(
        addresses.contains("192.0.2.2") && addresses.contains("2001:db8:1::2"),
        "{addresses}"
    );
}

#[test]
fn edns_and_truncation_are_right() {
    let lab = Lab::new();
    let _unbound = lab.unbound();
    let _daemons = lab.up();
    let ask = |question: &[&str]| {
        let base = ["@100.64.0.1", "+tries=1", "+time=8", "+ignore", "+stats"];
        lab.enclave.run("dig", &[&base[..], question].concat()).ok()
    };
    let size = |text: &str| -> usize {
        let (_, rest) = text
            .split_once("MSG SIZE  rcvd: ")
            .expect("dig tells the size");
        rest.lines().next().unwrap().trim().parse().unwrap()
    };

    let plain = ask(&["+noedns", "web.lab.example"]);
    assert!(
        !plain.contains("EDNS:"),
        "an OPT that was not asked for: {plain}"
    );
    let edns = ask(&["+edns=0", "web.lab.example"]);
    assert!(edns.contains("EDNS: version: 0"), "{edns}");
    let version = ask(&["+edns=7", "+noednsneg", "web.lab.example"]);
    assert_eq!(status(&version), "BADVERS", "{version}");

    for (options, limit) in [(&["+noedns"][..], 512), (&["+bufsize=1232"][..], 1232)] {
        let cut = ask(&[options, &["large.lab.example", "TXT"]].concat());
        assert!(flags(&cut).contains(&"tc"), "{cut}");
        assert!(size(&cut) <= limit, "{} bytes for {limit}", size(&cut));
    }
    let whole = ask(&["+tcp", "huge.lab.example", "TXT"]);
    assert!(
        !flags(&whole).contains(&"tc") && size(&whole) > 12_000,
        "{whole}"
    );

    // Programs fall back to TCP by themselves.
    let text = lab
        .enclave
        .run("dig", &["+short", "huge.lab.example", "TXT"])
        .ok();
    assert_eq!(text.matches("part ").count(), 60);
}

#[test]
fn failure_of_the_server_stays_failure() {
    let lab = Lab::new();
    lab.parent.write_resolv_conf("nameserver 192.0.2.3\n");
    let fake = FakeDns::new(&lab.internet, address::OTHER[0], Answer::Code(2));
    let _daemons = lab.up();
    let text = dig(&lab.enclave, "100.64.0.1", &["web.lab.example"]);
    assert_eq!(status(&text), "SERVFAIL", "{text}");
    // It is not kept: the next question finds the server well.
    fake.say(Answer::Addresses(vec![address::SERVER[0]], 60));
    until(15, "the name is found", || {
        let text = dig(&lab.enclave, "100.64.0.1", &["web.lab.example"]);
        (status(&text) == "NOERROR").then_some(())
    });
    fake.say(Answer::Silence);
    let text = dig(
        &lab.enclave,
        "100.64.0.1",
        &["+time=30", "other.lab.example"],
    );
    assert_eq!(status(&text), "SERVFAIL", "nobody answers: {text}");
}

#[test]
fn ttls_are_real_and_answers_are_kept_as_long() {
    let lab = Lab::new();
    lab.parent.write_resolv_conf("nameserver 192.0.2.3\n");
    let answer = |ttl| Answer::Addresses(vec![address::SERVER[0]], ttl);
    let fake = FakeDns::new(&lab.internet, address::OTHER[0], answer(3));
    let _daemons = lab.up();
    let ttl = || -> u64 {
        let text = dig(&lab.enclave, "100.64.0.1", &["short.lab.example"]);
        let line = text
            .lines()
            .find(|line| line.starts_with("short."))
            .expect("an answer");
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    assert_eq!(ttl(), 3);
    let asked = fake.questions();
    let begin = Instant::now();
    let mut seen = vec![];
    until(10, "the answer is asked for again", || {
        seen.push(ttl());
        (fake.questions() > asked).then_some(())
    });
    assert!(
        begin.elapsed() >= Duration::from_secs(2),
        "asked again after {:?}",
        begin.elapsed()
    );
    assert!(
        seen.contains(&2) && seen.contains(&1),
        "it does not count down: {seen:?}"
    );
    fake.say(answer(86_000));
    let text = dig(&lab.enclave, "100.64.0.1", &["long.lab.example"]);
    assert!(text.contains("86000"), "{text}");
}

#[test]
fn the_resolv_conf_of_the_parent_is_followed_when_it_changes() {
    let lab = Lab::new();
    lab.parent.write_resolv_conf("nameserver 192.0.2.3\n");
    let [first, second] = [address::OTHER[0], address::SERVER[0]];
    let _first = FakeDns::new(&lab.internet, first, Answer::Addresses(vec![first], 0));
    let _second = FakeDns::new(&lab.internet, second, Answer::Addresses(vec![second], 0));
    let _daemons = lab.up();
    let address_of = |name: &str| {
        lab.enclave
            .run("dig", &["+short", "+tries=1", "+time=8", name])
            .ok()
    };
    assert_eq!(address_of("a.lab.example").trim(), "192.0.2.3");
    lab.parent.write_resolv_conf("nameserver 192.0.2.2\n");
    until(15, "the new server is asked", || {
        (address_of("b.lab.example").trim() == "192.0.2.2").then_some(())
    });
}

#[test]
fn a_dead_first_server_is_passed_over() {
    let lab = Lab::new();
    let _unbound = lab.unbound();
    lab.parent.write_resolv_conf(
        "nameserver 198.51.100.1\nnameserver 192.0.2.53\noptions timeout:1 attempts:2\n",
    );
    let _daemons = lab.up();
    let begin = Instant::now();
    let text = dig(&lab.enclave, "100.64.0.1", &["web.lab.example"]);
    assert_eq!(status(&text), "NOERROR", "{text}");
    assert!(
        begin.elapsed() < Duration::from_secs(4),
        "{:?}",
        begin.elapsed()
    );
}

#[test]
fn search_domains_of_the_parent_are_applied() {
    let lab = Lab::new();
    let _unbound = lab.unbound();
    lab.parent
        .write_resolv_conf("search nothere.example lab.example\nnameserver 192.0.2.53\n");
    let _daemons = lab.up();
    let addresses = lab.enclave.run("getent", &["ahostsv4", "web"]).ok();
    assert!(addresses.contains("192.0.2.2"), "{addresses}");
}

#[test]
fn questions_that_wait_hold_nothing_up() {
    let lab = Lab::new();
    lab.parent.write_resolv_conf("nameserver 192.0.2.3\n");
    let fake = FakeDns::new(&lab.internet, address::OTHER[0], Answer::Silence);
    let _daemons = lab.up();
    let echo = echo_server(&lab.internet, Family::V4.at(address::SERVER, 7));
    let line = "for i in {1..50}; do dig +tries=1 +time=20 n$i.lab.example & done; wait";
    let mut waiting = lab.enclave.spawn("bash", &["-c", line]);
    until(10, "the questions wait", || {
        (fake.questions() >= 50).then_some(())
    });
    let begin = Instant::now();
    connect(&lab.enclave, echo, 5).unwrap();
    assert!(
        begin.elapsed() < Duration::from_secs(1),
        "{:?}",
        begin.elapsed()
    );
    assert!(waiting.ended().is_none(), "{}", waiting.log());
}
