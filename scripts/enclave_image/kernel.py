"""The kernel of an image, its modules and its command line.

By default a Debian cloud kernel, which `scripts/fetch-kernel` fetches. Or a folder: that of AWS's
nitro-cli (bzImage, bzImage.config, cmdline, nsm.ko), or one that fetch-kernel made (vmlinuz,
config, modules/). Or a file, with --kernel-config and --modules.
"""

import re
import struct
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from . import Wrong

# In the order to load them. Debian's kernel has all of these as modules; ACPI or the command line
# tells it of the virtio-mmio devices, one of which is the vsock.
MODULES = [
    "virtio_mmio",
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vmw_vsock_virtio_transport",
    "tun",
    "virtio-rng",
    "nsm",
]
# The command line that nitro-cli uses, word by word:
CMDLINE = " ".join(
    [
        "reboot=k",  # by the keyboard controller, which the hypervisor watches
        "panic=30",  # a kernel that panics reboots, that is ends the enclave, after 30 s
        "pci=off",  # an enclave has no PCI bus: do not look for one
        "nomodules",  # unknown to kernels of today, which pass it on to the first process
        "console=ttyS0",  # where nitro-cli console reads, in debug mode
        "i8042.noaux",  # no mouse,
        "i8042.nomux",  # no multiplexer,
        "i8042.nopnp",  # no plug and play,
        "i8042.dumbkbd",  # no keyboard to speak to: each probe would cost time
        "random.trust_cpu=on",  # RDRAND counts as entropy early in the boot
    ]
)
# The header of a bzImage, from Linux' Documentation/arch/x86/boot.rst.
BOOT_FLAG = (0x1FE, b"\x55\xaa")
BOOT_MAGIC = (0x202, b"HdrS")
VERSION_POINTER = 0x20E
LOADED_HIGH = 0x211
# COMMAND_LINE_SIZE of x86.
MAX_CMDLINE = 2048
NEEDED = {
    "CONFIG_BLK_DEV_INITRD": None,
    "CONFIG_RD_GZIP": None,
    "CONFIG_DEVTMPFS": None,
    "CONFIG_TUN": "tun",
    "CONFIG_VIRTIO_MMIO": "virtio_mmio",
    "CONFIG_VSOCKETS": "vsock",
    "CONFIG_VIRTIO_VSOCKETS": "vmw_vsock_virtio_transport",
}


@dataclass
class Kernel:
    """All that the boot part of an image takes from elsewhere."""

    path: Path
    image: bytes
    version: str
    cmdline: str
    modules: list[Path] = field(default_factory=list)


def fetch(repository: Path, folder: Path, more: list[str]) -> Path:
    """A Debian kernel in `folder`, with `MODULES` and `more`."""
    command = [repository / "scripts" / "fetch-kernel", folder, *MODULES, *more]
    if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
        raise Wrong("no kernel: see above, or give one with --kernel")
    return folder


def load(path: Path, config: Path | None, modules: Path | None, cmdline: str | None) -> Kernel:
    """The kernel at `path`, with what its folder has unless the other arguments say otherwise."""
    if path.is_dir():
        folder = path
        path = next((folder / name for name in ("bzImage", "vmlinuz") if (folder / name).is_file()), None)
        if path is None:
            raise Wrong(f"--kernel {folder}: there is neither bzImage nor vmlinuz in it")
        beside = [folder / "bzImage.config", folder / "config"]
        config = config or next((file for file in beside if file.is_file()), None)
        if modules is None:
            modules = folder / "modules" if (folder / "modules").is_dir() else folder
        if cmdline is None and (folder / "cmdline").is_file():
            cmdline = read(folder / "cmdline").decode("ascii", "replace").strip()
    image = read(path)
    version = version_of(path, image)
    files = module_files(modules) if modules else []
    if config:
        check_config(config, files)
    cmdline = CMDLINE if cmdline is None else cmdline
    if not cmdline.isascii() or not cmdline.isprintable() or len(cmdline) >= MAX_CMDLINE:
        raise Wrong(f"the command line must be one line of less than {MAX_CMDLINE} ASCII characters")
    return Kernel(path, image, version, cmdline, files)


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Wrong(f"cannot read {path}: {error.strerror}") from error


def version_of(path: Path, image: bytes) -> str:
    """The version that a bzImage's header tells; anything else is no kernel for an enclave."""
    if image.startswith(b"\x7fELF"):
        raise Wrong(f"{path} is an ELF vmlinux: give the bzImage, arch/x86/boot/bzImage or /boot/vmlinuz-*")
    good = all(image[at : at + len(value)] == value for at, value in (BOOT_FLAG, BOOT_MAGIC))
    if not good or len(image) < 0x1000 or not image[LOADED_HIGH] & 1:
        raise Wrong(f"{path} is no bzImage: give arch/x86/boot/bzImage or /boot/vmlinuz-* of an x86_64 kernel")
    at = struct.unpack_from("<H", image, VERSION_POINTER)[0] + 0x200
    words = image[at : at + 256].split(b"\0")[0].decode("ascii", "replace").split()
    return words[0] if words else "Unknown"


def module_files(folder: Path) -> list[Path]:
    """The modules in `folder`, in the order of its file `order` or, if it is the only one, alone."""
    if not folder.is_dir():
        raise Wrong(f"--modules {folder} is no folder")
    order = folder / "order"
    if order.is_file():
        names = order.read_text().split()
    else:
        names = sorted(file.name for file in folder.glob("*.ko"))
        if len(names) > 1:
            raise Wrong(f"{folder} has several modules: write their file names into {order}, one a line, in the order to load them")
    for name in names:
        if "/" in name or not name.endswith(".ko"):
            raise Wrong(f"{order}: {name} is no file name of a decompressed module (NAME.ko)")
        if not (folder / name).is_file():
            raise Wrong(f"{order} names {name}, which is not in {folder}")
        if not read(folder / name).startswith(b"\x7fELF"):
            raise Wrong(f"{folder / name} is no module, or compressed: decompress it")
    return [folder / name for name in names]


def check_config(config: Path, modules: list[Path]) -> None:
    """Whether a kernel of this configuration can carry the network."""
    options = dict(re.findall(r"^(CONFIG_\w+)=(.*)$", read(config).decode("utf-8", "replace"), re.MULTILINE))
    present = {module.name.removesuffix(".ko").replace("-", "_") for module in modules}
    for option, module in NEEDED.items():
        value = options.get(option)
        if value is None:
            raise Wrong(f"the kernel of {config} is without {option}: take one that has it")
        if value == "m" and (module is None or module not in present):
            raise Wrong(f"the kernel of {config} has {option} as a module: add {module}.ko with --modules")
