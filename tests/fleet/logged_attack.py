"""A plugin: an attack that takes long enough to be killed, and writes down what it met."""

import os
import time
from dataclasses import dataclass

from lsa_cli.attacks import ATTACKS, Attack, Threat


@ATTACKS.register("logged")
@dataclass(frozen=True)
class Logged(Attack):
    threat: Threat

    def perturb(self, model, x, y):
        time.sleep(0.02)
        with open(os.environ["MET"], "a") as file:
            file.write(f"{os.getppid()} {len(x)}\n")
        return self.threat.project(x + self.threat.eps, x)
