"""The paper's density-estimation experiments, each a figure, a table and verdicts on its claims."""
