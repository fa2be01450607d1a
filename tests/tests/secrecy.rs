//! What the host can learn, and what it cannot.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_tests::{Answer, FakeDns, Lab, Process, address, until};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

/// A word that nobody else says.
fn marker(what: &str) -> String {
    let random = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap();
    format!("{what}-{}", random.trim())
}

fn contains(hay: &[u8], needle: &str) -> bool {
    hay.windows(needle.len())
        .any(|window| window == needle.as_bytes())
}

/// Everything a process has in memory that it may write to.
fn memory(process: &Process) -> Vec<u8> {
    let maps = fs::read_to_string(format!("/proc/{}/maps", process.pid())).unwrap();
    let file = File::open(format!("/proc/{}/mem", process.pid())).unwrap();
    let mut all = Vec::new();
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (range, _) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).unwrap());
        let mut part = vec![0; usize::try_from(end - start).unwrap()];
        // Some mappings of the kernel's cannot be read.
        if file.read_exact_at(&mut part, start).is_ok() {
            all.extend(part);
        }
    }
    all
}

#[test]
fn nothing_inside_https_is_seen_on_the_link_the_wire_or_by_host_netd() {
    let lab = Lab::new();
    let nginx = lab.nginx();
    let _unbound = lab.unbound();
    let capture = lab.dir().join("link/host.pcapng");
    let wire = lab.dir().join("wire.pcap");
    let (daemons, tap) = lab.up_tapped(&["--capture", capture.to_str().unwrap()], "");
    let arguments = ["-i", "veth0", "-U", "-s0", "-w", wire.to_str().unwrap()];
    let mut tcpdump = lab.parent.spawn("tcpdump", &arguments);
    tcpdump.wait_log("listening on", 10);

    // A POST with a marker in path, header and body; the answer repeats two of them.
    let fetch = |scheme: &str| {
        let [path, header, body] = ["path", "header", "body"].map(marker);
        let url = format!("{scheme}://web.lab.example/secret/{path}");
        let named = format!("X-Marker: {header}");
        let arguments = [
            "-sS", "--cacert", &nginx.ca, &url, "-H", &named, "-d", &body,
        ];
        let page = lab.enclave.run("curl", &arguments).ok();
        assert!(page.contains(&path) && page.contains(&header), "{page}");
        [path, header, body]
    };
    let secret = fetch("https");
    let open = fetch("http");

    let [last, ..] = &open;
    let on_wire = until(10, "the wire's capture has the last request", || {
        Some(fs::read(&wire).ok()?).filter(|bytes| contains(bytes, last))
    });
    let in_capture = until(10, "host-netd's capture has the last request", || {
        Some(fs::read(&capture).ok()?).filter(|bytes| contains(bytes, last))
    });
    let in_memory = memory(&daemons.host);
    for word in &open {
        assert!(
            tap.saw(word.as_bytes()),
            "the control is not on the link: {word}"
        );
        assert!(
            contains(&on_wire, word),
            "the control is not on the wire: {word}"
        );
        assert!(
            contains(&in_capture, word),
            "the control is not in the capture: {word}"
        );
    }
    // The search of the memory works: both names were there.
    assert!(
        contains(&in_memory, "web.lab.example"),
        "no server name in memory"
    );
    for word in &secret {
        assert!(!tap.saw(word.as_bytes()), "on the link: {word}");
        assert!(!contains(&on_wire, word), "on the wire: {word}");
        assert!(!contains(&in_capture, word), "in the capture: {word}");
        assert!(!contains(&in_memory, word), "in host-netd's memory: {word}");
        assert!(
            !daemons.host.log().contains(word),
            "in host-netd's log: {word}"
        );
    }
    // What is not secret: the name in the TLS hello.
    assert!(tap.saw(b"web.lab.example"));
}

#[test]
fn a_lying_resolver_gets_nothing() {
    let lab = Lab::new();
    let nginx = lab.nginx();
    // The host resolves the name to a server of its own, with a certificate of its own CA.
    lab.parent.write_resolv_conf("nameserver 192.0.2.53\n");
    let lie = Answer::Addresses(vec![address::OTHER[0]], 60);
    let _dns = FakeDns::new(&lab.internet, address::DNS[0], lie);
    let dir = lab.dir().join("liar");
    fs::create_dir(&dir).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/servers/make-pki");
    lab.internet
        .run(script, &[dir.to_str().unwrap(), "web.lab.example"])
        .ok();
    let (pem, key) = (dir.join("server.pem"), dir.join("server.key"));
    let line = format!(
        "exec openssl s_server -accept 192.0.2.3:443 -cert {} -key {} -www -debug",
        pem.display(),
        key.display()
    );
    let mut liar = lab.internet.spawn("bash", &["-c", &line]);
    liar.wait_log("ACCEPT", 10);
    let (_daemons, tap) = lab.up_tapped(&[], "");

    let secret = marker("path");
    let url = format!("https://web.lab.example/{secret}");
    let refused = lab
        .enclave
        .run("curl", &["-sS", "--cacert", &nginx.ca, &url]);
    assert_eq!(
        refused.code(),
        60,
        "curl: the peer's certificate is not trusted: {refused}"
    );
    assert!(!tap.saw(secret.as_bytes()));
    // The liar was reached, and told why not.
    liar.wait_log("alert", 10);
    assert!(!liar.log().contains(&secret));

    // The control: one who does not check is fooled, and asks the liar.
    let ca = dir.join("ca.pem");
    let fooled = lab
        .enclave
        .run("curl", &["-sS", "--cacert", ca.to_str().unwrap(), &url]);
    assert!(fooled.ok().contains("s_server"), "{}", liar.log());
}
