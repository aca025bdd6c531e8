"""Networks that hide nothing: their audits are not doubted."""

import torch
from torch import nn

from benchmarks.train_networks import cifar_resnet8, mnist_mlp
from lsa_cli.models.classifier import PRESETS
from tests.foreign_networks import Burn, LeNet5, ResNet2b, ResNet20, lightning, small_cnn
from tests.zoo import trained, unusual
from tests.zoo.base import Entry, custom, foreign, of_benchmarks, robust, weak
from tests.zoo.defective import RESNET2B
from tests.zoo.heads import Head

MNIST = (0.1307,), (0.3081,)
LENET = "advertorch/mnist_lenet5_{}trained.pt"


def in_bfloat16(net: nn.Module) -> nn.Module:
    """The weights hold bfloat16 numbers."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(parameter.bfloat16().float())
    return net


def fewer_bits(net: nn.Module) -> nn.Module:
    """The weights of each layer hold 255 different numbers."""
    with torch.no_grad():
        for parameter in net.parameters():
            step = parameter.abs().max() / 127
            parameter.copy_((parameter / step).round() * step)
    return net


def pruned(net: nn.Module) -> nn.Module:
    """Half of the weights are 0."""
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter[parameter.abs() < parameter.abs().median()] = 0
    return net


class Ensemble(nn.Module):
    """The mean of the log-probabilities of several networks."""

    def __init__(self, *nets: nn.Module) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([net(x).log_softmax(1) for net in self.nets]).mean(0)


class Blurred(nn.Module):
    """A network behind a fixed blur, through which gradients pass."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.blur = net, nn.AvgPool2d(3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(0.5 * x + 0.5 * self.blur(x))


def scaled(net: nn.Module, factor: float) -> nn.Module:
    return Head(net, lambda z: factor * z)


SAMPLE_NETWORKS = [
    Entry("plain CNN", weak, 0.1),
    Entry("plain CNN, small radius", weak, 0.03),
    Entry("plain CNN, large radius", weak, 0.2),
    Entry("plain CNN, l2", weak, 1.0, "l2"),
    Entry("plain CNN, l1", weak, 8.0, "l1"),
    Entry("plain residual network", custom, 0.05),
    Entry("adversarially trained CNN", robust, 0.3),
    Entry("adversarially trained CNN, l2", robust, 1.5, "l2"),
    Entry("adversarially trained perceptron", lambda: of_benchmarks(mnist_mlp), 0.1),
    Entry("adversarially trained ResNet", lambda: of_benchmarks(cifar_resnet8, *PRESETS["cifar10"]), 4 / 255, data="cifar"),
]  # fmt: skip

FOREIGN_NETWORKS = [
    Entry("FGSM-trained CNN", lambda: foreign(small_cnn, "fast_adversarial/fgsm.pth"), 0.3),
    Entry("LeNet", lambda: foreign(LeNet5, LENET.format("cln")), 0.1),
    Entry("adversarially trained LeNet", lambda: foreign(LeNet5, LENET.format("adv")), 0.3),
    Entry("adversarially trained LeNet, l2", lambda: foreign(LeNet5, LENET.format("adv")), 1.0, "l2"),
    Entry("provably robust CNN", lambda: foreign(small_cnn, "convex_adversarial/fashion_mnist.pth"), 0.1, data="fashion"),
    Entry("CNN with BatchNorm and log-softmax", lambda: foreign(Burn, "burn/mnist.safetensors", *MNIST), 0.05),
    Entry("CNN without biases", lambda: foreign(lightning, "Pytorch-Lightning-practice/epoch=4-step=4300.ckpt"), 0.05),
    Entry("ResNet-20", lambda: foreign(ResNet20, "pytorch_resnet_cifar10/resnet20-12fca82f.th", *PRESETS["imagenet"]), 0.5 / 255, data="cifar"),
    Entry("adversarially trained residual network", lambda: foreign(ResNet2b, "alpha-beta-CROWN/resnet2b.pth", *RESNET2B), 2 / 255, data="cifar"),
    Entry("half precision weights", lambda: foreign(small_cnn, "derived/fashion_mnist_fp16_model_prefix.safetensors"), 0.1, data="fashion"),
]  # fmt: skip

TRAINED_NETWORKS = [
    *(Entry(f"CNN with {name}", lambda name=name: trained.activated(name), 0.08) for name in ("ReLU", "Sigmoid", "Tanh", "ELU", "GELU", "Softplus", "LeakyReLU")),
    Entry("CNN with sines", lambda: trained.sines(1.0), 0.06),
    Entry("CNN with fast sines", lambda: trained.sines(3.0), 0.03),
    *(Entry(f"CNN with {name}, adversarially trained", lambda name=name: trained.activated(name, 0.1), 0.1) for name in ("ReLU", "SiLU")),
    *(Entry(f"CNN with {name} normalisation", lambda name=name: trained.normalised(name), 0.06) for name in ("group", "batch", "instance")),
    *(Entry(f"CNN with {name} pooling", lambda name=name: trained.pooled(name), 0.05) for name in ("max", "average")),
    *(Entry(f"CNN trained with {name}", lambda name=name: trained.regularised(name), 0.06) for name in ("dropout", "label smoothing", "a high temperature")),
    Entry("vision transformer", trained.transformer, 0.04),
    Entry("recurrent network", trained.recurrent, 0.04),
    Entry("perceptron", trained.perceptron, 0.04),
    Entry("linear network", trained.linear, 0.03),
    Entry("CNN with rounded activations", trained.quantised, 0.08),
    Entry("maxout network", trained.maxout, 0.08),
    Entry("maxout network, adversarially trained", lambda: trained.maxout(0.1), 0.1),
    Entry("separable convolutions", trained.separable, 0.04),
    Entry("CNN trained on squared errors", trained.on_squares, 0.08),
    Entry("CNN trained for l2", trained.against_l2, 1.0, "l2"),
]  # fmt: skip

CHANGED_NETWORKS = [
    Entry("logits times 1e3", lambda: scaled(robust(), 1e3), 0.3),
    Entry("log-probabilities", lambda: Head(robust(), lambda z: z.log_softmax(1)), 0.3),
    Entry("weights in bfloat16", lambda: in_bfloat16(robust()), 0.3),
    Entry("weights in 8 bits", lambda: fewer_bits(weak()), 0.1),
    Entry("half of the weights pruned", lambda: pruned(weak()), 0.08),
    Entry("sigmoids of a robust network", lambda: Head(robust(), torch.sigmoid), 0.2),
    Entry("ensemble", lambda: Ensemble(weak(), custom()), 0.08),
    Entry("ensemble of a robust and a plain network", lambda: Ensemble(robust(), weak()), 0.2),
    Entry("blur in front", lambda: Blurred(weak()), 0.1),
    Entry("traced", weak, 0.1, saved="trace"),
    Entry("exported", robust, 0.3, saved="pt2"),
]

UNUSUAL_NETWORKS = [
    Entry("fixed point", unusual.fixed_point, 0.04),
    Entry("standardised images", unusual.standardized, 0.05),
    Entry("prototypes", unusual.prototypes, 0.06),
    Entry("moving average beside", lambda: unusual.WithAverage(trained.activated("ReLU")), 0.06),
    Entry("mean of shifts", lambda: unusual.MeanOfShifts(trained.activated("ReLU")), 0.06),
    Entry("mean of shifts, l1", lambda: unusual.MeanOfShifts(trained.activated("ReLU")), 6.0, "l1"),
]

TABLE = [*SAMPLE_NETWORKS, *FOREIGN_NETWORKS, *TRAINED_NETWORKS, *CHANGED_NETWORKS, *UNUSUAL_NETWORKS]
