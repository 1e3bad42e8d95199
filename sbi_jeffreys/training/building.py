"""What is built before a training: the split of the simulations, the flow, and its proxy."""

from dataclasses import replace
from typing import Any

import torch
from sbi.inference.trainers.npe.npe_c import NPE_C
from torch import Tensor

from ..base import Base
from ..duals import Weighting, is_maximum_likelihood
from ..estimator import ROWS_FOR_SCALE, JeffreysEstimator
from ..flows import FlowBuilder, starts_in_closed_form
from ..inputs.priors import proper
from ..inputs.simulations import check_same_simulations, check_varies, fraction_outside_prior
from ..proxy import ProxyBuilder
from .batches import Data, through_loaders
from .embedding_first import LearntEmbedding
from .joining import join, warn_of_columns
from .likelihood_form import NOT_FITTED
from .split import NO_ROWS, check_enough, split, stored_rows

__all__ = ["Building"]


class Building(NPE_C):
    """The part of :class:`~sbi_jeffreys.trainer.JeffreysNPE` that prepares a training.

    sbi's trainer calls it before each. Attributes that have no value here are set by that class.
    """

    # None before the first training, a flow while it is being joined with a proxy.
    _neural_net: JeffreysEstimator
    _build_neural_net: Any
    # Whether the flow is ours and left to see of x what it finds.
    _default_flow: bool
    # The prior at whose bounds our flow has walls.
    _walls: Any
    # What a saved posterior is rebuilt from; builders without a name must be handed in again.
    _spec: dict[str, Any]
    _build_proxy: ProxyBuilder
    _weighting: Weighting

    _validation_data: tuple[Tensor, Tensor] | None = None
    # First round and number of simulations of the last training.
    _rows = (0, 0)
    # Which of all simulations the present flow was trained on, or judged by.
    _split = NO_ROWS
    # Number of simulations by which columns of x were last chosen.
    _screened = 0
    _simple_start = False
    # Whether the flow is new and starts as its builder left it.
    _starts_anyhow = False
    # What was fitted before the joint training, and to which simulations.
    _fitted = NOT_FITTED
    # What the embedding beside a flow of sbi's has learnt before the joint training.
    _embedding: LearntEmbedding | None = None

    def get_dataloaders(
        self,
        starting_round: int = 0,
        training_batch_size: int = 200,
        validation_fraction: float = 0.1,
        resume_training: bool = False,
        dataloader_kwargs: dict | None = None,
    ) -> tuple[Any, Any]:
        """Split the simulations into what is trained on and what is held out.

        What a flow that goes on was trained on stays so (:mod:`sbi_jeffreys.training.split`).
        Both yield batches (theta, x, masks) by index, of nearly equal size and no row left out;
        with dataloader_kwargs they do so through torch's loaders.

        Raises:
            ValueError: If too few simulations are there to train and to validate, a parameter is
                the same in all of them, or a resumed training would leave out rounds that it began
                with, or take in others.
        """
        theta, x, masks = self.get_simulations(starting_round)
        held_out = self._validation_data
        fraction = validation_fraction if held_out is None else None
        check_enough(len(theta), fraction)
        check_varies(theta)
        rows = starting_round, len(theta)
        if resume_training:
            check_same_simulations(rows, self._rows)
        else:
            self._rows = rows
            sizes = list(map(len, self._theta_roundwise))
            stored = stored_rows(sizes, self._data_round_index, starting_round)
            places, self._split = split(stored, fraction, self._split)
            self.train_indices, self.val_indices = places
        if dataloader_kwargs is not None:
            # As sbi does where it resumes: with the split that is there.
            loaders = super().get_dataloaders(
                starting_round,
                training_batch_size,
                validation_fraction,
                resume_training=True,
                dataloader_kwargs=dataloader_kwargs,
            )
            num_rows = len(self.train_indices), len(self.val_indices)
            return through_loaders(loaders, num_rows, dataloader_kwargs)
        # sbi has its masks on the CPU.
        masks = masks.to(theta.device)
        train = Data(theta, x, masks, self.train_indices, training_batch_size)
        if held_out is None:
            return train, Data(theta, x, masks, self.val_indices, training_batch_size)
        others = masks.new_ones(len(held_out[0]), 1).to(held_out[0].device)
        # They may be ordered, and some looks are at the first few; resumed, at the same again.
        order = torch.randperm(len(others), generator=torch.Generator().manual_seed(0))
        return train, Data(*held_out, others, order, training_batch_size)

    def _initialize_neural_network(self, retrain_from_scratch: bool, start_idx: int) -> None:
        """Build flow and proxy in the place of sbi's flow."""
        if self._embedding is not None:
            if retrain_from_scratch:
                self._embedding.release(self._neural_net.flow)
                self._embedding = None
            else:
                self._embedding.hold(self._neural_net.flow)
        self._build(retrain_from_scratch, start_idx, self._build_proxy, self._spec)

    def _build(
        self,
        retrain_from_scratch: bool,
        start_idx: int,
        build_proxy: ProxyBuilder,
        spec: dict[str, Any],
    ) -> None:
        """Build the flow as sbi does, then join it with a proxy; ``spec`` has the names of both."""
        fresh = self._neural_net is None or retrain_from_scratch
        if fresh and (build_proxy is None or self._build_neural_net is None):
            raise RuntimeError(
                "This trainer was copied or unpickled, and the function that built its "
                "density_estimator or proxy is none that a pickle holds: make a new JeffreysNPE "
                "with it, and append the simulations there."
            )
        if fresh and isinstance(self._build_neural_net, FlowBuilder):
            # Behind walls, held-out parameters beyond the others would have no density at all.
            walls = None if self._outside_prior(start_idx) else proper(self._walls)
            self._build_neural_net = replace(self._build_neural_net, prior=walls)
        super()._initialize_neural_network(retrain_from_scratch, start_idx)
        if fresh and self._embedding is not None:
            self._embedding.put_to_rest(self._neural_net)
        self._simple_start = fresh and starts_in_closed_form(self._neural_net)
        self._starts_anyhow = fresh and not self._simple_start
        if fresh and spec["proxy"] == "likelihood":
            self._fitted = NOT_FITTED
        if fresh:
            self._neural_net = self._with_proxy(start_idx, build_proxy, spec)
        if not self._neural_net.learns_embedding:
            _, x, _ = self.get_simulations(start_idx)
            for rows in self.train_indices.split(ROWS_FOR_SCALE):
                self._neural_net.widen_reach(x[rows])
        self._look_at_columns(start_idx, fresh=fresh)

    def _look_at_columns(self, start_idx: int, *, fresh: bool) -> None:
        """Warn where new simulations tell of columns of x that the flow was built without."""
        _, num = self._rows
        more, self._screened = num > self._screened, num
        if more and not fresh and self._default_flow:
            theta, x, _ = self.get_simulations(start_idx)
            rows, later = self.train_indices, self._round > 0
            warn_of_columns(self._neural_net, theta, x, rows, later_round=later)

    def _with_proxy(
        self, start_idx: int, build_proxy: ProxyBuilder, spec: dict[str, Any]
    ) -> JeffreysEstimator:
        """Return the flow that sbi has built, joined with a proxy."""
        theta, x = self._rows_for_scale(start_idx)
        base = None
        if not is_maximum_likelihood(self._weighting):
            base = Base(self._prior, theta.to(self._device)).to("cpu")
        return join(self._neural_net, theta, x, base, build_proxy, spec)

    def _rows_for_scale(self, start_idx: int) -> tuple[Tensor, Tensor]:
        """Return all of theta, but no more x than the scale of the proxy's input needs."""
        theta, x, _ = self.get_simulations(start_idx)
        x = x[self.train_indices[:ROWS_FOR_SCALE]]
        return theta[self.train_indices].cpu(), x.cpu()

    def _outside_prior(self, start_idx: int) -> bool:
        """Whether parameters to train on or to validate lie outside of the prior's support."""
        thetas = [self.get_simulations(start_idx)[0]]
        if self._validation_data is not None:
            thetas.append(self._validation_data[0].to(thetas[0]))
        return fraction_outside_prior(torch.cat(thetas).to(self._device), self._prior) > 0
