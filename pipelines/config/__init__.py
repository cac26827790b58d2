"""Configuration: YAML files into typed models, with every mistake told at once."""
