"""What users and sbi bring as a prior: any torch distribution, and what sbi wraps as one."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from sbi.utils import RestrictedPrior
from sbi.utils.sbiutils import ImproperEmpirical, within_support
from sbi.utils.user_input_checks import process_prior
from sbi.utils.user_input_checks_utils import (
    CustomPriorWrapper,
    MultipleIndependent,
    OneDimPriorWrapper,
    PytorchReturnTypeWrapper,
    move_distribution_to_device,
)
from torch import Tensor
from torch.distributions import Distribution, Independent, Transform, biject_to, constraints

from ..utils.quiet import quiet
from ..utils.seeding import aside

__all__ = ["check_prior", "draw", "draw_on_gpu", "log_prob", "moved", "proper"]

# Step of a derivative by differences, in standard deviations of the prior: in float32, rounding
# and the third derivative then cost about 1e-4 of it each.
_STEP = 1e-2


def proper(prior: Distribution | None) -> Distribution | None:
    """Return the prior, and ``None`` for what stands for none in sbi."""
    return None if isinstance(prior, ImproperEmpirical) else prior


def check_prior(prior: Any) -> Distribution | None:
    """Return the prior in the form that sbi works with.

    Raises:
        TypeError: If it is no torch distribution, or cannot evaluate its density.
        ValueError: If it is a scalar distribution, a discrete one, one with several batch
            dimensions, or one on a simplex, or if torch cannot tell what lies in its support.
    """
    if proper(prior) is None:
        return prior
    if not isinstance(prior, Distribution):
        raise TypeError(
            f"prior must be a torch distribution, got {type(prior).__name__}. Wrap other priors "
            "with sbi.utils.process_prior, or pass prior=None."
        )
    # Looking at the prior must not move the user's random numbers, and some of sbi's print.
    with aside(), quiet():
        return _check_distribution(prior)


def _check_distribution(prior: Distribution) -> Distribution:
    sample = draw(prior, 1)[0]
    if sample.dim() == 0:
        raise ValueError(
            f"prior is scalar: {prior!r} draws numbers, not vectors. Give it one dimension, "
            "for example BoxUniform(low=torch.zeros(1), high=torch.ones(1))."
        )
    try:
        prior.log_prob(sample)
    except (NotImplementedError, AttributeError) as error:
        raise TypeError(
            f"prior of type {type(prior).__name__} has no usable log_prob ({error!r}). The proxy "
            "is defined relative to the prior's density: implement log_prob, or pass prior=None."
        ) from error
    if not prior.event_shape and len(prior.batch_shape) == 1 and len(sample) > 1:
        # A batch of numbers for a vector of parameters: what sbi's NPE makes of it.
        prior = Independent(prior, 1)
    prior = process_prior(prior)[0]
    prior = _with_single_bounds(prior)
    try:
        within_support(prior, draw(prior, 2))
    except RuntimeError as error:
        raise ValueError(
            f"Whether parameters lie in the support of this prior cannot be told ({error}). Where "
            "it joins a distribution of vectors whose entries depend on each other, such as a "
            "Dirichlet, with others, take one in coordinates that are free (its logits)."
        ) from error
    if _is_discrete(prior):
        raise ValueError(
            f"prior is discrete: {prior!r} draws numbers in steps, of which no flow has a density. "
            "Infer a continuous parameter in its place (a logit, a rate), or one posterior for "
            "each value."
        )
    num_free = _num_free(prior)
    if num_free < prior.event_shape.numel():
        raise ValueError(
            f"prior {prior!r} draws {len(sample)} numbers, of which {num_free} tell the rest: no "
            "flow has a density of all of them. Infer as many as are free (of a Dirichlet, its "
            "logits: TransformedDistribution(prior, StickBreakingTransform().inv))."
        )
    return prior


def _num_free(prior: Distribution) -> int:
    """Return how many numbers of a draw are free, all of them if its support says nothing else."""
    try:
        return biject_to(prior.support).inverse_shape(prior.event_shape).numel()
    except (NotImplementedError, AttributeError, ValueError):
        return prior.event_shape.numel()


def _is_discrete(prior: Distribution) -> bool:
    """Whether some parameter takes single values only, as far as its support says."""
    try:
        support = prior.support
    except (NotImplementedError, AttributeError):
        return False
    return support is not None and support.is_discrete


def _with_single_bounds(prior: Distribution) -> Distribution:
    """Return a prior whose bounds are in single precision, itself if they are.

    sbi makes single precision of the draws of a prior in double, and then maps them by its bounds.
    """
    if isinstance(prior, RestrictedPrior):
        restricted = copy.copy(prior)
        restricted._prior = _with_single_bounds(prior._prior)
        return prior if restricted._prior is prior._prior else restricted
    if not isinstance(prior, PytorchReturnTypeWrapper):
        return prior
    try:
        support = prior.support
    except (NotImplementedError, AttributeError):
        return prior
    if not (_may_hold_tensors(support) and _has_doubles(support)):
        return prior
    return process_prior(_in_single(copy.deepcopy(prior.prior)))[0]


def _has_doubles(part: Any) -> bool:
    if isinstance(part, Tensor):
        return part.dtype == torch.float64
    parts = part if isinstance(part, list | tuple) else vars(part).values()
    return any(map(_has_doubles, filter(_may_hold_tensors, parts)))


def _in_single(part: Any) -> Any:
    """Return a distribution, or a part of one, with what is in double precision as float32."""
    if isinstance(part, Tensor):
        return part.float() if part.dtype == torch.float64 else part
    if isinstance(part, list | tuple):
        return type(part)(_in_single(p) if _may_hold_tensors(p) else p for p in part)
    for name, value in vars(part).items():
        if _may_hold_tensors(value):
            vars(part)[name] = _in_single(value)
    return part


def _may_hold_tensors(part: Any) -> bool:
    kinds = Tensor | Distribution | Transform | constraints.Constraint | list
    return isinstance(part, kinds) or type(part) is tuple


def draw(prior: Distribution, num: int) -> Tensor:
    """Return draws of the prior, shape (num, d), and print nothing."""
    if isinstance(prior, RestrictedPrior):
        # It would report on every call what it has rejected.
        return prior.sample(torch.Size((num,)), print_rejected_frac=False)
    return prior.sample(torch.Size((num,)))


@torch.no_grad()
def draw_on_gpu(prior: Distribution, num: int) -> Tensor:
    """Return draws as :func:`draw` does, on a device that need not wait for them, if it can be had.

    Normal distributions look at their scale when torch asks them for a sample, and do not when it
    asks for one that a gradient could pass.
    """
    if isinstance(prior, MultipleIndependent):
        return torch.cat([draw_on_gpu(d, num).reshape(num, -1) for d in prior.dists], dim=-1)
    if isinstance(prior, OneDimPriorWrapper):
        return draw_on_gpu(prior.prior, num)
    if prior.has_rsample and _samples_by_rsample(prior):
        return prior.rsample(torch.Size((num,)))
    return draw(prior, num)


def _samples_by_rsample(prior: Distribution) -> bool:
    """Whether no class has a ``sample`` of its own and the ``rsample`` of what it derives from."""
    definers = {
        name: next(c for c in type(prior).__mro__ if name in vars(c))
        for name in ("sample", "rsample")
    }
    inner = getattr(prior, "base_dist", None)
    whole = inner is None or _samples_by_rsample(inner)
    return whole and issubclass(definers["rsample"], definers["sample"])


def moved(prior: Distribution, device: torch.device | str) -> Distribution:
    """Return a copy of the prior on a device: some move in place, and the prior is the user's.

    A distribution that cannot move itself is built anew.
    """
    return move_distribution_to_device(copy.deepcopy(prior), device)


def log_prob(prior: Distribution, theta: Tensor) -> Tensor:
    """Return the prior's log density, shape (n,), at theta (n, d) in its support.

    A prior of numpy or scipy in sbi's wrapper has no gradient, and may refuse to be asked for one:
    it gets one by central differences.
    """
    whole = prior._prior if isinstance(prior, RestrictedPrior) else prior
    if isinstance(whole, CustomPriorWrapper) and theta.requires_grad and torch.is_grad_enabled():
        return _ByDifferences.apply(theta, prior.log_prob, _STEP * whole.variance.sqrt())
    return prior.log_prob(theta)


class _ByDifferences(torch.autograd.Function):
    """A log density, and its gradient by central differences."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, density: Callable[[Tensor], Tensor], step: Tensor):
        found = density(theta)
        ctx.save_for_backward(theta, step, found)
        ctx.density = density
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor):
        theta, step, here = ctx.saved_tensors
        columns = []
        for shift in torch.diag(step.expand(theta.shape[1])):
            sides = [(ctx.density(theta + sign * shift), sign) for sign in (1.0, -1.0)]
            # Beyond a bound there is no density: the other side has to do.
            inside = [torch.where(value.isfinite(), value, here) for value, _ in sides]
            taken = sum(value.isfinite().to(theta) for value, _ in sides)
            columns.append((inside[0] - inside[1]) / (taken.clamp_min(1) * shift.sum()))
        return gradient.unsqueeze(-1) * torch.stack(columns, dim=-1), None, None
