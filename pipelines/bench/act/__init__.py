"""How fast a policy acts: `gwp bench act`."""
