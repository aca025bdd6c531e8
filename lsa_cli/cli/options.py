"""Options that several commands share, with the help that users read. Nothing heavy is imported here."""

from typing import Annotated

import typer

Checkpoint = Annotated[str, typer.Argument(help="The model file, or a folder that holds one.", show_default=False)]
Arch = Annotated[
    str | None,
    typer.Option(
        help="The network: torchvision:NAME, timm:NAME, pkg.mod:factory or path/to/file.py:factory. A Python factory is "
        "your own code and is run. Default: the file's own, or the known network that its weights fit.",
        rich_help_panel="Model",
    ),
]
ArchArgs = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="An argument of the architecture; repeatable.", rich_help_panel="Model"),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="PLACE",
        help="Which of several sets of weights in the file, such as model_ema; see `lsa inspect`.",
        rich_help_panel="Model",
    ),
]
TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code",
        help="Run the code in the checkpoint: unpickle it whole, or run its program. Only for files whose makers you trust.",
        rich_help_panel="Model",
    ),
]
InputRange = Annotated[
    str | None,
    typer.Option(
        metavar="LOW,HIGH",
        help="What the network takes for black and white: 0,255 or -1,1 (default 0,1, before --normalize).",
        rich_help_panel="Model",
    ),
]
InputSize = Annotated[
    str | None,
    typer.Option(
        metavar="N|native",
        help="Resize and crop images to N x N, or leave them. Default: as the checkpoint or torchvision's own weights "
        "say.",
        rich_help_panel="Data",
    ),
]
MatchClasses = Annotated[
    str | None,
    typer.Option(
        metavar="name|number",
        help="How labels find the network's outputs: by class name (default), or label k is output k.",
        rich_help_panel="Data",
    ),
]
Normalize = Annotated[
    str | None,
    typer.Option(
        metavar="PRESET|MEAN/STD",
        help="mnist, fashion-mnist, cifar10, imagenet, none, or MEAN/STD such as 0.5,0.5,0.5/0.25,0.25,0.25. It becomes part of the "
        "model; attacks and eps speak \\[0, 1] images.",
        rich_help_panel="Model",
    ),
]
Returns = Annotated[
    str | None,
    typer.Option(
        metavar="logits|probabilities",
        help="What the network returns; of probabilities the logarithm is attacked.",
        rich_help_panel="Model",
    ),
]
OutputIndex = Annotated[
    str | None,
    typer.Option(
        metavar="N|NAME",
        help="Which of several outputs of the network holds the logits. Default: the one with a number for each class that "
        "agrees with the labels.",
        rich_help_panel="Model",
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE:LOCATION",
        help="imagefolder:DIR, csv:FILE, npz:FILE, torchvision:NAME?root=DIR, hf:FOLDER_OR_NAME, webdataset:x-{000..003}.tar, "
        "cifar-c:DIR?corruption=fog&severity=3, or pkg.mod:factory (your own code, which is run); ?mode=rgb|gray converts.",
        rich_help_panel="Data",
    ),
]
Split = Annotated[str | None, typer.Option(help="Which part of the data: test, train, val.", rich_help_panel="Data")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:1.", rich_help_panel="Run")]
Threads = Annotated[
    int | None,
    typer.Option(
        help="CPU threads of each process; default: the cores it may use, less those that other processes keep busy.",
        rich_help_panel="Run",
    ),
]
Nproc = Annotated[
    str | None,
    typer.Option(
        metavar="N|auto",
        help="Processes on this machine that share the work; auto: one a CUDA device, or a core (at most 8). For several "
        "machines: torchrun.",
        rich_help_panel="Run",
    ),
]
Plugin = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE.py",
        help="A Python file that registers attacks, noises, measures, layer selectors or data sources; your own code, which is run. "
        "Repeatable.",
        rich_help_panel="Run",
    ),
]
Config = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Settings; default: lsa.yaml beside the checkpoint, else in this folder.",
        rich_help_panel="Run",
    ),
]
Norm = Annotated[str | None, typer.Option(help="linf, l2 or l1.", rich_help_panel="Attack")]
Eps = Annotated[
    str | None,
    typer.Option(
        help="Radius in \\[0, 1] units, such as 8/255. Default: the data set's usual one.", rich_help_panel="Attack"
    ),
]
FailUnder = Annotated[
    list[str] | None,
    typer.Option(
        metavar="METRIC=VALUE",
        help="Exit 1 unless it holds: robust=0.40, robust.pgd=, clean=, class.min=, class.NAME=; and at most: layer.max-error=, "
        "layer.NAME=, class.discrepancy=, mvl.LAYER=, seconds=; see `lsa list metrics`. Repeatable.",
        rich_help_panel="Gate",
    ),
]
FailOn = Annotated[
    str | None,
    typer.Option(
        metavar="doubtful|invalid", help="Exit 1 when the evidence for the verdict is.", rich_help_panel="Gate"
    ),
]
ExitZero = Annotated[
    bool,
    typer.Option(
        "--exit-zero", help="Exit 0 even if a limit does not hold; errors stay errors.", rich_help_panel="Gate"
    ),
]
CsvFolder = Annotated[
    str | None,
    typer.Option("--csv", metavar="DIR", help="Tidy tables, one file each.", rich_help_panel="Output"),
]
SamplesFile = Annotated[
    str | None,
    typer.Option(
        "--samples",
        metavar="FILE.csv|.parquet",
        help="One row a sample: what broke it, at which look, margin, distance.",
        rich_help_panel="Output",
    ),
]


def names_in(entries: list[str] | None) -> list[str] | None:
    """Of a repeatable option: "a,b" "c" are three names; without any, the one empty name, which is refused."""
    if entries is None:
        return None
    return [name.strip() for entry in entries for name in entry.split(",") if name.strip()] or [""]


Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="The result in one line, and whether the limits hold.", rich_help_panel="Output"
    ),
]
