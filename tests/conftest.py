import os
import signal
from pathlib import Path

os.environ.pop("COLUMNS", None)  # a runner of tests may set it, and then output is cut to it
os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the command sets it; read when torch is loaded

import pytest
import torch

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's background job hands this on to what tests interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent


def pytest_addoption(parser):
    parser.addoption("--update-gold", action="store_true", help="rewrite tests/gold from what the code prints now")
    parser.addoption(
        "--pictures", metavar="DIR", help="folder for the pictures that test_pictures.py takes of the pages"
    )


@pytest.fixture(autouse=True)
def _one_thread_and_one_seed():
    """Small tensors on a busy machine: more threads only wait for each other. And the same numbers in any order."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(params=["float32", "bfloat16"])
def precision(request, monkeypatch):
    """Of the copy that attacks run on, whatever this processor has."""
    monkeypatch.setenv("LSA_COPY_PRECISION", request.param)
    return request.param


@pytest.fixture(scope="session")
def samples():
    return ROOT / "sample_models"


@pytest.fixture(scope="session")
def data_root():
    folder = os.environ.get("LSA_DATA_ROOT")
    if not folder:
        pytest.skip("LSA_DATA_ROOT is not set: no foreign data and checkpoints")
    return Path(folder)
