"""From sources to the order of training: manifest, plan, curation."""
