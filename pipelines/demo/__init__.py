"""The demo: the whole line on one machine, sized to the time it promises."""
