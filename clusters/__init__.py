"""Where the line runs: a whole cluster on one machine (`clusters.mini`), or a real one."""
