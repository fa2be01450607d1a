"""The measures of scripts/bench-kms, which builds what they need.

The machines are those of scripts/lab. "Direct" is the parent's own network, "tunnel" the enclave's; in
both run the same programs. Measures are made in turns, so that slow changes of the machine hit both
alike. All that takes part goes before other programs of the machine, and none before another.
"""

import argparse
import contextlib
import json
import os
import pathlib
import selectors
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
LAB = str(HERE / "lab")
RUN = pathlib.Path(os.environ.get("NETD_LAB_DIR", "/run/netd-bench-kms"))
AT_ONCE = 30
# Fewer than there are key pairs made ahead (app/src/limits), so that each call finds one.
IN_A_ROW = 25
PCR0 = "aa" * 48
CONTEXT = {"tenant_id": "one"}
ROLE = "arn:aws:iam::123456789012:role/"
# Where each service is asked from its own machine. The attested one of the enclave is published.
PORTS = {("direct", "plain"): 6001, ("direct", "attested"): 6000,
         ("tunnel", "plain"): 5001, ("tunnel", "attested"): 5000}
MACHINES = {"direct": "parent", "tunnel": "enclave"}
TICK = os.sysconf("SC_CLK_TCK")


def lab(*words):
    """Runs scripts/lab and gives its output."""
    return subprocess.run([LAB, *words], check=True, stdout=subprocess.PIPE, text=True).stdout


def on(machine, *words):
    """Runs a command in a machine."""
    return lab("exec", "--on", machine, "env", f"TEST_PCR0={PCR0}", *words)


# --- the services and what they need --------------------------------------------------------------


def make_key(policy):
    """A key with this policy, in a file."""
    made = on("parent", "AWS_PROFILE=admin", "aws-python",
              str(HERE.parent / "tests/servers/aws/control.py"), "set-up", policy)
    return json.loads(made)["key"]


class Secret:
    """A key, a ciphertext under it, and a file that gives the key to a tenant."""

    def __init__(self, kind, policy):
        (RUN / f"{kind}-policy.json").write_text(policy)
        self.key = make_key(f"{RUN}/{kind}-policy.json")
        self.tenants = RUN / f"{kind}-tenants.json"
        self.tenants.write_text(json.dumps({"tenants": {"one": {"keys": [self.key]}}}))
        made = on("parent", "enclave-app", "kms", "encrypt", "--plain", "--key", self.key,
                  "--plaintext", "text:secret", "--context", "tenant_id=one")
        self.ciphertext = json.loads(made)["ciphertext"]
        self.message = json.dumps({"action": "decrypt", "tenant_id": "one",
                                   "encrypted_payload": self.ciphertext})


def secrets():
    """One that anybody of the account may decrypt, and one for the enclave's image alone."""
    anybody = {"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::123456789012:root"},
         "Action": "kms:*", "Resource": "*"}]}
    (RUN / "pcrs.json").write_text(json.dumps({"PCR0": PCR0}))
    enclave = on("parent", "enclave-app", "kms", "policy", "--pcrs", f"{RUN}/pcrs.json",
                 "--principal", ROLE + "enclave", "--admin", ROLE + "admin")
    return {"plain": Secret("plain", json.dumps(anybody)), "attested": Secret("attested", enclave)}


class Service:
    """`enclave-app crypto` in a machine."""

    def __init__(self, way, kind, tenants):
        program = {"plain": ["enclave-app", "crypto", "--plain"],
                   "attested": ["attested-app", "crypto"]}[kind]
        log = RUN / "log" / f"crypto-{way}-{kind}.log"
        with open(log, "wb") as file:
            self.process = subprocess.Popen(
                [LAB, "exec", "--on", MACHINES[way], "env", f"TEST_PCR0={PCR0}", *program,
                 "--tenants", str(tenants), "--listen", f"[::]:{PORTS[way, kind]}"],
                stdout=file, stderr=file, start_new_session=True)
        wait(f"crypto, {way}, {kind}", lambda: "listening" in log.read_text())

    def settle(self):
        """Waits until the key pairs are made: then their thread sleeps."""
        wait("key pairs", lambda: all(state == "S" for _, state, _ in self.makers()), 300)

    def makers(self):
        return [t for t in threads(self.process.pid) if t[0] == "key pairs"]


def wait(what, done, seconds=60):
    """Until something is so."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            sys.exit(f"bench-kms: not in time: {what}")
        time.sleep(0.05)


# --- processor time -------------------------------------------------------------------------------


def threads(pid):
    """Name, state and processor seconds of each thread."""
    found = []
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            head, tail = (task / "stat").read_text().rsplit(")", 1)
            fields = tail.split()
            found.append((head.split("(", 1)[1], fields[0], (int(fields[11]) + int(fields[12])) / TICK))
    return found


def processor(pid, makers):
    """Seconds of a process with its ended threads; of those that make key pairs ahead, or the rest."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    ahead = sum(seconds for name, _, seconds in threads(pid) if name == "key pairs")
    return ahead if makers else (int(fields[11]) + int(fields[12])) / TICK - ahead


def lab_pids():
    """What scripts/lab started, by name."""
    lines = (line.split() for line in (RUN / "processes").read_text().splitlines())
    return {name: int(pid) for pid, _, name in lines}


def go_first(pids):
    """Before other programs of the machine, which schedules sessions and not processes."""
    for pid in pids:
        with contextlib.suppress(OSError):
            pathlib.Path(f"/proc/{pid}/autogroup").write_text("-10")
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/autogroup").write_text("-10")


# --- loads ----------------------------------------------------------------------------------------


def ask(port, count, at_once):
    """Runs in a machine: asks a service. One after the other on one connection, or at once on as many
    as there are; prints the milliseconds of each answer, from when the first was asked."""
    message = sys.stdin.buffer.read()
    frame = struct.pack(">I", len(message)) + message
    connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(at_once)]
    took = []
    for _ in range(count):
        waiting = selectors.DefaultSelector()
        begin = time.perf_counter()
        for connection in connections:
            connection.sendall(frame)
            waiting.register(connection, selectors.EVENT_READ)
        while waiting.get_map():
            for key, _ in waiting.select():
                answer = receive(key.fileobj)
                took.append((time.perf_counter() - begin) * 1000)
                waiting.unregister(key.fileobj)
                if not answer["success"]:
                    sys.exit(f"bench-kms: {answer}")
    print(json.dumps(took))


def receive(connection):
    """One answer: they are short and come whole."""
    stream = connection.makefile("rb")
    (length,) = struct.unpack(">I", stream.read(4))
    return json.loads(stream.read(length))


def asked(machine, port, secret, count, at_once):
    """The same, from here."""
    command = [LAB, "exec", "--on", machine, sys.executable, "-B", __file__, "ask", str(port),
               str(count), str(at_once)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True,
                                     input=secret.message).stdout)


def fetched(machine):
    """Milliseconds of small requests on a connection that is there."""
    url = "https://web.lab.example/"
    report = json.loads(on(machine, "enclave-app", "fetch", "--reuse", "--each", "-n", "200", url))
    kept = [request["times"] for request in report["requests"] if request["reused"]]
    return [times["first_byte"] + times.get("body", 0) for times in kept]


def processes(machine, program, secret, at_once=1, further=()):
    """Seconds until so many processes have made one decrypt each, as many connections and key pairs."""
    command = [LAB, "exec", "--on", machine, "env", f"TEST_PCR0={PCR0}", *program, "decrypt",
               "--ciphertext", f"base64:{secret.ciphertext}", "--context", "tenant_id=one", *further]
    begin = time.perf_counter()
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
               for _ in range(at_once)]
    if any([process.wait() for process in running]):
        sys.exit("bench-kms: a decrypt failed")
    return (time.perf_counter() - begin) * 1000


# --- measures and tables --------------------------------------------------------------------------


def show(value):
    return f"{value:,.2f}" if value < 10 else f"{value:,.1f}"


def row(*cells):
    print("| " + " | ".join(cells) + " |", flush=True)


def quantiles(values):
    """Median and ninth decile."""
    return statistics.median(values), statistics.quantiles(values, n=10)[8] if values[1:] else values[0]


def latency(services, kept, rounds):
    """One after the other."""
    measures = {
        "small HTTPS request, connection kept": lambda way: fetched(MACHINES[way]),
        "decrypt, not attested, connection kept": lambda way: asked(
            MACHINES[way], PORTS[way, "plain"], kept["plain"], IN_A_ROW, 1),
        "decrypt, attested, connection kept, key pair ready": lambda way: asked(
            MACHINES[way], PORTS[way, "attested"], kept["attested"], IN_A_ROW, 1),
        "a process for one decrypt, not attested": lambda way: [processes(
            MACHINES[way], ["enclave-app", "kms"], kept["plain"], further=["--plain"])],
        "a process for one decrypt, attested": lambda way: [processes(
            MACHINES[way], ["attested-app", "kms"], kept["attested"])],
    }
    taken = {name: {way: [] for way in MACHINES} for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            for way in MACHINES:
                settle(services)
                taken[name][way] += measure(way)
    print(f"\nMilliseconds, median / p90; {rounds} rounds in turns.\n")
    row("", "direct", "tunnel", "added")
    row("---", "---:", "---:", "---:")
    for name, ways in taken.items():
        cells = {way: quantiles(values) for way, values in ways.items()}
        added = [tunnel - direct for direct, tunnel in zip(cells["direct"], cells["tunnel"])]
        row(name, *(" / ".join(map(show, both)) for both in (*cells.values(), added)))


def settle(services):
    for service in services.values():
        service.settle()


def at_once(services, kept, rounds, where):
    """One decrypt beside thirty."""
    # Asked by a program on the parent: the enclave's service on its published port.
    ways = {way: PORTS[way, "attested"] for way in MACHINES}
    one, thirty = ({way: [] for way in ways} for _ in range(2))
    alone, many = ({way: [] for way in ways} for _ in range(2))
    spent = {}
    for _ in range(rounds):
        for way, port in ways.items():
            settle(services)
            one[way] += asked("parent", port, kept["attested"], IN_A_ROW, 1)
            settle(services)
            pids = {**lab_pids(), "crypto": services[way, "attested"].process.pid}
            names = [name for name in (*BUSY, "crypto") if name in pids]
            before = {name: processor(pids[name], False) for name in names}
            thirty[way].append(max(asked("parent", port, kept["attested"], 1, AT_ONCE)))
            for name in names:
                used = processor(pids[name], False) - before[name]
                spent.setdefault((way, name), []).append(used * 1000 / AT_ONCE)
            attested = ["attested-app", "kms"], kept["attested"]
            alone[way].append(processes(MACHINES[way], *attested))
            many[way].append(processes(MACHINES[way], *attested, AT_ONCE))
    print(f"\n{AT_ONCE} attested decrypts at once, {where}; milliseconds until the last answer, median.\n")
    row("", "one", f"{AT_ONCE} at once", "ratio")
    row("---", "---:", "---:", "---:")
    for name, few, all_of_them in (("`crypto`", one, thirty), ("processes", alone, many)):
        for way in ways:
            pair = statistics.median(few[way]), statistics.median(all_of_them[way])
            row(f"{name}, {way}", *map(show, pair), f"{pair[1] / pair[0]:.1f}")
    print("\nProcessor milliseconds of each of the 30 by `crypto`, mean: " + "; ".join(
        f"{way}: " + ", ".join(f"{name} {statistics.mean(spent[way, name]):.2f}"
                               for w, name in spent if w == way) for way in ways) + ".")


# Whose processor time is told beside the service's.
BUSY = ("enclave-netd", "host-netd", "aws-nginx", "aws")


def machine():
    """Where this was measured."""
    model = next(line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo", encoding="utf-8")
                 if line.startswith("model name"))
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores of {model}, Linux {os.uname().release}; "
          f"load of the machine before: {load:.1f}.")


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench-kms")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--delay", type=float, default=20)
    options = parser.parse_args()
    # Whatever ends this ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    services = {}
    machine()
    lab("down")
    try:
        lab("up", "--publish", "5000")
        lab("aws")
        kept = secrets()
        for way, kind in PORTS:
            services[way, kind] = Service(way, kind, kept[kind].tenants)
        go_first([*lab_pids().values(), *(s.process.pid for s in services.values())])
        latency(services, kept, options.rounds)
        at_once(services, kept, options.rounds, "AWS beside the parent")
        lab("far", str(options.delay))
        go_first(lab_pids().values())
        at_once(services, kept, options.rounds, f"AWS {options.delay:g} ms away, each way")
    finally:
        for service in services.values():
            service.process.terminate()
            service.process.wait()
        lab("down")


if __name__ == "__main__":
    if sys.argv[1:2] == ["ask"]:
        ask(*map(int, sys.argv[2:]))
    else:
        main()
