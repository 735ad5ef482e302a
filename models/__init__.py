"""Networks, and the objectives that train them."""
