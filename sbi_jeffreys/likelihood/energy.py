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

import torch
from torch import Tensor, nn

from ..features.columns import Features
from ..features.linear_posterior import over_decades
from ..features.scales import column_scales, cut_outliers
from ..utils.checks import check_counts
from .mixtures import LowerEntries, Mixture, draw_each, log_prob_of_all, log_prob_of_pairs
from .squares import sum_of_squares
from .start import linear_likelihood, num_gaussians, steps_of

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


class LikelihoodEnergy(nn.Module):
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

    center: Tensor
    scale: Tensor
    whitening: Tensor
    slope: Tensor
    intercept: Tensor
    marginal_whitening: Tensor
    marginal_intercept: Tensor
    log_ratio: Tensor
    offsets: Tensor
    gaps: Tensor
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
        super().__init__()
        d, c = theta.shape[1], context.shape[1]
        if c == 0:
            raise ValueError("A likelihood needs data: with an empty condition, take proxy='mlp'.")
        check_counts(1, hidden_features=hidden_features)
        check_counts(0, hidden_layers=hidden_layers)
        if num_components is not None:
            check_counts(1, num_components=num_components)
        if not isinstance(common, int) or common not in range(4):
            raise ValueError(
                f"common={common!r} must be 0, 1, 2 or 3: how much theta moves as one."
            )
        self._register_start(theta, context)
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
        self.of_theta = _mlp(d, hidden_features, hidden_layers, outputs)
        self.gauge = _mlp(c, max(1, hidden_features // 2), 2, 1)
        # At zero the proxy starts as the linear likelihood.
        for network in (self.of_theta, self.gauge):
            last = network[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def _register_start(self, theta: Tensor, context: Tensor) -> None:
        """Register scales, and the linear likelihood to start from."""
        self.standard_theta = _standard_theta(theta, over_decades(theta, context))
        center, scale = column_scales(context, context.shape[1], theta)
        self.register_buffer("center", center)
        self.register_buffer("scale", scale)
        start = linear_likelihood(self.standard_theta(theta), (context - center) / scale)
        for name, value in start.items():
            self.register_buffer(name, torch.as_tensor(value, dtype=theta.dtype))
        self.register_buffer("gaps", steps_of(context))

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
        w = self.standardized(context) @ self.whitening.T
        if theta.shape[-2] == 1 and context.shape[-2] != 1:
            return log_prob_of_all(w, self._components(theta.squeeze(-2)), self._entries)
        return log_prob_of_pairs(w, self._components(theta), self._entries)

    def shift(self, context: Tensor) -> Tensor:
        """Return the summand that embedded data (B, c) alone decide, shape (B,), nats."""
        return self._shift(self.standardized(context))

    def at_pairs_and_all(
        self, theta: Tensor, shared: Tensor, context: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the summands of :meth:`forward` at pairs and at parameters that all data share.

        In one evaluation, which takes little more time than one of the two.

        Args:
            theta: Parameters of the pairs, shape (N, d).
            shared: Parameters that go with all data, shape (S, d).
            context: Embedded data, shape (B, c).
            rows: Which of the data each of theta goes with, shape (N,).

        Returns:
            The logarithm of the mixture up to a constant at the pairs (N,) and at all (S, B), and
            what depends on the data alone (B,), nats.
        """
        c = self.standardized(context)
        w = c @ self.whitening.T
        said = self._components(torch.cat((theta, shared)))
        parts = zip(*(each.tensor_split([len(theta)]) for each in said), strict=True)
        of_pairs, of_shared = (Mixture(*part) for part in parts)
        at_pairs = log_prob_of_pairs(w[rows], of_pairs, self._entries)
        return at_pairs, log_prob_of_all(w, of_shared, self._entries), self._shift(c)

    def _shift(self, c: Tensor) -> Tensor:
        """Return what depends on the standardised data (B, c) alone, shape (B,)."""
        marginal = 0.5 * sum_of_squares(c @ self.marginal_whitening.T - self.marginal_intercept, -1)
        return marginal + self.log_ratio + self.gauge(c).squeeze(-1)

    @property
    def as_one(self) -> bool:
        """Whether its Gaussians move as one: unless it was named, it was fitted and chosen."""
        return self.common > 0

    @property
    def is_discrete(self) -> bool:
        """Whether some of the data come in steps."""
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
        steps = (torch.rand_like(context) - 0.5) * self.gaps
        features: Features | None = self.__dict__.get("features")
        return context + steps if features is None else features.spread_steps(context, steps)

    def log_likelihood(self, theta: Tensor, context: Tensor) -> Tensor:
        """Return the logarithm of the mixture, up to a constant.

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

    @torch.no_grad()
    def simulate(self, theta: Tensor) -> Tensor:
        """Return data from the mixture: (theta, data) are draws of the proxy's joint distribution.

        Args:
            theta: Draws of the prior, shape (B, d).

        Returns:
            Embedded data, shape (B, c); outliers are cut off, as everywhere.
        """
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
        return Mixture(m, log_scale, lower, log_weight.squeeze(-1).log_softmax(dim=-1))

    def _moved(self, out: Tensor) -> Tensor:
        """Return by how much each number of each Gaussian has moved, of the network's outputs."""
        as_one, apart = out.tensor_split([self.num_common], dim=-1)
        apart = apart.unflatten(-1, (self.num_components, -1))
        if self.noise is None:
            return apart
        fixed = sum(self.sizes) - 1 - self.num_common
        as_one = nn.functional.pad(as_one, (0, fixed)).unsqueeze(-2)
        moved = torch.cat((as_one.expand(*apart.shape[:-1], -1), apart), dim=-1)
        return moved + _FAST * self.noise

    @property
    def _entries(self) -> LowerEntries:
        """Where the correlations stand."""
        return LowerEntries(self.lower, self.to_rows, self.from_columns)


def _standard_theta(theta: Tensor, logarithms: Tensor) -> Features:
    """Return parameters in standard deviations, some of them (d,) of their logarithms."""
    # A unit far below all, logarithms proper, but quotients by it stay in single precision.
    size = theta.abs()
    unit = torch.maximum(0.1 * size.amin(dim=0), 1e-30 * size.amax(dim=0))
    unit = unit.clamp_min(torch.finfo(theta.dtype).tiny)
    return Features(theta, logarithms, torch.where(logarithms, unit, torch.ones_like(unit)))


def _mlp(inputs: int, hidden: int, layers: int, outputs: int) -> nn.Sequential:
    modules: list[nn.Module] = []
    for _ in range(layers):
        modules += [nn.Linear(inputs, hidden), nn.SiLU()]
        inputs = hidden
    return nn.Sequential(*modules, nn.Linear(inputs, outputs))
