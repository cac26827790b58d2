"""`gwp bench train`: what training costs beside a bare loop, and each part of it."""
