"""One robot's way to the endpoint: the rules of an exchange, and the network under them."""
