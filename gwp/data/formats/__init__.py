"""One file per format of recordings; above them the one description that all of them give."""
