"""A batch with a model to evaluate it, for tests of the objective and of the samples behind it."""

import torch
from sbi.utils import BoxUniform
from torch import nn

from sbi_jeffreys.base import Base
from sbi_jeffreys.draws import Draws, Negatives
from sbi_jeffreys.estimator import JeffreysEstimator
from sbi_jeffreys.flows import flow_nn
from sbi_jeffreys.objective import BatchTerms, batch_terms
from sbi_jeffreys.proxy import proxy_nn

__all__ = ["BATCH", "PRIOR", "LikelihoodProblem", "Problem", "gradients_of"]

PRIOR = BoxUniform(-torch.ones(2), torch.ones(2))
BATCH = 12


class Problem:
    """A flow with an embedding net and dropout, a proxy that has left its base, and a batch."""

    def __init__(self, with_proxy=True):
        self.theta = PRIOR.sample((60,))
        self.x = self.theta.repeat(1, 2) + 0.3 * torch.randn(60, 4)
        self.embedding = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3))
        build = flow_nn(PRIOR, hidden_features=16, num_transforms=2, embedding_net=self.embedding)
        flow = build(self.theta, self.x)
        base = Base(PRIOR, self.theta) if with_proxy else None
        self.estimator = JeffreysEstimator(
            flow, self.theta, self.x, base=base, build_proxy=proxy_nn("mlp", hidden_features=16)
        )
        if with_proxy:
            with torch.no_grad():
                for parameter in self.estimator.proxy.network.parameters():
                    parameter.add_(0.2 * torch.randn_like(parameter))
        self.theta, self.x = self.theta[:BATCH], self.x[:BATCH]
        self.base_draws = Negatives(PRIOR.sample((16,)))

    def terms(self, theta=None, x=None, weights=None, draws=None, **kwargs) -> BatchTerms:
        torch.manual_seed(5)
        return batch_terms(
            self.estimator,
            self.theta if theta is None else theta,
            self.x if x is None else x,
            torch.ones(BATCH) if weights is None else weights,
            Draws() if draws is None else draws,
            base_draws=self.base_draws,
            **kwargs,
        )

    def groups(self):
        embedding = list(self.embedding.parameters())
        shared = {id(p) for p in embedding}
        groups = {
            "flow": [p for p in self.estimator.flow.parameters() if id(p) not in shared],
            "embedding": embedding,
        }
        if self.estimator.proxy is not None:
            groups["proxy"] = list(self.estimator.proxy.network.parameters())
        return groups

    def reached(self, term):
        """Names of the parts that the gradient of a term reaches."""
        found = set()
        for name, parameters in self.groups().items():
            gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
            if any(g is not None and g.abs().max() > 0 for g in gradients):
                found.add(name)
        return found


class LikelihoodProblem(Problem):
    """The same with a likelihood for a proxy, and nothing in the way of the embedding."""

    def __init__(self):
        super().__init__()
        base = Base(PRIOR, self.theta)
        self.estimator = JeffreysEstimator(
            self.estimator.flow, self.theta, self.x, base=base, build_proxy=proxy_nn()
        )


def gradients_of(problem, term, name):
    found = torch.autograd.grad(term, problem.groups()[name], retain_graph=True, allow_unused=True)
    return torch.cat([g.flatten() for g in found if g is not None])
