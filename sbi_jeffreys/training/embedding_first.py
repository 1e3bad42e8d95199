"""An embedding network that is learnt before the joint training, and rests in it.

Beside a flow that has no start in closed form, an embedding learns badly in the joint training:
both models see data through it, D2 holds the flow to a proxy that knows as little as it does, and
what the flow does not do with the data, the embedding is not told (docs/trials.md). So such a flow
is trained by maximum likelihood first. Its embedding is then a function of x like any other.
"""

from collections.abc import Callable
from typing import NamedTuple

from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
from torch import Tensor, nn

from ..draws import Draws
from ..duals import FixedWeights
from ..embedding import embedding_of, put_to_rest
from ..estimator import JeffreysEstimator
from ..optim.weights import copy_of_weights
from .batches import Data, LoaderData
from .run import begin, run
from .steps import Settings
from .training import Training

__all__ = ["LearntEmbedding", "learn_embedding"]


class LearntEmbedding(NamedTuple):
    """What was learnt.

    Attributes:
        weights: Those of the embedding network, on the CPU.
        learnt: Names of the parameters among them that were.
    """

    weights: dict[str, Tensor]
    learnt: tuple[str, ...]

    def put_to_rest(self, flow: ConditionalDensityEstimator) -> None:
        """Give a flow's embedding these weights, and leave it with them."""
        network = _embedding_of(flow)
        network.load_state_dict(self.weights)
        network.zero_grad(set_to_none=True)
        self.hold(flow)
        put_to_rest(flow)

    def hold(self, flow: ConditionalDensityEstimator) -> None:
        """Let nothing train the embedding, which is at rest."""
        _embedding_of(flow).requires_grad_(False)

    def release(self, flow: ConditionalDensityEstimator) -> None:
        """Leave the module as it came: it is the user's, and may be trained elsewhere."""
        for name, parameter in _embedding_of(flow).named_parameters():
            parameter.requires_grad_(name in self.learnt)


def learn_embedding(
    flow: ConditionalDensityEstimator,
    rows: tuple[Tensor, Tensor],
    data: Data | LoaderData,
    held_out: Data | LoaderData,
    settings: Settings,
    kernel: Callable[[Tensor], Tensor],
    after_epoch: Callable[[dict[str, float]], None],
    *,
    max_num_epochs: int,
) -> LearntEmbedding:
    """Train a flow with its embedding by maximum likelihood; return the embedding.

    Args:
        flow: Flow of sbi's, changed in place.
        rows: Some of its simulations, theta (n, d) and x (n, *event), for their scales.
        data: What to train on.
        held_out: What to look at.
        settings: Hyper-parameters.
        kernel: Calibration kernel.
        after_epoch: Takes the record of each epoch.
        max_num_epochs: Most epochs.
    """
    estimator = JeffreysEstimator(flow, *rows).to(settings.device)
    # The names are asked for before anything rests.
    parameters = _embedding_of(flow).named_parameters()
    learnt = tuple(name for name, parameter in parameters if parameter.requires_grad)
    alone = FixedWeights((1.0, 0.0, 0.0))
    training = Training(estimator, alone, Draws(), settings, kernel, None, simple_start=False)
    begin(training, data, held_out, max_num_epochs=max_num_epochs)
    run(training, data, held_out, after_epoch, max_num_epochs=max_num_epochs)
    weights = copy_of_weights(_embedding_of(flow.cpu()))
    return LearntEmbedding(weights, learnt)


def _embedding_of(flow: ConditionalDensityEstimator) -> nn.Module:
    network = embedding_of(flow)
    assert network is not None
    return network
