"""What flow and proxy are given of x: columns, with gaps filled in, components, or statistics."""
