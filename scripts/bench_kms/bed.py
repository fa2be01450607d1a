"""The machines of scripts/lab, the services on them, and the processor time they take."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time

REPO = pathlib.Path(__file__).resolve().parent.parent.parent
LAB = str(REPO / "scripts/lab")
RUN = pathlib.Path(os.environ["NETD_LAB_DIR"])
PCR0 = "aa" * 48
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


def make_key(policy):
    """A key with this policy, in a file."""
    made = on("parent", "AWS_PROFILE=admin", "aws-python",
              str(REPO / "tests/servers/aws/control.py"), "set-up", policy)
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
        try:
            wait(f"crypto, {way}, {kind}", lambda: "listening" in log.read_text())
        except BaseException:
            self.end()
            raise

    def end(self):
        self.process.terminate()
        self.process.wait()

    def settle(self):
        """Waits until the key pairs are made: then their thread sleeps."""
        wait("key pairs", lambda: all(state == "S" for _, state, _ in self.makers()), 300)

    def makers(self):
        return [t for t in threads(self.process.pid) if t[0] == "key pairs"]


@contextlib.contextmanager
def running(kept):
    """All services, until they are no longer needed."""
    services = {}
    try:
        for way, kind in PORTS:
            services[way, kind] = Service(way, kind, kept[kind].tenants)
        go_first([*lab_pids().values(), *(service.process.pid for service in services.values())])
        yield services
    finally:
        for service in services.values():
            service.end()


def wait(what, done, seconds=60):
    """Until something is so."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            sys.exit(f"bench-kms: not in time: {what}")
        time.sleep(0.05)


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
