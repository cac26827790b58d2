"""Who answers: what a reply says of the policy behind it."""

from pydantic import BaseModel, ConfigDict


class Identity(BaseModel):
    """Of the deployed policy; resolved once, when the endpoint is deployed. Every handshake and
    every reply carries it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    policy_id: str
    """sha256 of the bundle's manifest."""
    policy_version: str = ""
    """Version in the registry; empty: served from an address, not from the registry."""
    policy_alias: str = ""
    """Alias under which it was found."""
    run_id: str = ""
    """MLflow run that trained it."""
