"""The demo's endpoint: the champion of the registry, with as many replicas as its fleet needs."""

from clusters.services import free_ports

CHAMPION = "models:/gwp@champion"
"""Where the registry keeps the policy that is served."""


def serve_champion() -> tuple[str, str]:
    """Deploy the champion with up to three replicas; the application's name and its URL."""
    from serve.app import deploy
    from serve.config import ServeApp

    config = ServeApp.model_validate(
        {
            "policy": CHAMPION,
            "port": free_ports(1)[0],
            "gateway": {"pool": "serve"},
            # Logical CPUs: three replicas and the gateway have to fit into this pool's four.
            "replica": {"pool": "serve", "cpus": 0.5},
            # Quick up and down: a crowd of the demo is there for a minute, not for an hour.
            "autoscaling": {
                "min_replicas": 1,
                "max_replicas": 3,
                "target_ongoing_requests": 1.5,
                "upscale_delay_s": 1.0,
                "downscale_delay_s": 4.0,
                "look_back_period_s": 2.0,
                "metrics_interval_s": 0.5,
            },
            "limits": {"request_timeout_s": 30},
        }
    )
    return config.name, deploy(config)
