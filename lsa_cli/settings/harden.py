"""Every setting of a hardening, once. The order here is the order in `lsa harden --help`."""

from dataclasses import dataclass
from typing import Literal

from lsa_cli.settings.declare import Settings, flag, setting
from lsa_cli.settings.values import Count, Names, NotNegative, NumberText, Positive, Share

_METHOD, _ATTACK, _RECIPE, _OUTPUT = "Method", "Training attack", "Recipe", "Output"


@dataclass(frozen=True, kw_only=True)
class HardenSettings(Settings):
    """What a user can say about a hardening, beside what an audit takes. It is the section `harden` of lsa.yaml."""

    # ---- Method
    method: str | None = setting(
        _METHOD,
        "at-lr: adversarial training with the layer-wise regularizer; at: adversarial training alone; see `lsa list methods`.",
        metavar="NAME[:KEY=VALUE,...]",
        default="at-lr",
    )
    base: str | None = setting(
        _METHOD, "Base objective: fgsm, pgd, apgd, fast, free, trades, mart or apart.", default="pgd"
    )
    mvl: str | None = setting(
        _METHOD, "Regularize the most vulnerable layers of this saved report.", metavar="AUDIT.json"
    )
    layers: Names | None = setting(
        _METHOD,
        "Regularize these layers: names or globs, separated by commas, see `lsa layers`. Repeatable.",
        metavar="NAME,...",
    )
    hold: Literal["first", "last", "mvl"] | None = setting(
        _METHOD,
        "Which layers are regularized where none is named: the first hidden layer that training moves, the last one, or the "
        "most vulnerable layers of a layer scan.",
        default="first",
    )
    top_k: Count | None = setting(_METHOD, "Regularize the K most vulnerable layers of a layer scan.")
    gamma: NumberText | None = setting(
        _METHOD, "Weight of the regularizer, for all layers or for each one.", metavar="G|LAYER=G,..."
    )
    detach_clean: bool | None = setting(_METHOD, "Treat the clean branch of the regularizer as a constant.")
    freeze: Names | None = setting(
        _METHOD, "Parameters or modules that are not trained. Repeatable.", metavar="GLOB,..."
    )
    train_only: Literal["flagged", "all"] | None = setting(
        _METHOD, "flagged: train the weights of the regularized layers only.", default="all"
    )

    # ---- Training attack
    steps: Count | None = setting(_ATTACK, "Number of steps of the training attack.")
    step_size: Positive | None = setting(_ATTACK, "Length of a step.", default="2.5 eps / steps")
    attack_mode: Literal["eval", "train"] | None = setting(
        _ATTACK, "Mode of the network while it is attacked.", default="eval"
    )

    # ---- Recipe
    epochs: Count | None = setting(_RECIPE, "Number of passes over the training data.")
    lr: Positive | None = setting(_RECIPE, "Largest learning rate.")
    optimizer: Literal["adam", "adamw", "sgd"] | None = setting(_RECIPE, "Optimizer.")
    weight_decay: NotNegative | None = setting(_RECIPE, "Weight decay.")
    schedule: Literal["one-cycle", "cosine", "constant", "ours", "official"] | None = setting(
        _RECIPE, "Schedule of the learning rate: one-cycle, cosine or constant. Of the method anp: ours or official."
    )
    batch_size: Count | None = setting(_RECIPE, "Training batch size.")
    val_fraction: Share | None = setting(
        _RECIPE,
        "Share of the training data that is held out to choose the best epoch. Default: 0.1, at most 1000 samples.",
    )
    warmup: Share | None = setting(_RECIPE, "Share of the training in which eps and gamma rise.", default="0.3")
    average: Literal["none", "ema", "swa"] | None = setting(
        _RECIPE,
        "Average of the weights that is saved.",
        options=(
            flag("ema", "Save an exponential moving average of the weights."),
            flag("swa", "Save the mean of the weights of the second half."),
        ),
    )
    awp: NotNegative | None = setting(
        _RECIPE, "Size of adversarial weight perturbation, such as 0.005; 0 for none.", metavar="SIZE"
    )
    clip: NotNegative | None = setting(_RECIPE, "Largest norm of a gradient; 0 for no limit.")
    label_smoothing: Share | None = setting(_RECIPE, "Label smoothing of the loss.")
    augment: Literal["none", "crop-flip"] | None = setting(
        _RECIPE, "Augmentation of training images. Default: by the kind of images."
    )
    amp: bool | None = setting(_RECIPE, "Train in bfloat16 where autocast supports it.")

    # ---- Output
    out: str | None = setting(
        _OUTPUT,
        "The hardened checkpoint. Default: NAME.hard.pt in the working directory.",
        short="o",
        metavar="FILE",
        scope="once",
    )
    html: str | None = setting(_OUTPUT, "One page with plots, before and after.", metavar="FILE", scope="written")
