"""`lsa_cli.harden`: what `lsa harden` does, from Python."""

from pathlib import Path
from typing import Any

import torch

from lsa_cli.auditing.names import refuse_unknown_in_file
from lsa_cli.auditing.progress import in_python
from lsa_cli.config import read_config
from lsa_cli.hardening.files import inputs_of, refuse_outputs
from lsa_cli.hardening.plan import make_harden_plan
from lsa_cli.hardening.run import Hardened, run_harden
from lsa_cli.hardening.trainer import Progress
from lsa_cli.hardening.unused import tell_unused
from lsa_cli.settings import IN_PYTHON, HardenSettings, merge, settings_from
from lsa_cli.settings.declare import keys_of, read_settings
from lsa_cli.settings.in_python import names_of_python


@names_of_python()
@torch.inference_mode(False)  # training needs gradients, wherever the caller is
def harden(
    checkpoint: str | Path,
    out: str | Path,
    *,
    config: str | Path | None = None,
    progress: bool | Progress | None = None,
    resume: bool = False,
    **options: Any,
) -> Hardened:
    """Harden a checkpoint file, write the result to `out`, and return the audits before and after.

    config: a lsa.yaml to read. progress: as for `lsa_cli.audit`. resume: go on with an interrupted run. options: the options of `lsa harden` with underscores: method="at-lr", epochs=5, html="page.html", ...
    (docs/reference.md).

    Raises an LsaError that says what is wrong.
    """
    # layers, top_k, steps, step_size and batch_size have two meanings: training's is meant here.
    named = {name: options.pop(name) for name in list(options) if name in keys_of(HardenSettings)}
    own = read_settings(HardenSettings, named, scopes=IN_PYTHON)
    layers = [("option", settings_from({**options, "harden": own}, ("measured",)))]
    if config is not None:
        layers.append((str(config), read_config(Path(config), check=refuse_unknown_in_file)))
    settings, origin = merge(*layers)
    tell_unused(settings, origin)
    html = settings.harden.html if settings.harden is not None else None
    refuse_outputs(Path(out), inputs_of(checkpoint, config, settings), html)
    plan = make_harden_plan(checkpoint, settings, origin)
    with in_python(progress) as tell:
        hardened = run_harden(plan, Path(out), resume=resume, progress=tell)
    if html is not None:
        hardened.write_page(html)
    return hardened
