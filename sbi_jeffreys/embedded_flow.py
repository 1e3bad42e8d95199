"""A flow whose embedding of x can be evaluated by itself: once per x, for all who want it."""

import torch
from nflows.distributions.normal import StandardNormal
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator, ConditionalEstimator
from sbi.neural_nets.estimators.nflows_flow import NFlowsFlow
from sbi.neural_nets.estimators.zuko_flow import ZukoFlow
from torch import Tensor, nn
from typing_extensions import Self
from zuko.lazy import UnconditionalDistribution

from .embedding import (
    embedded,
    embedding_of,
    embedding_owner,
    evaluating,
    is_learnt,
    nflows_sample_of_same_noise,
    rests,
    without_embedding,
    zuko_log_prob,
    zuko_sample_of_same_noise,
    zuko_sample_with_log_prob,
)
from .features.scales import shift_and_scale
from .flows import starts_in_closed_form
from .utils.precision import without_autocast
from .utils.seeding import seeded

__all__ = ["EmbeddedFlow"]

# Embedded entries are in units of their scatter; what hardly varies is taken to vary by so much.
_NARROW = 1.0
# Pairs of a parameter and an x that a flow evaluates at once, at most; and for flows of sbi's own,
# whose mixtures of Gaussians make matrices for each of ten components of each, numbers in one of
# these matrices times pairs: 170 MB with ten.
_PAIRS, _FEWEST_PAIRS, _NUMBERS = 2**16, 2**8, 2**22


class EmbeddedFlow(ConditionalDensityEstimator):
    """A flow, and what it sees of x.

    Attributes:
        flow: The flow.
        reach: Least and largest entries of the embedded x of training simulations, shape (2, c),
            of those that were given and those taken in since (:meth:`widen_reach`); (2, 0) where
            the embedding is learnt, which takes x elsewhere.

    Args:
        flow: Any conditional density estimator of sbi.
        x: Data of training simulations, shape (m, *event). They tell how far these reach, and the
            scale of x where the flow embeds none.
    """

    reach: Tensor

    def __init__(self, flow: ConditionalDensityEstimator, x: Tensor) -> None:
        # Not the parent's: it would register the flow's network a second time.
        ConditionalEstimator.__init__(self, flow.input_shape, flow.condition_shape)
        self.flow = flow
        # It is of the type that all numbers are to have, wherever this is moved.
        self.register_buffer("reach", torch.zeros(2, 0))
        self._embeds = embedding_owner(flow) is not None
        if not self._embeds:
            mean, std = shift_and_scale(x.flatten(1))
            self.register_buffer("_x_mean", mean)
            self.register_buffer("_x_std", std)
        if not self.learns_embedding:
            self.reach = self._reach(x).to(self.reach.dtype)

    @property
    def learns_embedding(self) -> bool:
        """Whether the embedding has parameters to train."""
        network = embedding_of(self.flow)
        return network is not None and is_learnt(network) and not rests(self.flow)

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; an embedding that is not learnt stays in the latter.

        Both models begin with what it makes of x in evaluation: dropout and the statistics of a
        batch would make another x of it, and running statistics would be the user's no more.
        """
        super().train(mode)
        network = embedding_of(self.flow)
        if network is not None and not self.learns_embedding:
            network.eval()
        return self

    @property
    def most_pairs(self) -> int:
        """How many pairs of a parameter and an x to evaluate at once, for the sake of memory."""
        if isinstance(self.flow, ZukoFlow):
            return _PAIRS
        return min(_PAIRS, max(_FEWEST_PAIRS, _NUMBERS // self.input_shape.numel() ** 2))

    @property
    def net(self) -> nn.Module:
        """The flow's network, under the name that sbi looks for."""
        return self.flow.net

    @property
    def embedding_net(self) -> nn.Module | None:
        """The flow's embedding network, if it has one."""
        return self.flow.embedding_net

    def _in_own_type(self, numbers: Tensor) -> Tensor:
        return numbers.to(self.reach.dtype)

    def embed(self, x: Tensor) -> Tensor:
        """Return what both models see of x.

        Args:
            x: Data, shape (B, *event).

        Returns:
            Shape (B, c): the flow's own embedding (z-scoring included) where it has one, the
            z-scored entries of x otherwise.
        """
        x = self._in_own_type(x)
        network = embedding_of(self.flow)
        if network is not None:
            return embedded(network, x)
        return (x.flatten(1) - self._x_mean) / self._x_std

    def widen_reach(self, x: Tensor) -> None:
        """Take in how far the data of more training simulations reach, shape (m, *event)."""
        if self.reach.shape[1]:
            (low, high), (least, largest) = self.reach, self._reach(x.to(self.reach.device))
            self.reach = torch.stack((torch.minimum(low, least), torch.maximum(high, largest)))

    @torch.no_grad()
    def _reach(self, x: Tensor) -> Tensor:
        with evaluating(self.flow):
            context = self.embed(x)
        finite = context.isfinite()
        low = context.where(finite, torch.inf).amin(dim=0)
        high = context.where(finite, -torch.inf).amax(dim=0)
        return torch.stack((low, high))

    @without_autocast()
    def beyond_reach(self, x: Tensor) -> Tensor:
        """Return how far data lie from all training simulations, in widths of what these reach.

        Args:
            x: Data, shape (B, *event).

        Returns:
            Shape (B,): zero within the range of every embedded entry, and one where an entry is as
            far from its range as that is wide. All zero where the embedding is learnt, and NaN
            where nothing is known, in a file of an older format.
        """
        if not self.reach.shape[1]:
            return self.reach.new_zeros(len(x))
        low, high = self.reach
        context = self.embed(x)
        beyond = torch.maximum(low - context, context - high) / (high - low).clamp_min(_NARROW)
        return beyond.amax(dim=1).clamp_min(0.0)

    def log_prob_embedded(self, theta: Tensor, context: Tensor) -> Tensor:
        """Return the flow's log density given embedded data.

        Args:
            theta: Shape (S, B, d).
            context: Shape (B, c) or (S, B, c).

        Returns:
            Nats, shape (S, B).
        """
        if isinstance(self.flow, ZukoFlow):
            context = context.expand(*theta.shape[:-1], context.shape[-1])
            return zuko_log_prob(self.flow.net, theta, context)
        if context.dim() == 3:
            # Not every estimator of sbi takes a sample dimension on its condition.
            flat = self.log_prob_embedded(theta.flatten(0, 1).unsqueeze(0), context.flatten(0, 1))
            return flat.reshape(theta.shape[:-1])
        flow, condition = self._given_embedded(context)
        return flow.log_prob(theta, condition)

    @torch.no_grad()
    def sample_embedded(self, num: int, context: Tensor) -> Tensor:
        """Return samples of the flow given embedded data (B, c), shape (num, B, d)."""
        if isinstance(self.flow, ZukoFlow):
            if context.shape[-1] == 0:
                return self.flow.net(None).sample((num, len(context)))
            return self.flow.net(context).sample((num,))
        flow, condition = self._given_embedded(context)
        return flow.sample(torch.Size((num,)), condition)

    @torch.no_grad()
    def sample_with_log_prob(
        self, num: int, context: Tensor, *, seed: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return samples of the flow given embedded data (B, c), and its log density there.

        Args:
            num: Number of samples for each x.
            context: Embedded data.
            seed: For the same samples at an x in every call, whatever the others are: they come of
                the same noise for all x, which is quasi-random, spread more evenly, where the flow
                has a normal base.

        Returns:
            Shapes (num, B, d) and (num, B).
        """
        # Other flows may have inverses that are not exact, and another density at what they give.
        if starts_in_closed_form(self.flow) and context.shape[-1]:
            return zuko_sample_with_log_prob(self.flow.net, num, context, seed)
        if seed is None:
            theta = self.sample_embedded(num, context)
        else:
            theta = self._sample_of_same_noise(num, context, seed)
        return theta, self.log_prob_embedded(theta, context)

    def _sample_of_same_noise(self, num: int, context: Tensor, seed: int) -> Tensor:
        """Return samples (num, B, d) for which all embedded data (B, c) share the noise."""
        flow = self.flow
        fixed = isinstance(flow, ZukoFlow) and isinstance(flow.net.base, UnconditionalDistribution)
        if fixed and context.shape[-1]:
            return zuko_sample_of_same_noise(flow.net, num, context, seed)
        normal = isinstance(flow, NFlowsFlow) and isinstance(flow.net._distribution, StandardNormal)
        if normal and self._embeds:
            return nflows_sample_of_same_noise(flow.net, num, context, seed)
        each = []
        for part in context.split(1):
            with seeded(seed, context.device):
                each.append(self.sample_embedded(num, part))
        return torch.cat(each, dim=1)

    def _given_embedded(self, context: Tensor) -> tuple[ConditionalDensityEstimator, Tensor]:
        """Return the flow without its embedding, and the context in the form that it takes."""
        if self._embeds:
            return without_embedding(self.flow, context.shape[-1:]), context
        x = context * self._x_std + self._x_mean
        return self.flow, x.unflatten(-1, tuple(self.condition_shape))
