"""Steps without Python: operations recorded once and done again, on a CPU and on a GPU."""
