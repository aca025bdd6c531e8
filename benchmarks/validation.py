"""What the validation after an epoch of `lsa harden` costs, as a share of the training in it, in processor time.

    python -m benchmarks.validation [--base fast] [--checkpoint sample_models/mnist_cnn_at.pt] [--updates 20]

The network should be a hardened one: on a weak one the validation ends sooner. The time of an epoch is that of some updates,
scaled to all.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from lsa_cli.attacks.gradient import FGSM, PGD
from lsa_cli.cli.memory import keep_freed_memory
from lsa_cli.hardening.files import Files
from lsa_cli.hardening.plan import make_harden_plan
from lsa_cli.hardening.run import job_of
from lsa_cli.hardening.trainer import VALIDATION_STEPS, Training
from lsa_cli.hardening.validation import diagnose
from lsa_cli.hardening.weights import training_mode
from lsa_cli.settings import IN_PYTHON, HardenSettings, settings_from
from lsa_cli.settings.declare import read_settings

WARM_UP = 2


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="pgd")
    parser.add_argument("--checkpoint", default=Path(__file__).parent.parent / "sample_models" / "mnist_cnn_at.pt")
    parser.add_argument("--updates", type=int, default=20)
    given = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    own = read_settings(HardenSettings, {"method": "at", "base": given.base}, scopes=IN_PYTHON)
    plan = make_harden_plan(given.checkpoint, settings_from({"threads": 1, "harden": own}), {})
    with tempfile.TemporaryDirectory() as folder:
        job = job_of(plan, plan.make_method(()), (), Files(Path(folder) / "trial.pt"), resume=False, say=print)
        training = Training(job, lambda *_: None, lambda *_: None)
        training_mode(training.model)
        for done, (batch, count) in enumerate(training.epoch_batches(0, 0)):
            if done == WARM_UP:
                started = time.process_time()
            if done == WARM_UP + given.updates:
                break
            training.update(batch, count)
        epoch = (time.process_time() - started) / given.updates * training.per_epoch
        training.model.load_state_dict(training.best)
        started = time.process_time()
        for attack in (PGD(threat=job.threat, steps=VALIDATION_STEPS), FGSM(threat=job.threat)):
            diagnose(job, attack)
        validation = time.process_time() - started
    print(
        f"{given.base}: training {epoch:.1f} s for {len(job.train)} images, validation {validation:.1f} s for "
        f"{len(job.validation)}: {validation / epoch:.2f} of it"
    )


if __name__ == "__main__":
    main()
