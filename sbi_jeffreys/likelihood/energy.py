r"""An energy in the shape of a likelihood: the default network of the proxy.

.. math:: f_\psi(\theta, c) = \log \frac{1}{m(c)} \sum_{k=1}^{K} w_k(\theta)\,
    \mathcal{N}(c; \mu_k(\theta), \Sigma_k(\theta)) + g(c)

A simulator's data are often near to Gaussian around a mean that depends on :math:`\theta`, or to a
mixture of a few. Weights, means and covariances are functions of :math:`\theta` alone, which few
simulations determine far better than a function of pairs :math:`(\theta, c)`. Where a posterior is
broad, curved or has several modes because a simple likelihood is read backwards (as in SLCP), the
difference is nats.

The first component starts at the linear Gaussian likelihood, in closed form: a ridge regression of
the embedded data :math:`c` on :math:`\theta`; the others start with little weight. :math:`m(c)` is
that likelihood's marginal under a Gaussian prior, so that :math:`Z_\psi(x)` starts near one;
:math:`g` is where the gauge of :math:`f_\psi` can go without disturbing the likelihood.

How :math:`\theta` moves the Gaussians comes in four forms: each on its own, or all as one in their
means, in means and scales, or in means, scales and correlations, the rest being the same for every
:math:`\theta`. Additive or multiplicative noise needs far fewer parameters than a mixture for each
:math:`\theta`. Held-out data choose the form (:mod:`sbi_jeffreys.likelihood.forms`).

For each :math:`\theta` the mixture is a normalised density of c. Hence the proxy's posterior is
that of a simulator which can be run (:meth:`LikelihoodEnergy.simulate`): parameters from the prior,
data from the mixture. Such pairs are draws of the proxy's joint distribution, without end (exact
but for data beyond four standard deviations, which are cut off).

Parameters and data meet in a quadratic form only, so that S parameters and B conditions cost
S + B evaluations and a matrix product: many draws from the prior, shared by all conditions, are
cheap.

References:
    | Statistical inference for noisy nonlinear ecological dynamic systems (Wood, 2010), the
      synthetic likelihood, https://doi.org/10.1038/nature09319
    | Mixture density networks (Bishop, 1994), https://publications.aston.ac.uk/id/eprint/373/
    | Sequential neural likelihood (Papamakarios et al., 2019), https://arxiv.org/abs/1805.07226
"""

import numbers

import torch
from torch import Tensor, nn

from ..features.scales import cut_outliers
from ..utils.checks import check_counts
from ..utils.logsumexp import log_softmax
from .base import Likelihood
from .mixtures import LowerEntries, Mixture, draw_each, log_prob_of_all, log_prob_of_pairs
from .start import num_gaussians

__all__ = ["LikelihoodEnergy"]

# Beyond this many embedded features, the correlations are those of the start for every theta.
_MOST_CORRELATED = 20
# Bound on the logarithm of every scale, relative to the start's.
_LOG_SCALE = 6.0
# Where the components after the first start, relative to it: means are spread by this, in standard
# deviations of the residuals.
_SPREAD = 0.3
# The logarithms of their inverse scales: the largest, and how far they reach below it. All are
# narrower than the first, or their tails would outweigh its own.
_SHARPEST, _RANGE = 0.7, 0.5
# Their log weight: it must be low, or the linear start would be lost.
_LOG_WEIGHT = -4.0
# Factor on the parameters that all theta share. They are plain numbers, not outputs of a network,
# and would learn too slowly at its rate.
_FAST = 10.0


class LikelihoodEnergy(Likelihood):
    r"""Energy network :math:`f_\psi` that is a mixture of Gaussian likelihoods.

    With the start's Cholesky factor taken out, the logarithm of a Gaussian is
    :math:`-\tfrac12 \| A(\theta) (W c - m(\theta)) \|^2 + \log |A(\theta)|` up to a constant, with
    :math:`A` lower triangular (diagonal for more than 20 features).

    Args:
        theta: Parameters, shape (n, d).
        context: Embedded data, shape (n, c).
        hidden_features: Width of the network of theta; that of the gauge has half of it.
        hidden_layers: Number of hidden layers of the network of theta.
        num_components: Number of Gaussians; by default eight for up to four columns, six and four
            for five and six, three for more.
        common: What theta moves for all Gaussians as one: 0 nothing, 1 their means, 2 their scales
            as well, 3 their correlations as well. Their weights it always moves one by one.

    Raises:
        ValueError: If there are no embedded data, c = 0, there is no such form, or a number of
            features, layers or components will not do.

    Example:
        >>> network = LikelihoodEnergy(torch.randn(100, 2), torch.randn(100, 3))
        >>> network(torch.randn(16, 1, 2), torch.randn(5, 3)).shape
        torch.Size([16, 5])
        >>> network.simulate(torch.randn(7, 2)).shape
        torch.Size([7, 3])
    """

    offsets: Tensor
    lower: Tensor
    to_rows: Tensor
    from_columns: Tensor

    def __init__(
        self,
        theta: Tensor,
        context: Tensor,
        *,
        hidden_features: int = 128,
        hidden_layers: int = 4,
        num_components: int | None = None,
        common: int = 0,
    ) -> None:
        super().__init__(
            theta, context, hidden_features=hidden_features, hidden_layers=hidden_layers
        )
        d, c = theta.shape[1], context.shape[1]
        if num_components is not None:
            check_counts(1, num_components=num_components)
        integer: bool = isinstance(common, numbers.Integral)
        if not integer or common not in range(4):
            raise ValueError(
                f"common={common!r} must be 0, 1, 2 or 3: how much theta moves as one."
            )
        self._register_entries(c, theta.dtype)
        # Of each component: mean, logarithm of the inverse scale, correlations, log weight.
        self.sizes = (c, c, self.lower.shape[1], 1)
        if num_components is None:
            num_components = num_gaussians(sum(self.sizes))
        self.num_components = num_components
        self.register_buffer("offsets", self._offsets(self.num_components).to(theta))
        self.common = common
        # How many numbers move all Gaussians as one.
        self.num_common = sum(self.sizes[:common])
        # Offsets of each Gaussian that are the same for every theta, in the forms that tie them.
        self.noise = nn.Parameter(torch.zeros_like(self.offsets)) if common else None
        apart = 1 if common else sum(self.sizes)
        outputs = self.num_common + self.num_components * apart
        # At zero the proxy starts as the linear likelihood.
        self._build_networks(d, c, outputs)

    def _register_entries(self, c: int, dtype: torch.dtype) -> None:
        """Register where the correlations of c columns stand."""
        lower = torch.tril_indices(c, c, -1) if c <= _MOST_CORRELATED else torch.zeros(2, 0)
        self.register_buffer("lower", lower.long(), persistent=False)
        # Which entries a correlation adds to, and which it multiplies: one-hot columns.
        for name, of in zip(("to_rows", "from_columns"), lower.long(), strict=True):
            self.register_buffer(name, torch.eye(c, dtype=dtype)[of], persistent=False)

    def _offsets(self, num: int) -> Tensor:
        """Return where the components start, relative to the linear likelihood."""
        means, scales, lower, weights = torch.zeros(num, sum(self.sizes)).split(self.sizes, dim=-1)
        means[1:] = _SPREAD * torch.randn(max(0, num - 1), means.shape[1])
        scales[1:] = _SHARPEST - _RANGE * torch.linspace(1, 0, num - 1)[:, None]
        weights[1:] = _LOG_WEIGHT
        return torch.cat((means, scales, lower, weights), dim=-1)

    def log_mixture(self, theta: Tensor, context: Tensor) -> Tensor:
        """Return the logarithm of the mixture, up to a constant; see the base class."""
        w = self.standardized(context) @ self.whitening.T
        if theta.shape[-2] == 1 and context.shape[-2] != 1:
            return log_prob_of_all(w, self._components(theta.squeeze(-2)), self._entries)
        return log_prob_of_pairs(w, self._components(theta), self._entries)

    def at_pairs_and_all(
        self, theta: Tensor, shared: Tensor, context: Tensor, rows: Tensor, first: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mixture at pairs and at all, and the rest; see the base class."""
        c = self.standardized(context)
        w = c @ self.whitening.T
        said = self._components(torch.cat((theta, shared)))
        parts = zip(*(each.split((len(theta), len(shared))) for each in said), strict=True)
        of_pairs, of_shared = (Mixture(*part) for part in parts)
        at_pairs = log_prob_of_pairs(w[rows], of_pairs, self._entries)
        return at_pairs, log_prob_of_all(w[:first], of_shared, self._entries), self._shift(c)

    @torch.no_grad()
    def simulate(self, theta: Tensor) -> Tensor:
        """Return data from the mixture; see the base class."""
        drawn = draw_each(self._components(theta), self._entries)
        data = torch.linalg.solve_triangular(self.whitening, drawn.T, upper=False).T
        return self.center + self.scale * cut_outliers(data)

    def _components(self, theta: Tensor) -> Mixture:
        """Return the mixtures for theta, shape (*, d)."""
        t = self.standard_theta(theta)
        out = self._moved(self.of_theta(t)) + self.offsets
        m, log_scale, lower, log_weight = out.split(self.sizes, dim=-1)
        m = m + (t @ self.slope.T + self.intercept).unsqueeze(-2)
        log_scale = _LOG_SCALE * torch.tanh(log_scale / _LOG_SCALE)
        return Mixture(m, log_scale, lower, log_softmax(log_weight.squeeze(-1), -1))

    def _moved(self, out: Tensor) -> Tensor:
        """Return by how much each number of each Gaussian has moved, of the network's outputs."""
        if self.noise is None:
            return out.unflatten(-1, (self.num_components, -1))
        as_one, apart = out.split((self.num_common, self.num_components), dim=-1)
        as_one = as_one.unsqueeze(-2).expand(*apart.shape, -1)
        fixed = apart.new_zeros(()).expand(*apart.shape, sum(self.sizes) - 1 - self.num_common)
        moved = torch.cat((as_one, fixed, apart.unsqueeze(-1)), dim=-1)
        return moved + _FAST * self.noise

    @property
    def _entries(self) -> LowerEntries:
        """Where the correlations stand."""
        return LowerEntries(self.lower, self.to_rows, self.from_columns)
