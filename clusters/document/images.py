"""Images of containers: which are known to hold no gwp."""

import re

from clusters.document.words import Image

# Where public images lie that others made; a name below them that is not foreign is a user's own.
_PUBLIC = r"((index\.|registry-1\.)?docker\.io|quay\.io|public\.ecr\.aws/docker|mirror\.gcr\.io)/"
_FOREIGN = re.compile(
    rf"({_PUBLIC})?(library/)?"
    r"((rayproject|nvidia|pytorch|huggingface|kuberay|tensorflow|continuumio|condaforge|anyscale)/.+"
    r"|python|ubuntu|debian|fedora|alpine|busybox|rockylinux|almalinux|redis|nginx|postgres)"
    # Of these registries everything below these names is their makers'.
    r"|nvcr\.io/nvidia/.+|(ghcr\.io|quay\.io)/(ray-project|kuberay|mlflow|huggingface)/.+"
    r"|gcr\.io/(deeplearning-platform-release|google-containers)/.+|mcr\.microsoft\.com/.+"
)


def require_own(image: Image) -> Image:
    """`image`, when it may hold gwp and is one version; ValueError otherwise."""
    _, _, tag = image.partition("@")[0].rpartition("/")[2].partition(":")
    repository = image.partition("@")[0].removesuffix(f":{tag}")
    if _FOREIGN.fullmatch(repository):
        raise ValueError(f"{image} holds no gwp; build one from clusters/image/Dockerfile")
    if "@sha256:" not in image and (not tag or tag == "latest"):
        raise ValueError(
            f"{image} names no version, and nodes would run different ones; add a tag or digest"
        )
    return image
