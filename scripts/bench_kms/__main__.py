"""The measures of scripts/bench-kms, which builds what they need.

The machines are those of scripts/lab. "Direct" is the parent's own network, "tunnel" the enclave's; in
both run the same programs. Measures are made in turns, so that slow changes of the machine hit both
alike. All that takes part goes before other programs of the machine, and none before another.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time

from bed import LAB, MACHINES, PCR0, PORTS, lab, lab_pids, on, processor, running, secrets

AT_ONCE = 30
# Key pairs that a service makes ahead (app/src/limits), and one that its thread holds in its hand.
READY = 32 + 1
# Fewer, so that each call finds one.
IN_A_ROW = 25
# Whose processor time is told beside the service's.
BUSY = ("enclave-netd", "host-netd", "aws-nginx", "aws")
ASK = os.path.join(os.path.dirname(__file__), "ask.py")


def asked(machine, port, secret, count, at_once):
    """Milliseconds of answers to ask.py on a machine."""
    command = [LAB, "exec", "--on", machine, sys.executable, "-B", ASK, str(port),
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
    """Milliseconds until so many have made one decrypt each, with connections and pairs of their own."""
    command = [LAB, "exec", "--on", machine, "env", f"TEST_PCR0={PCR0}", *program, "decrypt",
               "--ciphertext", f"base64:{secret.ciphertext}", "--context", "tenant_id=one", *further]
    begin = time.perf_counter()
    started = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
               for _ in range(at_once)]
    if any([process.wait() for process in started]):
        sys.exit("bench-kms: a decrypt failed")
    return (time.perf_counter() - begin) * 1000


def show(value):
    return f"{value:,.2f}" if value < 10 else f"{value:,.1f}"


def row(*cells):
    print("| " + " | ".join(cells) + " |", flush=True)


def quantiles(values):
    """Median and ninth decile."""
    return statistics.median(values), sorted(values)[len(values) * 9 // 10]


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


def parts(services, kept, rounds):
    """What an attested decrypt by a process of its own consists of, in the enclave."""
    settle(services)
    pair = processor(services["tunnel", "attested"].process.pid, True) * 1000 / READY
    steps = {"dns": [], "connect": [], "tls": []}
    plain, attested, whole = [], [], []
    url = "https://kms.us-east-1.amazonaws.com/"
    for _ in range(rounds):
        report = json.loads(on("enclave", "enclave-app", "fetch", "--each", "-n", "10", url))
        for step, taken in steps.items():
            taken += [request["times"][step] for request in report["requests"]]
        settle(services)
        plain += asked("enclave", PORTS["tunnel", "plain"], kept["plain"], IN_A_ROW, 1)
        attested += asked("enclave", PORTS["tunnel", "attested"], kept["attested"], IN_A_ROW, 1)
        whole.append(processes("enclave", ["attested-app", "kms"], kept["attested"]))
    medians = {step: statistics.median(taken) for step, taken in steps.items()}
    call, sealed = statistics.median(plain), statistics.median(attested)
    rows = {
        "name": medians["dns"],
        "connection": medians["connect"],
        "TLS handshake": medians["tls"],
        "key pair (of a processor)": pair,
        "the call as it is without attestation": call,
        "document, its check by KMS, sealing, opening": sealed - call,
    }
    total = statistics.median(whole)
    rows["start of the process, credentials, certificates: the rest"] = total - sum(rows.values())
    print("\nWhere an attested decrypt by a process of its own spends its time, in the enclave, median.\n")
    row("", "ms")
    row("---", "---:")
    for name, value in rows.items():
        row(name, show(value))
    row("together", show(total))


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
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves it
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    machine()
    lab("down")
    try:
        lab("up", "--publish", "5000")
        lab("aws")
        kept = secrets()
        with running(kept) as services:
            parts(services, kept, options.rounds)
            latency(services, kept, options.rounds)
            at_once(services, kept, options.rounds, "AWS beside the parent")
        lab("far", str(options.delay))
        # Anew: connections that are there would go the old way.
        with running(kept) as services:
            at_once(services, kept, options.rounds, f"AWS {options.delay:g} ms away, each way")
    finally:
        lab("down")


main()
