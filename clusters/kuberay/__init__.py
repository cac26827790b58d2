"""A cluster document as manifests for KubeRay 1.7: beta and stable fields only."""
