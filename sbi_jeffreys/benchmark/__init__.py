"""The benchmark: every method on every task, budget and seed, as records on disk.

| module | idea |
|---|---|
| `methods` | what is compared: named functions from simulations to a posterior |
| `jobs` | one cell of the grid, how it is judged, and the seeds of everything |
| `evaluate` | one job from simulations to its record |
| `measures` | what a fitted method is worth, by the metrics |
| `records` | records on disk: strict JSON, written atomically, checked when read |
| `runner` | all jobs that have no record yet, on this machine or on a Dask cluster |
| `report` | tables, figures and a page from the records |
"""
