"""What Ray Serve runs: replicas, gateways, and the list by which gateways find replicas."""
