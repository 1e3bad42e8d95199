"""How parameters and data are scaled and bent, and the linear posterior in closed form."""
