"""What looking at a set costs whose storage answers late: `gwp bench inspect`."""
