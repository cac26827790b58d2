"""What tests share: small models, data sets, faults of storage, paths."""
