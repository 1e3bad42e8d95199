"""The code of docs/guide.md runs as it stands there, block after block."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from sbi.inference import NPE

from sbi_jeffreys import JeffreysNPE

PAGE = Path(__file__).parents[1] / "docs" / "guide.md"


def short(train):
    """Train for two epochs."""

    def trained(self, *args, **kwargs):
        return train(self, *args, **{"max_num_epochs": 2, **kwargs})

    return trained


# sbi's, of the draws of its SBC.
@pytest.mark.filterwarnings("ignore:Capping max_sampling_batch_size")
def test_guide(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for trainer in (JeffreysNPE, NPE):
        monkeypatch.setattr(trainer, "train", short(trainer.train))
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), flags=re.DOTALL)
    names = {"__name__": "guide"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    plt.close("all")
    assert len(names["nll"]) == 3
    assert names["samples"].shape == (1000, 2)
    assert names["found"].log_partition.isfinite().all()
    theta, x_o = names["samples"][:5], names["x_o"]
    for file, kept in (("again", names["posterior"]), ("other", None)):
        expected = names["with_network"].build_posterior() if kept is None else kept
        found = names[file].log_prob(theta, x=x_o)
        torch.testing.assert_close(found, expected.log_prob(theta, x=x_o))
