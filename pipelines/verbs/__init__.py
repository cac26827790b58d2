"""One light module per verb of the `gwp` command.

Each has `add(subparsers)`, which only describes arguments and names the function to run
(`set_defaults(run=...)`), and that function, `run_x(args) -> int | None`, which imports what it
needs inside: `gwp --help` must not wait for torch.
"""
