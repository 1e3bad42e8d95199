"""One thread for every test process: the networks are small, and processes run side by side."""

import torch

torch.set_num_threads(1)
