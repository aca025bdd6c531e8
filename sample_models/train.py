"""Makes every file of this folder from scratch, with a stated seed.

    python sample_models/train.py data --mnist ROOT    # mnist.npz from the MNIST files in ROOT (torchvision layout), moons.npz
    python sample_models/train.py models               # the four networks, from those two files (about 40 minutes on 4 cores)

Which network is chosen never depends on test images: the last epoch is kept.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from lsa_cli.attacks import ATTACKS, make_threat
from lsa_cli.models.architectures import build_architecture
from lsa_cli.models.checkpoint import Description, write_checkpoint
from lsa_cli.models.classifier import PRESETS, Classifier

HERE = Path(__file__).parent
SEED = 313
TRAIN_IMAGES = 30_000
DIGITS = [str(digit) for digit in range(10)]


def make_moons(count, noise, generator):
    """Two interleaving half circles of radius 1 with normal noise; (count, 2) points and their class."""
    half = count // 2
    angle = np.linspace(0, np.pi, half)
    upper = np.stack([np.cos(angle), np.sin(angle)], 1)
    lower = np.stack([1 - np.cos(angle), 0.5 - np.sin(angle)], 1)
    points = np.concatenate([upper, lower]) + generator.normal(0, noise, (2 * half, 2))
    labels = np.repeat([0, 1], half)
    order = generator.permutation(2 * half)
    return points[order].astype(np.float32), labels[order].astype(np.uint8)


def make_data(root):
    from torchvision.datasets import MNIST

    train, test = MNIST(root, train=True), MNIST(root, train=False)
    np.savez_compressed(
        HERE / "mnist.npz",
        x_train=train.data[:TRAIN_IMAGES].numpy(),
        y_train=train.targets[:TRAIN_IMAGES].numpy().astype(np.uint8),
        x_test=test.data.numpy(),
        y_test=test.targets.numpy().astype(np.uint8),
        class_names=np.array(DIGITS),
    )
    x, y = make_moons(2000, 0.2, np.random.default_rng(SEED))
    np.savez_compressed(
        HERE / "moons.npz",
        x_train=x[:1600],
        y_train=y[:1600],
        x_test=x[1600:],
        y_test=y[1600:],
        class_names=np.array(["upper", "lower"]),
    )


def load(name, split):
    with np.load(HERE / name) as archive:
        x, y = archive[f"x_{split}"], archive[f"y_{split}"]
    x = torch.from_numpy(x.astype(np.float32) / 255).unsqueeze(1) if x.dtype == np.uint8 else torch.from_numpy(x)
    return x, torch.from_numpy(y.astype(np.int64))


def train(model, x, y, *, epochs, learning_rate, batch_size=128, attack=None):
    """Adam on a one-cycle schedule; with `attack(progress)`, on adversarial examples made in evaluation mode."""
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    steps = epochs * (len(x) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    generator = torch.Generator().manual_seed(SEED)
    done = 0
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        total = 0.0
        for start in range(0, len(x) - batch_size + 1, batch_size):
            rows = order[start : start + batch_size]
            inputs = x[rows]
            if attack is not None:
                inputs = attack(done / steps)(model, inputs, y[rows], index=rows, seed=SEED + epoch)
            model.train()
            loss = F.cross_entropy(model(inputs), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
            done += 1
        print(f"  epoch {epoch + 1}/{epochs}  loss {total / (len(x) // batch_size):.4f}", flush=True)
    return model.eval()


def accuracy(model, x, y, attack=None):
    right = 0
    for start in range(0, len(x), 500):
        inputs, labels = x[start : start + 500], y[start : start + 500]
        if attack is not None:
            inputs = attack(model, inputs, labels, index=torch.arange(start, start + len(labels)))
        with torch.no_grad():
            right += int((model(inputs).argmax(1) == labels).sum())
    return right / len(x)


def rising(eps, steps):
    """PGD whose eps grows to its full size over the first 30% of training: without, it may not start to learn."""

    def attack(progress):
        threat = make_threat("linf", eps * min(1.0, 0.1 + progress / 0.3))
        return ATTACKS.get("pgd")(threat=threat, steps=steps)

    return attack


def mnist_model(name, attack, epochs, history):
    torch.manual_seed(SEED)
    x, y = load("mnist.npz", "train")
    x_test, y_test = load("mnist.npz", "test")
    body = build_architecture("lsa:mnist-cnn", {})
    model = Classifier(body, PRESETS["mnist"])
    train(model, x, y, epochs=epochs, learning_rate=2e-3, attack=attack)
    clean = accuracy(model, x_test, y_test)
    pgd = ATTACKS.get("pgd")(threat=make_threat("linf", 0.3), steps=40, step_size=0.01)
    robust = accuracy(model, x_test[:1000], y_test[:1000], pgd)
    print(f"{name}: clean {clean:.4f} on 10,000 test images, PGD-40 at 0.3 {robust:.3f} on the first 1,000")
    mean, std = PRESETS["mnist"]
    write_checkpoint(
        HERE / name,
        body,
        Description(
            architecture="lsa:mnist-cnn", mean=list(mean), std=list(std), input_shape=[1, 28, 28],
            class_names=DIGITS, data="npz:mnist.npz?split=test", data_name="mnist", norm="linf", eps=0.3,
            clean_accuracy=clean, history=[{**history, "seed": SEED, "epochs": epochs, "train_images": len(x)}],
        ),
    )  # fmt: skip


def moon_model():
    torch.manual_seed(SEED)
    x, y = load("moons.npz", "train")
    x_test, y_test = load("moons.npz", "test")
    body = build_architecture("lsa:moon-mlp", {})
    model = Classifier(body)
    train(model, x, y, epochs=100, learning_rate=1e-3)
    clean = accuracy(model, x_test, y_test)
    print(f"moon_mlp.pt: clean {clean:.4f} on {len(x_test)} test points")
    write_checkpoint(
        HERE / "moon_mlp.pt",
        body,
        Description(
            architecture="lsa:moon-mlp", input_shape=[2], input_range=None, class_names=["upper", "lower"],
            data="npz:moons.npz?split=test", data_name="moons", norm="linf", eps=0.3, clean_accuracy=clean,
            history=[{"method": "standard", "seed": SEED, "epochs": 100, "train_images": len(x)}],
        ),
    )  # fmt: skip


def custom_model():
    spec = importlib.util.spec_from_file_location("custom_model", HERE / "custom_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(SEED)
    x, y = load("mnist.npz", "train")
    x_test, y_test = load("mnist.npz", "test")
    body = module.build()
    model = Classifier(body, PRESETS["mnist"])
    train(model, x, y, epochs=6, learning_rate=3e-3)
    print(f"custom_cnn.pth: clean {accuracy(model, x_test, y_test):.4f} on 10,000 test images")
    torch.save(body.state_dict(), HERE / "custom_cnn.pth")


MODELS = {
    "moon_mlp": moon_model,
    "custom_cnn": custom_model,
    "mnist_cnn": lambda: mnist_model("mnist_cnn.pt", None, 8, {"method": "standard"}),
    "mnist_cnn_at": lambda: mnist_model(
        "mnist_cnn_at.pt", rising(0.3, 10), 15,
        {"method": "adversarial training", "attack": "pgd", "norm": "linf", "eps": 0.3, "steps": 10},
    ),
}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["data", "models", *MODELS])
    parser.add_argument("--mnist", metavar="ROOT", help="folder that holds MNIST/raw")
    parser.add_argument("--threads", type=int, default=4, help="results can differ in the last digits with it")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.what == "data":
        if arguments.mnist is None:
            sys.exit("data needs --mnist ROOT")
        make_data(arguments.mnist)
    else:
        for name, make in MODELS.items():
            if arguments.what in ("models", name):
                make()


if __name__ == "__main__":
    main()
