"""The training loop: batches, steps of both models, patience, and the record of it all."""
