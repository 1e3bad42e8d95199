r"""What likelihoods have in common that are the network of a proxy, whatever their form.

.. math:: f_\psi(\theta, c) = \log \frac{\ell(c | \theta)}{m(c)} + g(c)

with a density :math:`\ell` of the embedded data :math:`c`, normalised for every :math:`\theta`. So
the proxy's posterior is that of a simulator which can be run: parameters from the prior, data from
:math:`\ell`. :math:`m(c)` is a marginal in closed form, so that :math:`Z_\psi(x)` starts near one;
:math:`g` is where the gauge of :math:`f_\psi` can go without disturbing the likelihood.
"""

import torch
from torch import Tensor, nn

from ..features.columns import Features
from ..features.linear_posterior import over_decades
from ..features.scales import column_scales, cut_outliers
from ..utils.checks import check_counts
from ..utils.squares import sum_of_squares
from .network import BendingMLP, mlp
from .start import linear_likelihood, steps_of

__all__ = ["Likelihood"]


class Likelihood(nn.Module):
    r"""Energy network :math:`f_\psi` that is a likelihood.

    Args:
        theta: Parameters, shape (n, d).
        context: Embedded data, shape (n, c).
        hidden_features: Width of the network of theta; that of the gauge has half of it.
        hidden_layers: Number of hidden layers of the network of theta.

    Raises:
        ValueError: If there are no embedded data, c = 0, or a number of features or layers will not
            do.

    Attributes:
        common: Number of the form, by which files know it.
        has_tails: Whether a single row's loss may be as large as it likes.
    """

    common: int
    has_tails = True
    center: Tensor
    scale: Tensor
    whitening: Tensor
    slope: Tensor
    intercept: Tensor
    marginal_whitening: Tensor
    marginal_intercept: Tensor
    log_ratio: Tensor
    gaps: Tensor
    gauge: nn.Sequential
    of_theta: BendingMLP

    def __init__(
        self, theta: Tensor, context: Tensor, *, hidden_features: int, hidden_layers: int
    ) -> None:
        super().__init__()
        if context.shape[1] == 0:
            raise ValueError("A likelihood needs data: with an empty condition, take proxy='mlp'.")
        check_counts(1, hidden_features=hidden_features)
        check_counts(0, hidden_layers=hidden_layers)
        self._hidden = hidden_features, hidden_layers
        self.standard_theta = _standard_theta(theta, over_decades(theta, context))
        center, scale = column_scales(context, context.shape[1], theta)
        self.register_buffer("center", center)
        self.register_buffer("scale", scale)
        start = linear_likelihood(self.standard_theta(theta), (context - center) / scale)
        for name, value in start.items():
            self.register_buffer(name, torch.as_tensor(value, dtype=theta.dtype))
        self.register_buffer("gaps", steps_of(context))

    def _build_networks(self, d: int, c: int, outputs: int) -> None:
        """Build the networks of theta and of the gauge, which say zero at first."""
        width, layers = self._hidden
        self.of_theta = BendingMLP(d, width, layers, outputs)
        self.gauge = mlp(c, max(1, width // 2), 2, 1)
        for network in (self.of_theta, self.gauge):
            last = network[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def follow(self, features: Features, x: Tensor) -> None:
        """Take the steps of data that these features bend from the data themselves.

        Args:
            features: What the embedding does.
            x: Data, shape (n, c).
        """
        # Not a submodule: shared weights have one owner and one entry in the state_dict.
        self.__dict__["features"] = features
        self.gaps.copy_(torch.where(features.bent, steps_of(x / features.unit), self.gaps))

    def forget_start(self, theta: Tensor) -> None:
        """Start at a standard normal for every theta: the embedding is still to be learnt.

        Args:
            theta: Parameters, shape (n, d), for their scale.
        """
        self.standard_theta = Features(theta)
        for name in ("whitening", "marginal_whitening"):
            getattr(self, name).copy_(torch.eye(len(self.whitening)))
        self.scale.fill_(1.0)
        for name in ("center", "slope", "intercept", "marginal_intercept", "log_ratio", "gaps"):
            getattr(self, name).zero_()

    def forward(self, theta: Tensor, context: Tensor) -> Tensor:
        r"""Return :math:`f_\psi`.

        Args:
            theta: Shape (S, B, d), or (S, 1, d) for parameters that all conditions share.
            context: Embedded data, shape (B, c).

        Returns:
            Nats, shape (S, B).
        """
        return self.log_mixture(theta, context) + self.shift(context)

    def log_mixture(self, theta: Tensor, context: Tensor) -> Tensor:
        """Return the summand of :meth:`forward` that is a likelihood, up to a constant.

        Likelihoods that start from the same simulations have the same constant. Arguments and
        result as there.
        """
        raise NotImplementedError

    def at_pairs_and_all(
        self, theta: Tensor, shared: Tensor, context: Tensor, rows: Tensor, first: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the summands of :meth:`forward` at pairs and at parameters that all data share.

        In one evaluation, which takes little more time than one of the two.

        Args:
            theta: Parameters of the pairs, shape (N, d).
            shared: Parameters that go with the first of all data, shape (S, d).
            context: Embedded data, shape (B, c).
            rows: Which of the data each of theta goes with, shape (N,).
            first: With how many of the data the shared parameters go.

        Returns:
            The logarithm of the likelihood up to a constant at the pairs (N,) and for all that are
            shared (S, first), and what depends on the data alone (B,), nats.
        """
        raise NotImplementedError

    def simulate(self, theta: Tensor) -> Tensor:
        """Return data: (theta, data) are draws of the proxy's joint distribution.

        Args:
            theta: Draws of the prior, shape (B, d).

        Returns:
            Embedded data, shape (B, c); outliers are cut off, as everywhere.
        """
        raise NotImplementedError

    def shift(self, context: Tensor) -> Tensor:
        """Return the summand that embedded data (B, c) alone decide, shape (B,), nats."""
        return self._shift(self.standardized(context))

    def _shift(self, c: Tensor) -> Tensor:
        """Return what depends on the standardised data (B, c) alone, shape (B,)."""
        marginal = 0.5 * sum_of_squares(c @ self.marginal_whitening.T - self.marginal_intercept, -1)
        return marginal + self.log_ratio + self.gauge(c).squeeze(-1)

    @property
    def as_one(self) -> bool:
        """Whether it needs few simulations; unless it was named, it was fitted and chosen."""
        return self.common > 0

    @property
    def spreads_steps(self) -> bool:
        """Whether :meth:`dequantize` spreads data: some come in steps, and it wants a density."""
        return bool((self.gaps > 0).any())

    def dequantize(self, context: Tensor) -> Tensor:
        """Spread data in steps (counts, categories) over their steps, at random.

        A density could otherwise grow without bound at the values that occur. Continuous data stay
        as they are.

        Args:
            context: Embedded data, shape (B, c).

        References:
            A note on the evaluation of generative models (Theis et al., 2016),
            https://arxiv.org/abs/1511.01844, section 3.1
        """
        return self._moved_by((torch.rand_like(context) - 0.5) * self.gaps, context)

    def _moved_by(self, steps: Tensor, context: Tensor) -> Tensor:
        """Return embedded data (B, c) moved by steps (B, c) of the data they were made of."""
        features: Features | None = self.__dict__.get("features")
        return context + steps if features is None else features.spread_steps(context, steps)

    def log_likelihood(self, theta: Tensor, context: Tensor) -> Tensor:
        """Return the logarithm of the likelihood, up to a constant.

        Args:
            theta: Shape (B, d).
            context: Embedded data, shape (B, c); data in steps want :meth:`dequantize` first.

        Returns:
            Nats, shape (B,).
        """
        return self.log_mixture(theta.unsqueeze(0), context)[0]

    def standardized(self, context: Tensor) -> Tensor:
        """Return embedded data, shape (*, c), in units of their spread, outliers cut off."""
        return cut_outliers((context - self.center) / self.scale)


def _standard_theta(theta: Tensor, logarithms: Tensor) -> Features:
    """Return parameters in standard deviations, some of them (d,) of their logarithms."""
    # A unit far below all, logarithms proper, but quotients by it stay in single precision.
    size = theta.abs()
    unit = torch.maximum(0.1 * size.amin(dim=0), 1e-30 * size.amax(dim=0))
    unit = unit.clamp_min(torch.finfo(theta.dtype).tiny)
    return Features(theta, logarithms, torch.where(logarithms, unit, torch.ones_like(unit)))
