//! Ping out of the enclave.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_tests::{Done, Family, Lab, address, connect, echo_server};

fn ping(lab: &Lab, family: Family, options: &[&str], to: [std::net::IpAddr; 2]) -> Done {
    let to = family.of(to).to_string();
    let base = [family.flag(), "-n", "-c", "2", "-i", "0.2", "-W", "3"];
    lab.enclave
        .run("ping", &[&base[..], options, &[&to]].concat())
}

#[test]
fn real_hosts_and_the_gateway_answer() {
    let lab = Lab::new();
    let _daemons = lab.up();
    for family in Family::BOTH {
        for to in [address::SERVER, address::OTHER, address::GATEWAY] {
            let text = ping(&lab, family, &[], to).ok();
            assert!(text.contains("2 received, 0% packet loss"), "{text}");
        }
        // Larger than the MTU: in fragments.
        let text = ping(&lab, family, &["-s", "4000"], address::SERVER).ok();
        assert!(text.contains("4008 bytes from"), "{text}");
    }
}

#[test]
fn who_is_silent_is_not_answered_for() {
    let lab = Lab::new();
    let _daemons = lab.up();
    for family in Family::BOTH {
        let done = ping(&lab, family, &["-W", "1"], address::SILENT);
        assert!(
            done.stdout.contains(" 0 received, 100% packet loss"),
            "{done}"
        );
        assert!(!done.stdout.contains("errors"), "{done}");
    }
}

#[test]
fn a_hop_limit_ends_where_it_is_used_up() {
    let lab = Lab::new();
    let _daemons = lab.up();
    for family in Family::BOTH {
        let exceeded_at = |ttl, to, at| {
            let done = ping(&lab, family, &["-t", ttl], to);
            let from = format!("From {}", family.of(at));
            let said = done
                .stdout
                .lines()
                .any(|line| line.starts_with(&from) && line.to_lowercase().contains("exceeded"));
            assert!(said, "{family:?} with {ttl}: {done}");
        };
        exceeded_at("1", address::SERVER, address::GATEWAY);
        exceeded_at("2", address::FAR, address::SERVER);
        ping(&lab, family, &["-t", "2"], address::SERVER).ok();
    }
}

#[test]
fn unreachable_is_told_as_it_is() {
    let lab = Lab::new();
    let _daemons = lab.up();
    for family in Family::BOTH {
        let says = |to, words: &[&str]| {
            // Routers send few errors a second.
            let done = ping(&lab, family, &["-c", "4", "-i", "0.4"], to);
            let text = done.text().to_lowercase();
            assert!(
                words.iter().any(|word| text.contains(word)),
                "{family:?} {words:?}: {done}"
            );
        };
        let host = ["destination host unreachable", "address unreachable"];
        says(address::ABSENT, &host);
        says(
            address::UNROUTED,
            &["destination net unreachable", "no route"],
        );
        says(
            address::PROHIBITED,
            &["packet filtered", "administratively prohibited"],
        );
    }
}

#[test]
fn a_parent_that_forbids_ping_sockets_says_so_and_carries_the_rest() {
    let lab = Lab::new();
    lab.parent
        .shell("echo '1 0' > /proc/sys/net/ipv4/ping_group_range")
        .ok();
    let daemons = lab.up();
    let log = daemons.host.log();
    assert!(log.contains("net.ipv4.ping_group_range"), "{log}");
    let done = ping(&lab, Family::V4, &["-W", "1"], address::SERVER);
    assert_ne!(done.code(), 0, "{done}");
    ping(&lab, Family::V4, &[], address::GATEWAY).ok();
    let echo = echo_server(&lab.internet, Family::V4.at(address::SERVER, 7));
    connect(&lab.enclave, echo, 5).unwrap();
}
