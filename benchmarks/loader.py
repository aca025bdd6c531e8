"""Whether reading images keeps up with a network: an ImageFolder at 224 x 224 against a ResNet-18 forward pass.

    python -m benchmarks.loader [--threads 1 2 4] [--batch 32]

200 JPEGs of about 500 x 375: the photographs of $LSA_DATA_ROOT/imagenet_sample in turn, or noise made smooth. The two
run in turn in one process, on the same number of cores; then together, as an audit runs them.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

COUNT = 200
ROUNDS = 3


def make_folder(root):
    """COUNT JPEGs in two classes under `root`; says what they are."""
    import numpy as np
    from PIL import Image

    photographs = sorted(Path(os.environ.get("LSA_DATA_ROOT", "none"), "imagenet_sample").glob("*/*.JPEG"))
    generator = np.random.default_rng(0)
    for number in range(COUNT):
        path = root / "ab"[number % 2] / f"{number:03}.jpg"
        path.parent.mkdir(exist_ok=True)
        if photographs:
            shutil.copyfile(photographs[number % len(photographs)], path)
        else:
            coarse = Image.fromarray(generator.integers(0, 256, (47, 63, 3), dtype=np.uint8))
            coarse.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
    return f"{len(photographs)} photographs" if photographs else "smooth noise"


def seconds(run):
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def measure(folder, network, threads, size):
    """Images a second of the loader, of the forward pass, and of both at once; medians of ROUNDS."""
    import numpy as np
    import torch

    from lsa_cli.data import open_data, prefetch, torchvision_size

    torch.set_num_threads(threads)
    policy = torchvision_size("resnet18", "resnet18-f37072fd.pth")
    data = open_data(f"imagefolder:{folder}", channels=3, size=policy, threads=threads)
    index, x = np.arange(COUNT), torch.rand(size, 3, 224, 224)

    def load():
        for start in range(0, COUNT, size):
            data.read(index[start : start + size])

    def forward():
        for start in range(0, COUNT, size):
            network(x[: min(size, COUNT - start)])

    def both():
        for _, read in prefetch(data, index, size):
            network(read)

    load(), forward()
    times = [[seconds(run) for run in (load, forward, both)] for _ in range(ROUNDS)]
    return [COUNT / statistics.median(column) for column in zip(*times, strict=True)]


def main():
    import torch
    from torchvision.models import resnet18

    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=list(range(1, cores + 1)))
    parser.add_argument("--batch", type=int, default=32)
    arguments = parser.parse_args()
    network = resnet18().eval()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        print(f"torch {torch.__version__}, {COUNT} JPEGs ({make_folder(Path(folder))}), batch {arguments.batch}")
        for threads in arguments.threads:
            load, forward, both = measure(folder, network, threads, arguments.batch)
            print(
                f"{threads} threads: loader {load:.0f} images/s, ResNet-18 forward {forward:.1f} images/s, ratio "
                f"{load / forward:.1f}; together {both:.1f} images/s"
            )


if __name__ == "__main__":
    main()
