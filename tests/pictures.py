"""`python -m tests.pictures` takes the pictures of docs/images again, of audits of the sample models. It needs Chromium."""

import io
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.browser import started

ROOT = Path(__file__).parent.parent
_HEIGHT = 740


def main():
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name in ("mnist_cnn", "mnist_cnn_at"):
            lsa("audit", f"sample_models/{name}.pt", "--json", place / f"{name}.json", "--html", place / f"{name}.html")
        lsa("compare", place / "mnist_cnn.json", place / "mnist_cnn_at.json", "--html", place / "comparison.html")
        with started(place / "browser") as page:
            for source, target in (("mnist_cnn_at", "report"), ("comparison", "comparison")):
                page.show_as(width=1280)
                page.open(place / f"{source}.html")
                picture = Image.open(io.BytesIO(page.picture())).convert("RGB").crop((0, 0, 1280, _HEIGHT))
                picture.quantize(128).save(ROOT / "docs" / "images" / f"{target}.png", optimize=True)


def lsa(*words):
    subprocess.run([sys.executable, "-m", "lsa_cli", *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
