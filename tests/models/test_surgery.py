"""Surgery that a checkpoint names: done before its weights are put in, and refused in one sentence where it cannot be."""

import pytest
import torch

from lsa_cli.auditing.network import open_network
from lsa_cli.config import settings_from
from lsa_cli.errors import CheckpointError
from lsa_cli.models.architectures import build_architecture
from lsa_cli.models.checkpoint import Description, write_checkpoint
from lsa_cli.models.surgery import operate


def written(folder, samples, surgery, body=None):
    torch.manual_seed(0)
    body = body or operate(build_architecture("lsa:moon-mlp", {}), surgery)
    description = Description(
        architecture="lsa:moon-mlp", input_shape=[2], input_range=None, class_names=["upper", "lower"],
        data=f"npz:{samples / 'moons.npz'}?split=test", norm="linf", eps=0.3, surgery=surgery,
    )  # fmt: skip
    write_checkpoint(folder / "cut.pt", body, description)
    return folder / "cut.pt", body


def test_an_offset_is_added_behind_the_network(tmp_path, samples):
    body = operate(build_architecture("lsa:moon-mlp", {}), [{"kind": "logit-offset", "classes": 2}])
    with torch.no_grad():
        body.offset.copy_(torch.tensor([0.0, 5.0]))
    path, _ = written(tmp_path, samples, [{"kind": "logit-offset", "classes": 2}], body)
    network = open_network(path, settings_from({}), {})
    x = torch.rand(4, 2)
    plain = torch.nn.functional.pad(body.network(x), (1, 0))  # one output is the logits (0, z)
    assert network.classifier(x).shape == plain.shape


@pytest.mark.parametrize(
    ("surgery", "says"),
    [
        ([{"kind": "lobotomy"}], "unknown surgery 'lobotomy'"),
        ([{"kind": "logit-offset"}], "does not fit the network"),
        ([{"kind": "logit-offset", "classes": -1}], "does not fit the network"),
        ([{"classes": 2}], "unknown surgery"),
        ([{"kind": "logit-offset", "classes": 10**12}], "offset"),
    ],
)
def test_surgery_that_cannot_be_done_is_refused(tmp_path, samples, surgery, says):
    path, _ = written(tmp_path, samples, surgery, build_architecture("lsa:moon-mlp", {}))
    with pytest.raises(CheckpointError, match=says):
        open_network(path, settings_from({}), {})
