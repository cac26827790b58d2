"""What the clusters need of Ray's private parts is there."""

from clusters.compat import reread_access


def test_ray_reads_its_access_variables_again() -> None:
    reread_access()
