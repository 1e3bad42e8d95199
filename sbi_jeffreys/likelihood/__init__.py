"""The default network of the proxy: an energy in the shape of a likelihood."""
