"""The training loop: from what sbi's trainer calls to a single step, and its record."""
