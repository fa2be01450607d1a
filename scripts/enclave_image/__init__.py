"""What scripts/build-enclave is made of.

An image is the same bytes whenever and wherever it is built from the same input. Whatever could
differ is left out or fixed here: names are sorted, times are constant, owners and modes follow a
rule (see `tree`), inode numbers are counted, compression is told no name and no time.

    tree      a root file system as names and nodes, whatever it came from
    folder    reads one from a folder
    tarball   reads one from a tarball, whose names are not to be trusted
    program   the configuration's [program], checked against the root file system
    kernel    a kernel, its modules and its command line
    binary    the static enclave-netd, and enclave-app for scripts/build-app
    cpio      writes names and nodes as an initramfs
    eif       writes and reads the image's sections
    pcrs      the measurements
    policy    the key policy for them
    docker    the same as the input of a Docker build
    image     puts these together
    command   options and errors
"""

MIB = 1 << 20


class Wrong(Exception):
    """What is wrong with the input, in one line that says what to do about it."""


def text(name: bytes) -> str:
    """A file's name for a message: one line, whatever bytes it has."""
    shown = name.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
