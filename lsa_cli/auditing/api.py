"""`lsa_cli.audit`: what `lsa audit` does, from Python."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import nn

from lsa_cli.auditing.early import decide_early
from lsa_cli.auditing.names import refuse_unknown_in_file
from lsa_cli.auditing.plan import make_plan
from lsa_cli.auditing.progress import in_python
from lsa_cli.auditing.run import Progress, run_audit
from lsa_cli.config import read_config
from lsa_cli.errors import UsageError
from lsa_cli.imports import load_python_file
from lsa_cli.report.outputs import Outputs
from lsa_cli.report.schema import AuditReport
from lsa_cli.settings import IN_PYTHON, merge, settings_from
from lsa_cli.settings.in_python import names_of_python

if TYPE_CHECKING:
    from lsa_cli.settings.keywords import AuditKeywords


@names_of_python()
@torch.inference_mode(False)  # attacks need gradients, wherever the caller is
def audit(
    target: str | Path | nn.Module,
    *,
    data: Any = None,
    config: str | Path | None = None,
    progress: bool | Progress | None = None,
    **options: "Unpack[AuditKeywords]",
) -> AuditReport:
    """Audit a checkpoint file, or a network in memory, and return the report.

    target: path of a checkpoint, or a torch.nn.Module (unchanged afterwards: mode, parameters, buffers, hooks).
    data: a spec as for --data, (x, y) arrays with images in [0, 1] or uint8, or a data set of (input, label).
    config: a lsa.yaml to read. progress: whether a bar is shown; by default in notebooks alone. A function is called with
    what runs, the work done and the work in all.
    options: the options of `lsa audit` with underscores: attack=["pgd:steps=40"], eps="8/255", n="all", quick=True,
    fail_under={"robust": 0.4}, html="report.html", ... (docs/reference.md). A file that is named is written.

    Raises an LsaError that says what is wrong. A limit that does not hold raises nothing; see report.gates.
    """
    plugins = options.get("plugin") or []
    for plugin in [plugins] if isinstance(plugins, str) else plugins:
        load_python_file(plugin, "plugin")  # before the other options, because it may bring a format
    layers = [("option", settings_from(options, IN_PYTHON))]
    if config is not None:
        layers.append((str(config), read_config(Path(config), check=refuse_unknown_in_file)))
    settings, origin = merge(*layers)
    outputs = Outputs(settings.files or {}, settings.csv, settings.samples)
    if "-" in outputs.files.values():
        raise UsageError("- stands for stdout on the command line only; give a file name")
    outputs.check([path for path in (target, config, settings.baseline) if isinstance(path, (str, Path))])
    plan = make_plan(target, settings, origin, data)
    with in_python(progress) as tell:
        if settings.gate_only:
            report = decide_early(plan, settings.alpha, progress=tell)
        else:
            report = run_audit(plan, progress=tell)
    outputs.write(report)
    return report
