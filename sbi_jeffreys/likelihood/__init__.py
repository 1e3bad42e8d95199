"""The default network of the proxy, a likelihood: its forms, how they are fitted and stacked."""
