"""The benchmark: every method on every task, budget and seed, as records on disk.

| module | idea |
|---|---|
| `methods` | what is compared: named functions from simulations to a posterior |
| `jobs` | one cell of the grid, how it is judged, and the seeds of everything |
| `evaluate` | one job from simulations to its record |
| `measures` | what a fitted method is worth, by the metrics |
| `records` | records on disk: strict JSON, written atomically, checked when read |
| `runner` | all jobs that have no record yet |
| `backends` | where they run: in processes of this machine or on a Dask cluster |
| `plugins` | methods and tasks from a user's file |
| `references`, `published` | reference posteriors: the tasks' own, or those of sbibm |
| `machine`, `progress` | what it ran on, and how far it is |
| `variants` | the method with one choice changed, for :mod:`sbi_jeffreys.bench_method` |
| `cli`, `arguments` | the command line |
| `report` | tables, figures and a page from the records |
"""
