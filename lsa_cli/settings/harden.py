"""Every setting of a hardening, once. The order here is the order in `lsa harden --help`."""

# ruff: noqa: RUF009  a call declares a field

from dataclasses import dataclass
from typing import Literal

from lsa_cli.settings.declare import Settings, flag, panel
from lsa_cli.settings.values import Count, Duration, Names, NotNegative, NumberText, Positive, Share

# Each declares a setting in its panel of --help.
_METHOD, _ATTACK, _RECIPE, _OUTPUT = map(panel, ("Method", "Training attack", "Recipe", "Output"))


@dataclass(frozen=True, kw_only=True)
class HardenSettings(Settings):
    """The settings of a hardening beside those of an audit: the section `harden` of lsa.yaml."""

    # ---- Method
    method: str | None = _METHOD(
        "at: adversarial training; at-lr: with the layer-wise regularizer; see `lsa list methods`. Default: at, or at-lr where an "
        "option of the regularizer is given, such as --layers, --hold or --gamma.",
        metavar="NAME[:KEY=VALUE,...]",
    )
    base: str | None = _METHOD(
        "Base objective: fgsm, pgd, apgd, fast, n-fgsm, free, trades, mart or apart.", metavar="NAME", default="pgd"
    )
    mvl: str | None = _METHOD("Regularize the most vulnerable layers of this saved report.", metavar="AUDIT.json")
    layers: Names | None = _METHOD(
        "Regularize these layers: names or globs, separated by commas, see `lsa layers`. Repeatable.",
        metavar="NAME,...",
    )
    hold: Literal["first", "last", "mvl"] | None = _METHOD(
        "Which layers are regularized where none is named: the first hidden layer that training moves, the last one, or the "
        "most vulnerable layers of a layer scan.",
        default="first",
    )
    top_k: Count | None = _METHOD("Regularize the K most vulnerable layers of a layer scan.")
    gamma: NumberText | None = _METHOD(
        "Weight of the regularizer, for all layers or for each one.", metavar="G|LAYER=G,..."
    )
    detach_clean: bool | None = _METHOD("Treat the clean branch of the regularizer as a constant.")
    freeze: Names | None = _METHOD("Parameters or modules that are not trained. Repeatable.", metavar="GLOB,...")
    train_only: Literal["flagged", "all"] | None = _METHOD(
        "flagged: train the weights of the regularized layers only.", default="all"
    )

    # ---- Training attack
    train_eps: Positive | None = _ATTACK(
        "Radius of the training attack; the audits keep --eps. Default: eps, or 1.1 eps for grey images under linf with base pgd.",
        metavar="EPS",
    )
    steps: Count | None = _ATTACK("Number of steps of the training attack.", default="5 for grey images, otherwise 10")
    step_size: Positive | None = _ATTACK("Length of a step.", default="2.5 eps / steps")
    attack_mode: Literal["eval", "train"] | None = _ATTACK("Mode of the network while it is attacked.", default="eval")

    # ---- Recipe
    epochs: Count | None = _RECIPE(
        "Number of passes over the training data.",
        default="42 for grey images, 10 for colour images and with rift, otherwise 30",
    )
    budget: Duration | None = _RECIPE(
        "Time for the training, such as 90s or 5m: as many epochs as a trial of some updates says fit into it.",
        metavar="TIME",
    )
    lr: Positive | None = _RECIPE(
        "Largest learning rate.",
        default="0.002 for grey images (0.004 with base pgd and fewer than 4,000 updates), 0.02 for colour images, otherwise and with "
        "rift 0.001",
    )
    optimizer: Literal["adam", "adamw", "sgd"] | None = _RECIPE(
        "Optimizer.", default="sgd for colour images and with rift, otherwise adam"
    )
    weight_decay: NotNegative | None = _RECIPE(
        "Weight decay.", default="0.0005 for colour images and with rift, otherwise 0"
    )
    schedule: Literal["one-cycle", "cosine", "constant", "ours", "official"] | None = _RECIPE(
        "Schedule of the learning rate: one-cycle, cosine or constant. For the method anp: ours or official. "
        "Default: cosine for colour images and with rift, otherwise one-cycle.",
        metavar="NAME",
    )
    batch_size: Count | None = _RECIPE("Training batch size.", default="128")
    val_fraction: Share | None = _RECIPE(
        "Share of the training data that is held out to choose the best epoch. Default: 0.1, at most 1000 samples."
    )
    warmup: Share | None = _RECIPE("Share of the training in which eps and gamma rise.", default="0.3, with rift 0")
    average: Literal["none", "ema", "swa"] | None = _RECIPE(
        "Average of the weights that is saved. Default: ema for grey images, otherwise none.",
        options=(
            flag("ema", "Save an exponential moving average of the weights."),
            flag("swa", "Save the mean of the weights of the second half."),
            flag("no-ema", "Save the trained weights, also where their average is the default.", "none"),
        ),
    )
    awp: NotNegative | None = _RECIPE(
        "Size of adversarial weight perturbation, such as 0.005.", metavar="SIZE", default="0, which is none"
    )
    clip: NotNegative | None = _RECIPE("Largest norm of the gradient.", default="0, which is no limit")
    label_smoothing: Share | None = _RECIPE("Label smoothing of the loss.", default="0")
    augment: Literal["none", "shift", "crop-flip"] | None = _RECIPE(
        "Augmentation of training images.", default="shift for grey images, crop-flip for colour images, otherwise none"
    )
    amp: bool | None = _RECIPE(
        "Train in bfloat16 where autocast supports it. By default on a device that multiplies in bfloat16, if the network has "
        "convolutions.",
        off="no-amp",
    )

    # ---- Output
    out: str | None = _OUTPUT(
        "The hardened checkpoint. Default: NAME.hard.pt in the working directory.",
        short="o",
        metavar="FILE",
        scope="once",
    )
    html: str | None = _OUTPUT("One page with plots, before and after.", metavar="FILE", scope="written")
