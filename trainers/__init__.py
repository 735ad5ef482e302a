"""Train, evaluate and use the networks."""
