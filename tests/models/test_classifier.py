"""What a network returns, and the logits that everyone else sees."""

import pytest
import torch
from torch import nn

from lsa_cli.errors import CheckpointError, UsageError
from lsa_cli.models.classifier import Classifier, parse_normalize, predicted_class
from lsa_cli.models.outputs import find_logits

Z = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]])


class Body(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output


class Named:
    def __init__(self, logits):
        self.logits = logits


@pytest.mark.parametrize(
    "output",
    [
        Z,
        (Z, "extra"),
        [Z.double()],
        {"features": torch.zeros(2, 7), "logits": Z},
        {"out": Z, "aux": torch.zeros(2, 3)},
        {"anything": Z},
        (torch.zeros(2, 5, 4, 4), Z),
        Named(Z),
        Named((Z, None)),
        Z[:, :, None, None],
        Z.half(),
    ],
    ids=lambda output: type(output).__name__,
)
def test_logits_are_found_in_whatever_holds_them(output):
    logits = Classifier(Body(output))(torch.zeros(2, 1))
    assert logits.dtype == torch.float32
    assert torch.equal(logits, Z)


@pytest.mark.parametrize("output", [None, "text", {}, {"a": "b"}, (), (torch.arange(4),)], ids=str)
def test_an_output_without_scores_is_refused(output):
    with pytest.raises(CheckpointError, match="lsa finds no logits"):
        find_logits(output)


@pytest.mark.parametrize("output", [torch.zeros(2, 3, 4), torch.zeros(5, 3), torch.tensor(0.0), torch.zeros(3)])
def test_an_output_of_another_shape_is_refused(output):
    with pytest.raises(CheckpointError, match="a classifier returns \\(2, number of classes\\)"):
        Classifier(Body(output))(torch.zeros(2, 1))


@pytest.mark.parametrize("score", [torch.tensor([[-1.5], [2.0]]), torch.tensor([-1.5, 2.0])])
def test_one_score_is_a_binary_head_with_the_binary_cross_entropy(score):
    logits = Classifier(Body(score))(torch.zeros(2, 1))
    y = torch.tensor([1, 0])
    torch.testing.assert_close(
        nn.functional.cross_entropy(logits, y),
        nn.functional.binary_cross_entropy_with_logits(score.flatten(), y.float()),
    )
    assert logits.argmax(1).tolist() == [0, 1]


def test_probabilities_become_logits_of_the_same_softmax():
    logits = Classifier(Body(Z.softmax(1)), output="probabilities")(torch.zeros(2, 1))
    torch.testing.assert_close(logits.softmax(1), Z.softmax(1))
    single = Classifier(Body(torch.tensor([0.2, 0.9])), output="probabilities")(torch.zeros(2, 1))
    torch.testing.assert_close(single.softmax(1)[:, 1], torch.tensor([0.2, 0.9]))
    hard = Classifier(Body(torch.tensor([[1.0, 0.0], [0.0, 1.0]])), output="probabilities")(torch.zeros(2, 1))
    assert torch.isfinite(hard).all()


def test_normalisation_needs_one_number_a_channel_and_travels_with_no_weight():
    with pytest.raises(CheckpointError, match="2 channels and the images have 3"):
        Classifier(nn.Flatten(), ((0.5, 0.5), (0.5, 0.5)))(torch.zeros(2, 3, 4, 4))
    assert list(Classifier(nn.Linear(2, 2), ((0.5,), (0.5,))).state_dict()) == ["body.weight", "body.bias"]


@pytest.mark.parametrize("text", ["imagnet", "0.5", "0.5/0", "0.5,0.5/0.5", "a/b", "0.5/-1"])
def test_a_normalisation_that_cannot_be_meant_is_refused(text):
    with pytest.raises(UsageError, match="--normalize"):
        parse_normalize(text)


def test_an_unknown_kind_of_output_is_refused():
    with pytest.raises(UsageError, match="give logits or probabilities"):
        Classifier(nn.Flatten(), output="softmax")


def test_a_row_with_nan_has_no_class():
    rows = torch.tensor([[torch.nan, 1, 0], [0, torch.nan, 9], [-torch.inf, 2, 1], [torch.inf, 0, 0]])
    assert predicted_class(rows).tolist() == [-1, -1, 1, 0]
