//! resolv.conf, and its changes.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use super::super::Transport;
use super::super::conf::{ConfError, Watch};
use super::super::limits;
use super::*;

fn parse(text: &str) -> Settings {
    Settings::parse(text.as_bytes()).unwrap()
}

#[test]
fn a_file_with_everything() {
    let loopback = nix::net::if_::if_nametoindex("lo").unwrap();
    let settings = parse(
        "# comment\n; comment\n\tnameserver 192.0.2.1 # trailing\nnameserver 2001:db8::1\r\n\
         nameserver fe80::1%lo\nnameserver 192.0.2.4\ndomain old.test\n\
         search One.Test. two.test\noptions timeout:3 attempts:4 ndots:2 rotate edns0 novel:7\n\
         sortlist 1.2.3.4\nfamily inet6\n",
    );
    let servers = [
        "192.0.2.1:53".into(),
        "[2001:db8::1]:53".into(),
        format!("[fe80::1%{loopback}]:53"),
    ];
    assert_eq!(
        settings.servers,
        servers.map(|text: String| text.parse().unwrap()),
        "at most three"
    );
    assert_eq!(
        settings.search,
        ["one.test", "two.test"].map(|text| Name::from_text(text).unwrap())
    );
    assert_eq!(settings.timeout, Duration::from_secs(3));
    assert_eq!(
        (settings.attempts, settings.ndots, settings.rotate),
        (4, 2, true)
    );
}

#[test]
fn defaults_caps_and_mistakes() {
    let defaults = parse("nameserver 192.0.2.1\n");
    assert_eq!(
        defaults,
        Settings {
            search: vec![],
            timeout: Duration::from_secs(5),
            ..settings_at(&defaults.servers)
        }
    );

    let capped = parse("nameserver ::1\noptions timeout:99 attempts:99 ndots:99");
    assert_eq!(
        (capped.timeout, capped.attempts, capped.ndots),
        (Duration::from_secs(30), 5, 15)
    );
    let least = parse("nameserver ::1\noptions timeout:0 attempts:0 ndots:0 timeout: attempts:x");
    assert_eq!(
        (least.timeout, least.attempts, least.ndots),
        (Duration::from_secs(1), 1, 0)
    );

    let odd = parse(
        "nameserver\nnameserver 1.2.3\nnameserver fe80::1%no-such\nsearch a..b . ok.test\nnameserver ::1",
    );
    assert_eq!((odd.servers.len(), odd.search.len()), (1, 1));
    assert_eq!(
        parse("nameserver ::1\nsearch a.test\ndomain b.test").search,
        [Name::from_text("b.test").unwrap()]
    );

    for nothing in [
        &b""[..],
        b"search a.test",
        b"nameserver",
        b"\xff\xfe\0nameserver 1.2.3.4",
    ] {
        assert!(matches!(
            Settings::parse(nothing),
            Err(ConfError::NoNameServer)
        ));
    }
    assert_eq!(
        Settings::parse(b"search \xff\xff\nnameserver ::1")
            .unwrap()
            .search
            .len(),
        0
    );
}

#[test]
fn a_changed_file_is_noticed_also_behind_a_link() {
    let dir = tempfile::tempdir().unwrap();
    let path = |file: &str| dir.path().join(file);
    let mut watch = Watch::default();
    let mut looked = |path: &Path| match watch.changed(path) {
        None => "same".to_owned(),
        Some(Err(_)) => "bad".to_owned(),
        Some(Ok(settings)) => settings.servers[0].ip().to_string(),
    };
    let conf = path("resolv.conf");
    symlink("target", &conf).unwrap();

    assert_eq!(looked(&conf), "bad", "a link to nothing");
    assert_eq!(looked(&conf), "same");
    fs::write(path("target"), "nameserver 192.0.2.1").unwrap();
    assert_eq!(looked(&conf), "192.0.2.1");
    assert_eq!(looked(&conf), "same");
    fs::write(path("new"), "nameserver 192.0.2.2").unwrap();
    fs::rename(path("new"), path("target")).unwrap();
    assert_eq!(looked(&conf), "192.0.2.2", "the target was replaced");
    fs::write(path("other"), "nameserver 192.0.2.3").unwrap();
    symlink("other", path("link")).unwrap();
    fs::rename(path("link"), &conf).unwrap();
    assert_eq!(looked(&conf), "192.0.2.3", "the link was replaced");
    fs::write(
        path("other"),
        vec![b'#'; usize::try_from(limits::RESOLV_CONF_BYTES).unwrap() + 1],
    )
    .unwrap();
    assert_eq!(looked(&conf), "bad", "too long");
    fs::remove_file(path("other")).unwrap();
    assert_eq!(looked(&conf), "bad", "gone");
}

/// Asks until the extended error is `expected`; the file is looked at once a second.
async fn until_extended_error(dns: &Dns, expected: u16) {
    let started = Instant::now();
    loop {
        let (answer, message) = ask_over(dns, &q("a.test", 1u16).edns(1_232), Transport::Udp).await;
        assert_eq!(rcode(&message), ResponseCode::ServFail);
        if extended_error(&answer) == Some(expected) {
            return;
        }
        assert!(
            started.elapsed() < Duration::from_secs(10),
            "{:?}",
            extended_error(&answer)
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn the_service_waits_for_a_file_and_outlives_a_bad_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("resolv.conf");
    let dns = Dns::start(path.clone(), 16);
    until_extended_error(&dns, 14).await;

    // Nothing answers at port 53 of this address; the refusal shows that it was asked.
    fs::write(&path, "nameserver 127.93.7.5").unwrap();
    until_extended_error(&dns, 22).await;

    fs::write(&path, "nothing").unwrap();
    tokio::time::sleep(limits::RESOLV_CONF_POLL * 2).await;
    until_extended_error(&dns, 22).await;
}

#[tokio::test]
async fn a_query_under_way_ends_with_the_servers_it_began_with() {
    let answer = |last: u8| {
        move |got: &server::Got| {
            let bytes = message(
                got,
                0x0180,
                [&[Rr::a(NAME, 60, [192, 0, 2, last])], &[], &[]],
            );
            Reply::Late(Duration::from_millis(200), bytes)
        }
    };
    let (old, new) = (
        Server::start(answer(1)).await,
        Server::start(answer(2)).await,
    );
    let dns = dns(settings(&[&old]));
    let query = q("a.test", 1u16);

    let (first, second) = tokio::join!(ask(&dns, &query), async {
        while old.seen().is_empty() {
            tokio::task::yield_now().await;
        }
        dns.service.apply("test".as_ref(), Ok(settings(&[&new])));
        ask(&dns, &query).await
    });

    assert_eq!(first.answers[0].data.to_string(), "192.0.2.1");
    assert_eq!(second.answers[0].data.to_string(), "192.0.2.2");
}
