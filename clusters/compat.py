"""Every private interface of Ray that the clusters need, with the reason.

`tests/unit/clusters/test_compat.py` notices when one changes with an update.
"""


def reread_access() -> None:
    """Let Ray look at `RAY_AUTH_*` again.

    Ray reads them once, at import, and has no public way to look again. It does the same in its
    own `ray.init`.
    """
    # Compiled, and its stub lacks them.
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
