"""The compiled layers of acting beside compilers: `gwp bench compilers`."""
