"""What flow and proxy are given of x: which columns, or which components of them."""
