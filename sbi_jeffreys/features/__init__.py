"""What flow and proxy see of x: which columns, in which scale, or their principal components."""
