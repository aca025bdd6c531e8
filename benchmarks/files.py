"""What reading files costs: `lsa inspect` of 10 GB, and a checkpoint of 400 MB loaded into its network.

    python -m benchmarks.files [--rounds 5] [inspect loading]

Each run is a process of its own, with its own peak memory (VmHWM of /proc/self/status, so Linux only). The large files
are sparse: 10 GB that are a hole behind the headers.
"""

import argparse
import io
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
LARGE, TENSORS = 10 * 10**9, 5000
WIDTH, LAYERS = 2000, 25  # 400 MB of float32
MEMORY = """
import pathlib, sys
def memory(what):
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) / 1024 for line in status if line.startswith(what))
"""
INSPECT = "from lsa_cli.__main__ import app\ntry: app(sys.argv[1:])\nexcept SystemExit: print(memory('VmHWM:'), file=sys.stderr)"
LOAD = """
from lsa_cli.models.checkpoint import read_checkpoint
from lsa_cli.models.loading import load_network
import torch
before = memory("VmRSS:")
loaded = load_network(read_checkpoint(sys.argv[1]), sys.argv[2], {})
network = sum(p.numel() * p.element_size() for p in loaded.body.parameters()) / 2**20
print(memory("VmHWM:") - before - network, file=sys.stderr)
"""
FACTORY = f"""
from torch import nn
def build():
    return nn.Sequential(*(nn.Linear({WIDTH}, {WIDTH}, bias=False) for _ in range({LAYERS})))
"""


def in_child(code, *arguments):
    """Seconds of the whole process, and the number that it printed last on stderr."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", MEMORY + code, *map(str, arguments)],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return time.perf_counter() - started, float(done.stderr.splitlines()[-1])


def large_safetensors(path):
    size = LARGE // TENSORS
    header = {
        f"layer{n}.weight": {"dtype": "F32", "shape": [size // 4], "data_offsets": [n * size, (n + 1) * size]}
        for n in range(TENSORS)
    }
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + LARGE)


def large_zip(path):
    """torch.save's file of one tensor of three numbers, made to say, and to have room for, 2.5 billion."""
    import torch

    saved = io.BytesIO()
    torch.save({"weight": torch.zeros(3)}, saved)
    with zipfile.ZipFile(saved) as archive:
        content = archive.read("archive/data.pkl")
    count = b"\x8a\x08" + struct.pack("<q", LARGE // 4)
    content = content.replace(b"K\x03tq", count + b"tq", 1).replace(b"K\x03\x85", count + b"\x85", 1)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("large/data.pkl", content)
        entry = zipfile.ZipInfo("large/data/0")
        entry.CRC, entry.file_size, entry.compress_size = 0, LARGE, LARGE
        entry.header_offset = archive.fp.tell()
        archive.fp.write(entry.FileHeader(zip64=True))
        archive.fp.seek(LARGE, os.SEEK_CUR)
        archive.filelist.append(entry)
        archive.start_dir = archive.fp.tell()


def resnet(path):
    import torch
    from torchvision.models import resnet18

    torch.save(resnet18().state_dict(), path)


def inspect(folder, rounds):
    files = {"a 10 GB zip": large_zip, f"10 GB safetensors, {TENSORS} tensors": large_safetensors, "ResNet-18": resnet}
    for name, write in files.items():
        path = folder / "file"
        write(path)
        seconds, peaks = zip(*(in_child(INSPECT, "inspect", path) for _ in range(rounds)), strict=True)
        hashed = "" if path.stat().st_size > LARGE else ", with its SHA-256"
        print(f"lsa inspect of {name}{hashed}: {statistics.median(seconds):.2f} s, peak {max(peaks):.0f} MB")
        path.unlink()


def loading(folder, rounds):
    import torch
    from safetensors.torch import save_file

    (folder / "network.py").write_text(FACTORY)
    state = {f"{n}.weight": torch.zeros(WIDTH, WIDTH) for n in range(LAYERS)}
    writers = {
        "zip": torch.save,
        "format before 1.6": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
        "safetensors": save_file,
    }
    for name, write in writers.items():
        path = folder / "weights"
        write(state, path)
        beside = [in_child(LOAD, path, f"{folder / 'network.py'}:build")[1] for _ in range(rounds)]
        size = path.stat().st_size / 2**20
        print(
            f"loading {size:.0f} MiB, {name}: peak {max(beside):.0f} MiB beside the network, {max(beside) / size:.2f} times the file"
        )
        path.unlink()


PARTS = {"inspect": inspect, "loading": loading}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"there are {', '.join(PARTS)}, not {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as folder:
        for part in arguments.parts or PARTS:
            PARTS[part](Path(folder), arguments.rounds)


if __name__ == "__main__":
    main()
