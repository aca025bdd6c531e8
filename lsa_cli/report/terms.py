"""The terms of the pages and their meanings in one line. A page shows a meaning where its term stands: on hover, on focus, in print.

The glossary of the documentation has these meanings too, and a test compares them.
"""

import re

from markupsafe import Markup, escape

TERMS = {
    "adversarial example": "an input that differs from a clean one by at most eps and that the network classifies wrongly",
    "amplification": "a layer's mean error under attack over its mean error under random noise of the same size",
    "clean accuracy": "the share of samples that are classified correctly without any change",
    "eps": "the radius of the threat model, in units of images in [0, 1]; written as `8/255` or `0.03`",
    "EoT": "expectation over transformation: gradients averaged over several passes of a stochastic network",
    "eta": "the factor of the rule `mean - mu > eta * sigma`",
    "evidence": "the checks that ask if the numbers can be believed; verdict `trusted`, `quick look`, `doubtful` or `invalid`",
    "gain": "a layer's mean error over that of the layer before it",
    "interval": "a 95% confidence interval; of a share, Wilson's",
    "margin": "the logit of the true class minus the largest other logit; below zero the sample is misclassified",
    "MVL": "most vulnerable layers: those whose mean error exceeds `mu + eta * sigma`",
    "NSD": "normalised standard deviation of the class accuracies: sd / mean",
    "planted adversarial example": (
        "an input within the budget for which a new last layer is made that misclassifies it, to test an attack"
    ),
    "proven": "of a sample: classified correctly, with a proof; of a share: the samples that are proven, of all",
    "R&G": "robustness and generalization: the sum of the accuracies at several radii",
    "relative-error": "norm of the change of a layer's output over the norm of its clean output",
    "rank correlation": "Spearman's rank correlation: 1 if two lists have the same order, -1 if they have opposite orders",
    "robust accuracy": (
        "the share of **all** samples that are classified correctly, clean and under every budget attack; an upper bound"
    ),
    "stability": "the share of bootstrap resamples in which a layer is one of the MVL",
    "success": "of the samples that were classified correctly, the share that an attack turned",
    "upper bound": "robust accuracy found by attacks: a stronger attack can only lower it",
    "lower bound": "the proven share: no attack can find a lower robust accuracy",
    "worst case": "per sample, the result of the attack that did most harm",
    "linf": "norm of a perturbation: its largest change of any pixel and channel",
    "l2": "norm of a perturbation: the square root of the sum of its squared changes",
    "l1": "norm of a perturbation: the sum of its absolute changes",
    "mu": "the mean of the comparison measure over all layers, which the rule for the MVL compares with",
    "sigma": "the standard deviation of the comparison measure, which the rule for the MVL compares with",
    "McNemar": "a test of two models on the same samples: it counts those that only one of the two classifies correctly",
    "Holm": "a correction for several tests: the chance of any false alarm among all of them stays at 5%",
    "fgsm": "an attack of one step of length eps along the gradient (fast gradient sign method)",
    "pgd": "an attack of many steps along the gradient, projected into the budget (projected gradient descent)",
    "t-pgd": "PGD on logits that are divided by a temperature",
    "odi-pgd": "PGD from starts that differ in the outputs of the network",
    "apgd-ce": "PGD that adapts its step size, on the cross-entropy (Auto-PGD)",
    "apgd-dlr": "PGD that adapts its step size, on the difference of logits ratio, which has no scale (Auto-PGD)",
    "apgd-t": "PGD that adapts its step size, towards several wrong classes in turn (targeted Auto-PGD)",
    "fab": "an attack that searches for the smallest change, by projections onto the decision boundary",
    "fab-t": "FAB towards several wrong classes in turn",
    "square": "a random search that changes squares of the image; it needs no gradient",
    "square-pgd": "Square, and then PGD from its strongest input",
    "cw": "an attack that searches for the smallest change, by optimizing its size and the margin together (Carlini and Wagner)",
    "deepfool": "an attack that steps to the nearest boundary of the linearised network",
    "fmn": "an attack that searches for the smallest change, by gradient steps within a ball whose radius adapts (fast minimum norm)",
    "gaussian": "noise of a normal distribution on each pixel",
    "uniform": "noise of a uniform distribution on each pixel",
    "salt": "noise that makes random pixels white",
    "pepper": "noise that makes random pixels black",
    "speckle": "noise of a normal distribution, in proportion to each pixel",
}  # fmt: skip

_MEANINGS = {name.lower(): re.sub(r"[`*]{1,2}(?=\S)|(?<=\S)[`*]{1,2}", "", text) for name, text in TERMS.items()}
# In the text of HTML, where & is written &amp;. The longest term first; a name such as salt-2 or pgd.x is none,
# nor is the gain of an attack over another one.
_FOUND = re.compile(
    r"(?<![\w.&-])(?<!share of the )(?:"
    + "|".join(str(escape(t)) for t in sorted(_MEANINGS, key=len, reverse=True))
    + r")(?![\w-]|\.\w)",
    re.IGNORECASE,
)
_TAG = re.compile(r"(<[^>]*>)")
_NAME = re.compile(r"</?([a-z0-9]+)")
_VOID = {"meta", "link", "br", "img", "!doctype"}
# Not marked: code of the page, what is clicked, and names and prose from outside.
_UNMARKED = {"head", "script", "style", "svg", "h1", "nav", "a", "select", "figure", "code"}
_UNMARKED_CLASSES = re.compile(r'class="(?:[^"]* )?(?:break|foreign)(?:"| (?!known|long))|id="data"')


def meaning(term: str) -> str | None:
    """The meaning of a term in plain text, in any case of its letters; None for what is no term."""
    return _MEANINGS.get(term.lower())


def with_meanings(page: str) -> str:
    """The HTML with each term as an element `abbr` that has the meaning.

    page: well-formed, with every < and > of its text escaped. Names from outside stay as they are: a class may be called margin.
    """
    parts, depth, unmarked = [], 0, 0  # unmarked: the depth of the outermost element whose text stays as it is
    for part in _TAG.split(page):
        if not part.startswith("<"):
            parts.append(part if unmarked else _FOUND.sub(_mark, part))
            continue
        parts.append(part)
        found = _NAME.match(part)
        name = found[1] if found else ""
        if not name or name in _VOID or part.endswith("/>"):
            continue
        if part.startswith("</"):
            unmarked = 0 if unmarked == depth else unmarked
            depth -= 1
        else:
            depth += 1
            if not unmarked and (name in _UNMARKED or _UNMARKED_CLASSES.search(part)):
                unmarked = depth
    return "".join(parts)


def _mark(found: re.Match[str]) -> str:
    said = _MEANINGS[Markup(found[0]).unescape().lower()]
    return str(Markup('<abbr title="{}">{}</abbr>').format(said, Markup(found[0])))
