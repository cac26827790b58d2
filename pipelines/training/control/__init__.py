"""How a run begins, goes on, is watched and ends: who drives it, what may change, which failures last."""
